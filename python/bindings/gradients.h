// Bindings of the gradients' averager: layout, plan and steps.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_gradients(nanobind::module_& module);

}  // namespace scant::python
