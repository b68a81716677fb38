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

}  // namespace scant::codec
