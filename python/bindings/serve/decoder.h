// Models and decoders, as the Python package sees them.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_serve_decoder(nanobind::module_& module);

}  // namespace scant::python
