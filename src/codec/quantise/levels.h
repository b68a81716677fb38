// Levels of the quantised kinds: the magnitudes that a code can mean, in units of its group's
// scale, and where the search for that scale starts. docs/record.md prints the same table.
//
// The levels are those of Lloyd and Max for a Gaussian, rounded to integers that lose less than
// 0.02 % of the energy; levels fitted to captured gradients (the least squared error over groups of
// 64, each with its best scale) were the same within 4 % of a level. A scale starts from the
// group's mean and largest magnitude. docs/decisions/quantiser.md has the figures.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/point.h"

namespace scant::codec {

inline constexpr std::array<uint8_t, 8> kLevels4 = {5, 17, 29, 43, 59, 75, 97, 127};
inline constexpr std::array<uint8_t, 4> kLevels3 = {7, 21, 39, 63};
inline constexpr std::array<uint8_t, 2> kLevels2 = {3, 10};
inline constexpr std::array<uint8_t, 1> kLevels1 = {1};

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

// First scale = of_mean * mean magnitude + of_max * largest magnitude.
struct ScaleStart {
  float of_mean = 0;
  float of_max = 0;
};
[[nodiscard]] constexpr ScaleStart scale_start(ValueKind kind) {
  switch (kind) {
    case ValueKind::q4:
      return {0.5f / 127, 0.8125f / 127};
    case ValueKind::q3:
      return {0.25f / 63, 0.75f / 63};
    case ValueKind::q2:
      return {1.0f / 10, 0.25f / 10};
    default:
      return {1.0f, 0.0f};
  }
}

// q2 and q3 fit the scale by least squares to the codes that the first one gives, and choose codes
// again with the fitted one. For q4 that would gain a twentieth of the little that is lost.
[[nodiscard]] constexpr bool fits_scale(ValueKind kind) {
  return kind == ValueKind::q2 || kind == ValueKind::q3;
}

}  // namespace scant::codec
