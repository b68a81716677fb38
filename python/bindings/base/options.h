// The options of a call, given as a dict. Whoever reads them asks for each that it knows; done()
// then refuses the others by name, so that a slip of the pen is no silence. Every function needs
// the GIL.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "scant/base/types.h"

namespace scant::python {

namespace nb = nanobind;

class Options {
 public:
  // `of` begins the sentence of an error: "Averager".
  Options(std::string_view of, const nb::dict& given) : of_(of), given_(given) {}

  // The field keeps its value where the option is not given. A Duration is given in seconds.
  template <typename T>
  void get(const char* key, T& field) {
    known_.emplace_back(key);
    if (!given_.contains(key)) return;
    if constexpr (std::is_same_v<T, Duration>) {
      const std::chrono::duration<double> seconds(cast<double>(key));
      field = std::chrono::duration_cast<Duration>(seconds);
    } else {
      field = cast<T>(key);
    }
  }
  // ErrorCode::invalid_argument: not given.
  template <typename T>
  void need(const char* key, T& field) {
    if (!given_.contains(key)) missing(key);
    get(key, field);
  }
  // ErrorCode::invalid_argument names an option that nobody asked for, and those that there are.
  void done() const;

 private:
  template <typename T>
  T cast(const char* key) const {
    try {
      return nb::cast<T>(given_[key]);
    } catch (const nb::cast_error&) {
      wrong_type(key);
    }
  }
  [[noreturn]] void missing(const char* key) const;
  [[noreturn]] void wrong_type(const char* key) const;

  std::string of_;
  const nb::dict& given_;
  std::vector<std::string> known_;
};

}  // namespace scant::python
