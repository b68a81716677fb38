#include "bindings/sync/store.h"

#include <nanobind/stl/string.h>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"

namespace scant::python {
namespace {

nb::bytes to_bytes(std::string_view value) { return nb::bytes(value.data(), value.size()); }

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

// open_directory_store for Python; the directory is shared by the ranks of one job.
class DirectoryStore {
 public:
  explicit DirectoryStore(const std::string& path) {
    auto opened = open_directory_store(path);
    if (!opened) raise(opened.error(), kNoRank);
    store_ = std::move(opened).value();
  }

  void set(const std::string& key, const nb::bytes& value) {
    const std::string_view view(value.c_str(), value.size());
    auto done = without_gil([&] { return store_->set(key, view); });
    if (!done) raise(done.error(), kNoRank);
  }

  bool set_if_absent(const std::string& key, const nb::bytes& value) {
    const std::string_view view(value.c_str(), value.size());
    auto done = without_gil([&] { return store_->set_if_absent(key, view); });
    if (!done) raise(done.error(), kNoRank);
    return done.value();
  }

  // Waits in slices so that Ctrl-C works.
  nb::bytes get(const std::string& key, double timeout_s) {
    constexpr double kSliceSeconds = 0.2;
    for (double left = timeout_s;; left -= kSliceSeconds) {
      const double slice = left < kSliceSeconds ? left : kSliceSeconds;
      const auto wait = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(slice));
      auto done = without_gil([&] { return store_->get(key, wait); });
      if (done) return to_bytes(done.value());
      if (done.error().code != ErrorCode::timeout || left <= kSliceSeconds)
        raise(done.error(), kNoRank);
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    }
  }

 private:
  std::unique_ptr<Store> store_;
};

}  // namespace

Error PythonStore::remember(const nb::python_error& exception) {
  if (!exception.matches(PyExc_Exception)) interrupt_.emplace(exception);
  return from_exception(exception);
}

Result<void> PythonStore::set(std::string_view key, std::string_view value) {
  const nb::gil_scoped_acquire gil;
  try {
    object_.attr("set")(nb::str(key.data(), key.size()), to_bytes(value));
    return {};
  } catch (const nb::python_error& exception) {
    return remember(exception);
  }
}

Result<bool> PythonStore::set_if_absent(std::string_view key, std::string_view value) {
  const nb::gil_scoped_acquire gil;
  try {
    const nb::object was_absent =
        object_.attr("set_if_absent")(nb::str(key.data(), key.size()), to_bytes(value));
    return nb::cast<bool>(was_absent);
  } catch (const nb::python_error& exception) {
    return remember(exception);
  } catch (const nb::cast_error&) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "store: set_if_absent() did not return a bool"};
  }
}

Result<std::string> PythonStore::get(std::string_view key, Duration timeout) {
  const nb::gil_scoped_acquire gil;
  try {
    const nb::object value = object_.attr("get")(nb::str(key.data(), key.size()), seconds(timeout));
    const auto bytes = nb::cast<nb::bytes>(value);
    return std::string(bytes.c_str(), bytes.size());
  } catch (const nb::python_error& exception) {
    return remember(exception);
  } catch (const nb::cast_error&) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "store: get() did not return bytes"};
  }
}

void PythonStore::rethrow_interrupt() {
  if (interrupt_) throw *interrupt_;
}

void bind_store(nb::module_& module) {
  nb::class_<DirectoryStore>(module, "DirectoryStore")
      .def(nb::init<const std::string&>(), nb::arg("path"))
      .def("set", &DirectoryStore::set, nb::arg("key"), nb::arg("value"))
      .def("set_if_absent", &DirectoryStore::set_if_absent, nb::arg("key"), nb::arg("value"))
      .def("get", &DirectoryStore::get, nb::arg("key"), nb::arg("timeout_s"));
}

}  // namespace scant::python
