// The sync plane: rendezvous, communicators with their operations, averages of gradients.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_sync(nanobind::module_& module);

}  // namespace scant::python
