// Descriptions as dicts of numbers, and back. Every function needs the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include "serve/file/description.h"

namespace scant::python {

[[nodiscard]] nanobind::dict dict_of(const serve::Description& description);
// ErrorCode::invalid_argument names the field that is missing or no code.
[[nodiscard]] serve::Description description_of(const nanobind::dict& given);

}  // namespace scant::python
