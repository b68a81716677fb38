// Runs C++ that may block without holding the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

template <typename F>
auto without_gil(const F& body) {
  const nanobind::gil_scoped_release release;
  return body();
}

}  // namespace scant::python
