// scant::Communicator for Python: buffers come as addresses and byte counts with the object that
// keeps them alive. Owner: any thread that holds the GIL; whatever can block releases it.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_communicator(nanobind::module_& module);

}  // namespace scant::python
