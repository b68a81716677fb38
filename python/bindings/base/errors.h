// Turns scant::Error into the Python exceptions of scant.errors, and back for errors raised by a
// Python store. Every function needs the GIL.
#pragma once

#include <nanobind/nanobind.h>
#include <string>
#include <type_traits>
#include <utility>

#include "scant/base/result.h"

namespace scant::python {

namespace nb = nanobind;

// A new instance of the subclass of scant.Error that stands for error.code. `rank` is the rank that
// reports.
[[nodiscard]] nb::object to_exception(const Error& error, Rank rank);
[[noreturn]] void raise(const Error& error, Rank rank);
// ErrorCode::invalid_argument.
[[noreturn]] void refuse(std::string message);
// The value, or the error raised.
template <typename T>
T unwrap(Result<T> result, Rank rank = kNoRank) {
  if (!result) raise(result.error(), rank);
  if constexpr (!std::is_void_v<T>) return std::move(result).value();
}

// The error that a Python exception stands for: scant.Error keeps its code, TimeoutError becomes
// timeout, OSError io.
[[nodiscard]] Error from_exception(const nb::python_error& exception);

}  // namespace scant::python
