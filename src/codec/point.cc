// Names of the kinds of value, as options, tables and errors print them.
#include "codec/point.h"

#include <array>

namespace scant::codec {
namespace {

constexpr std::array<const char*, kValueKindCount> kNames = {"f32", "bf16", "f16", "q8",
                                                             "q4",  "q3",   "q2",  "q1"};

}  // namespace

const char* name(ValueKind kind) {
  const auto index = static_cast<size_t>(kind);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::optional<ValueKind> value_kind(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (name == kNames[i]) return static_cast<ValueKind>(i);
  return std::nullopt;
}

std::string values_text(Point point) {
  return std::string(name(point.values)) + std::string(point.by_row ? kByRow : "");
}

std::string text(const Shape& shape) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
}

std::optional<Point> point_of(double density, std::string_view values) {
  const bool by_row = values.ends_with(kByRow);
  if (by_row) values.remove_suffix(kByRow.size());
  const auto kind = value_kind(values);
  if (!kind) return std::nullopt;
  return Point{density, *kind, by_row};
}

}  // namespace scant::codec
