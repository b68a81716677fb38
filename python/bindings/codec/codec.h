// Encoders, decoding, probe and allocation of the codec, for the package scant.codec: raw addresses
// and names in, records out. All work on elements is done without the GIL.
#pragma once

#include <nanobind/nanobind.h>

namespace scant::python {

void bind_codec(nanobind::module_& module);

}  // namespace scant::python
