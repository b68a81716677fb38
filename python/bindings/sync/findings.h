// What an agreement found, as the lines of docs/run_log.md. Needs the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include "plan/tuner.h"

namespace scant::python {

// A list of dictionaries, in the order in which they belong into the log.
[[nodiscard]] nanobind::list lines_of(const plan::Findings& findings,
                                      const gradient::Layout& layout);

}  // namespace scant::python
