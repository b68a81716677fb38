// Turns scant::Error into the Python exceptions of scant.errors, and back for errors raised by a
// Python store. Every function needs the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include "scant/result.h"

namespace scant::python {

namespace nb = nanobind;

// A new instance of the subclass of scant.Error that stands for error.code. `rank` is the rank that
// reports.
[[nodiscard]] nb::object to_exception(const Error& error, Rank rank);
[[noreturn]] void raise(const Error& error, Rank rank);

// The error that a Python exception stands for: scant.Error keeps its code, TimeoutError becomes
// timeout, OSError io.
[[nodiscard]] Error from_exception(const nb::python_error& exception);

}  // namespace scant::python
