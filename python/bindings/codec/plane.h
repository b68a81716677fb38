// The plane of codecs for Python: points, budgets, and the selections of others. Arithmetic alone;
// work on elements is done without the GIL.
#pragma once

#include <nanobind/nanobind.h>
#include <string>

#include "codec/rate/probe.h"
#include "codec/residual/residual.h"

namespace scant::python {

namespace nb = nanobind;

// (density, name of the kind of value); raises where there is no such kind.
[[nodiscard]] codec::Point point_from(double density, const std::string& values);
[[nodiscard]] codec::ResidualKind residual_from(const std::string& kind);

// (energy, [(density, values, bytes, share of the energy kept), ...])
[[nodiscard]] nb::tuple to_python(const codec::Curve& curve);

void bind_codec_plane(nb::module_& module);

}  // namespace scant::python
