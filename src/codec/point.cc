// Names of the kinds of value, as options, tables and errors print them.
#include "codec/point.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <system_error>

namespace scant::codec {
namespace {

constexpr std::array<const char*, kValueKindCount> kNames = {"f32", "bf16", "f16", "q8",
                                                             "q4",  "q3",   "q2",  "q1"};
constexpr std::string_view kRank = "rank ";
constexpr std::string_view kOf = " of ";
constexpr std::string_view kThenRest = ", ";

bool sends_rest(Point point) { return point.rank == 0 || point.density > 0; }

std::string rest_text(Point point) {
  return std::string(name(point.values)) + std::string(point.by_row ? kByRow : "");
}

// With what stands between it and the rest.
std::string factors_text(Point point) {
  if (point.rank == 0) return {};
  return std::string(kRank) + std::to_string(point.rank) + std::string(kOf) + name(point.factors) +
         std::string(sends_rest(point) ? kThenRest : "");
}

// Takes the same from the front of a text.
bool take_factors(std::string_view& text, Point& point) {
  text.remove_prefix(kRank.size());
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), point.rank);
  if (error != std::errc() || point.rank == 0) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  if (!text.starts_with(kOf)) return false;
  text.remove_prefix(kOf.size());
  const size_t comma = std::min(text.find(kThenRest), text.size());
  const auto kind = value_kind(text.substr(0, comma));
  if (!kind) return false;
  point.factors = *kind;
  text.remove_prefix(std::min(comma + kThenRest.size(), text.size()));
  return true;
}

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
  return factors_text(point) + (sends_rest(point) ? rest_text(point) : "");
}

std::string text(Point point) {
  if (!sends_rest(point)) return factors_text(point);
  char percent[32] = "";
  if (point.density < 1) std::snprintf(percent, sizeof percent, "%g%% ", 100 * point.density);
  return factors_text(point) + percent + rest_text(point);
}

std::string text(const Shape& shape) {
  return std::to_string(shape.rows) + " x " + std::to_string(shape.columns);
}

std::optional<Point> point_of(double density, std::string_view values) {
  Point point{.density = density};
  if (values.starts_with(kRank)) {
    if (!take_factors(values, point)) return std::nullopt;
    if (values.empty()) return density == 0 ? std::optional(point) : std::nullopt;
  }
  point.by_row = values.ends_with(kByRow);
  if (point.by_row) values.remove_suffix(kByRow.size());
  const auto kind = value_kind(values);
  if (!kind) return std::nullopt;
  point.values = *kind;
  return point;
}

}  // namespace scant::codec
