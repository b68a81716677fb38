// The strong directions of a matrix for Python, one member's arithmetic: docs/codec.md, "Rank".
// Work on elements is done without the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_codec_factors(nanobind::module_& module);

}  // namespace scant::python
