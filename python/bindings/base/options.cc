#include "bindings/base/options.h"

#include <algorithm>

#include "bindings/base/errors.h"

namespace scant::python {

void Options::done() const {
  for (const nb::handle key : given_.keys()) {
    const std::string name = nb::cast<std::string>(nb::str(key));
    if (std::ranges::find(known_, name) != known_.end()) continue;
    std::vector<std::string> sorted = known_;
    std::ranges::sort(sorted);
    std::string list;
    for (const std::string& one : sorted) list += (list.empty() ? "" : ", ") + one;
    refuse(of_ + ": no option '" + name + "'; there are: " + list);
  }
}

void Options::missing(const char* key) const {
  refuse(of_ + ": the option '" + key + "' is missing");
}

void Options::wrong_type(const char* key) const {
  refuse(of_ + ": the option '" + key + "' cannot be " +
         nb::cast<std::string>(nb::repr(given_[key])));
}

}  // namespace scant::python
