#include "bindings/base/errors.h"

#include <nanobind/stl/string.h>

namespace scant::python {
namespace {

nb::object errors_module() { return nb::module_::import_("scant.errors"); }

}  // namespace

nb::object to_exception(const Error& error, Rank rank) {
  return errors_module().attr("make_error")(name(error.code), error.to_string(), rank, error.peer,
                                            error.sys_errno);
}

void raise(const Error& error, Rank rank) {
  const nb::object exception = to_exception(error, rank);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  throw nb::python_error();
}

void refuse(std::string message) {
  raise({.code = ErrorCode::invalid_argument, .message = std::move(message)}, kNoRank);
}

Error from_exception(const nb::python_error& exception) {
  Error error;
  error.code = ErrorCode::io;
  error.message = exception.what();
  if (exception.matches(PyExc_TimeoutError)) {
    error.code = ErrorCode::timeout;
  } else if (exception.matches(PyExc_KeyboardInterrupt)) {
    error.code = ErrorCode::closed;
  } else if (exception.matches(PyExc_ValueError) || exception.matches(PyExc_TypeError)) {
    error.code = ErrorCode::invalid_argument;
  }
  return error;
}

}  // namespace scant::python
