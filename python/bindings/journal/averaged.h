// What an averager of the sync plane leaves for the journal. Needs the GIL; in a build without that
// plane nobody has an averager.
#pragma once

#include <nanobind/nanobind.h>
#include <string>
#include <vector>

#include "journal/averages.h"
#include "journal/base_writer.h"

namespace scant::python {

// What the averages of the averager's last step were made from.
[[nodiscard]] std::vector<journal::AveragedTogether> averages_of(const nanobind::object& averager);

// The file of a base that holds the averager's residuals as they are now: asked for here, before
// the next step changes them; waited for by the journal's thread.
[[nodiscard]] journal::BaseSource residuals_of(const nanobind::object& averager,
                                               const std::string& name);

}  // namespace scant::python
