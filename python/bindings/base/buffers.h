// Finds out where the bytes of a Python object lie: NumPy arrays, anything with the buffer
// protocol, CPU tensors through DLPack. Nothing is copied and nothing is retained; the caller keeps
// the object alive.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_buffers(nanobind::module_& module);

}  // namespace scant::python
