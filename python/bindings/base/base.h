// What every plane needs of the module: names of types, counters, checksums, views of buffers.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_base(nanobind::module_& module);

}  // namespace scant::python
