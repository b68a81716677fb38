// scant::Communicator for Python: buffers come as addresses and byte counts with the object that
// keeps them alive. Owner: any thread that holds the GIL; whatever can block releases it.
#pragma once

#include <nanobind/nanobind.h>

#include "scant/collective/communicator.h"

namespace scant::python {

void bind_communicator(nanobind::module_& module);

// The communicator behind a scant._scant.Communicator, which must be kept alive while it is used.
[[nodiscard]] Communicator& native_communicator(nanobind::handle communicator);

}  // namespace scant::python
