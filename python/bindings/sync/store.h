// A rendezvous store written in Python, seen as scant::Store. The Python object has set(key,
// value), set_if_absent(key, value) -> bool and get(key, timeout_s) -> bytes (scant.store adapts
// torch's stores to this). Owner: the thread that creates a communicator, which has released the
// GIL; each call takes it again.
#pragma once

#include <nanobind/nanobind.h>
#include <optional>

#include "scant/collective/store.h"

namespace scant::python {

namespace nb = nanobind;

class PythonStore final : public Store {
 public:
  explicit PythonStore(nb::object object) : object_(std::move(object)) {}  // with the GIL

  Result<void> set(std::string_view key, std::string_view value) override;
  Result<bool> set_if_absent(std::string_view key, std::string_view value) override;
  Result<std::string> get(std::string_view key, Duration timeout) override;

  // Throws the exception that ended a call when it is one that must reach the user as it is
  // (Ctrl-C, SystemExit).
  void rethrow_interrupt();  // with the GIL

 private:
  Error remember(const nb::python_error& exception);

  nb::object object_;
  std::optional<nb::python_error> interrupt_;
};

void bind_store(nb::module_& module);

}  // namespace scant::python
