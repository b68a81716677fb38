#include "bindings/codec/plane.h"

#include <array>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"
#include "codec/rate/allocate.h"
#include "codec/select/select_reference.h"

namespace scant::python {
namespace {

template <typename Kind>
std::string names_of(int count) {
  std::string all;
  for (int i = 0; i < count; ++i) {
    all += std::string(i == 0 ? "" : ", ") + codec::name(static_cast<Kind>(i));
  }
  return all;
}

std::span<const float> input(uintptr_t address, size_t elements) {
  return {reinterpret_cast<const float*>(address), elements};
}

codec::Curve from_python(nb::handle given) {
  const auto pair = nb::cast<nb::tuple>(given);
  codec::Curve curve{.energy = nb::cast<double>(pair[0]), .points = {}};
  for (nb::handle item : nb::cast<nb::list>(pair[1])) {
    const auto row = nb::cast<nb::tuple>(item);
    curve.points.push_back(
        {.point = point_from(nb::cast<double>(row[0]), nb::cast<std::string>(row[1])),
         .bytes = nb::cast<double>(row[2]),
         .energy = nb::cast<double>(row[3])});
  }
  return curve;
}

nb::tuple allocate(const nb::list& given, double budget_bytes) {
  std::vector<codec::Curve> curves;
  for (nb::handle curve : given) curves.push_back(from_python(curve));
  const auto found = without_gil([&] { return codec::allocate(curves, budget_bytes); });
  if (!found) raise(found.error(), kNoRank);
  const codec::Allocation& allocation = found.value();
  return nb::make_tuple(allocation.choice, allocation.bytes, allocation.energy,
                        allocation.energy_bound);
}

// Positions as 64-bit numbers, one behind the other.
nb::bytes packed(const std::vector<size_t>& positions) {
  return nb::bytes(positions.data(), positions.size() * sizeof(size_t));
}

nb::list default_points() {
  nb::list result;
  for (const codec::Point& point : codec::default_points())
    result.append(nb::make_tuple(point.density, codec::name(point.values)));
  return result;
}

void bind_selections(nb::module_& module) {
  module.def("select_top_k", [](uintptr_t address, size_t elements, size_t count) {
    return packed(
        without_gil([&] { return codec::select_top_k(input(address, elements), count); }));
  });
  module.def(
      "select_row_top_k", [](uintptr_t address, size_t elements, size_t columns, double density) {
        return packed(without_gil(
            [&] { return codec::select_row_top_k(input(address, elements), columns, density); }));
      });
  module.def("select_random_k", [](size_t elements, size_t count, uint64_t seed, uint64_t step) {
    return packed(without_gil([&] { return codec::select_random_k(elements, count, seed, step); }));
  });
  module.def("select_threshold", [](uintptr_t address, size_t elements, double threshold) {
    return packed(without_gil([&] {
      return codec::select_threshold(input(address, elements), static_cast<float>(threshold));
    }));
  });
}

}  // namespace

codec::Point point_from(double density, const std::string& values) {
  const auto point = codec::point_of(density, values);
  if (!point) {
    refuse("values: no kind '" + values +
           "'; there are: " + names_of<codec::ValueKind>(codec::kValueKindCount) +
           ", each also with '" + std::string(codec::kByRow) + "'");
  }
  return *point;
}

codec::ResidualKind residual_from(const std::string& kind) {
  const auto known = codec::residual_kind(kind);
  if (!known) {
    refuse("residual: no kind '" + kind +
           "'; there are: " + names_of<codec::ResidualKind>(codec::kResidualKindCount));
  }
  return *known;
}

nb::tuple to_python(const codec::Curve& curve) {
  std::array<nb::object, codec::kValueKindCount> names;  // one string of each, many points have it
  nb::list points;
  for (const codec::CurvePoint& point : curve.points) {
    nb::object& name = names[static_cast<size_t>(point.point.values)];
    if (!name.is_valid()) name = nb::str(codec::name(point.point.values));
    const double kept = curve.energy > 0 ? point.energy / curve.energy : 1.0;
    points.append(nb::make_tuple(point.point.density, name, point.bytes, kept));
  }
  return nb::make_tuple(curve.energy, points);
}

void bind_codec_plane(nb::module_& module) {
  module.def("default_points", &default_points);
  module.def("allocate", &allocate);
  bind_selections(module);
}

}  // namespace scant::python
