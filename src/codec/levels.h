// Levels of the quantised kinds: the magnitudes that a code can mean, in units of its group's
// scale. docs/record.md prints the same table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/point.h"

namespace scant::codec {

// Placeholder: to be fitted.
inline constexpr std::array<uint8_t, 8> kLevels4 = {6, 18, 31, 44, 59, 76, 97, 127};
inline constexpr std::array<uint8_t, 4> kLevels3 = {14, 44, 78, 125};
inline constexpr std::array<uint8_t, 2> kLevels2 = {36, 120};
inline constexpr std::array<uint8_t, 1> kLevels1 = {64};

[[nodiscard]] constexpr std::span<const uint8_t> levels(ValueKind kind) {
  switch (kind) {
    case ValueKind::q4:
      return kLevels4;
    case ValueKind::q3:
      return kLevels3;
    case ValueKind::q2:
      return kLevels2;
    case ValueKind::q1:
      return kLevels1;
    default:
      return {};
  }
}

}  // namespace scant::codec
