// Scalars of the products' arithmetic that all implementations share: docs/serve.md, "Products".
// Pure functions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "codec/quantise/rounding.h"

namespace scant::serve {

inline constexpr float kCodeMost = 127.0F;
// A group whose largest activation is smaller counts as zero: 127 over it must stay finite.
inline constexpr float kGroupLeast = 0x1p-100F;

struct GroupCodes {
  float scale = 0;
  float inverse = 0;  // what activations are multiplied by; 0: all codes are 0
};
// Of a group whose largest magnitude has these bits.
[[nodiscard]] inline GroupCodes group_codes(uint32_t magnitude_max) {
  if (magnitude_max >= codec::kInfinityBits) return {std::numeric_limits<float>::quiet_NaN(), 0};
  const auto most = std::bit_cast<float>(magnitude_max);
  if (most < kGroupLeast) return {};
  return {most / kCodeMost, kCodeMost / most};
}

[[nodiscard]] constexpr float tile_scale(uint32_t base, uint8_t scale) {
  return scale == 0 ? 0.0F : codec::scale_value(base + scale);
}

// Products of bf16 take denormals for zero, and return zero for them.
[[nodiscard]] inline float flush(float value) {
  return codec::magnitude_bits(value) < 0x00800000U ? std::copysign(0.0F, value) : value;
}

// flush(fma(a, b, sum)), where a result counts as denormal if it is so before its exponent is
// limited: what would be rounded up to the smallest normal number is zero, too.
[[nodiscard]] inline float flushed_fma(float a, float b, float sum) {
  const float result = std::fma(a, b, sum);
  constexpr float kLeast = 0x1p-126F;
  if (std::abs(result) != kLeast) return flush(result);
  const float scaled = std::fma(a * 0x1p30F, b * 0x1p30F, sum * 0x1p60F);
  return std::abs(scaled) < kLeast * 0x1p60F ? std::copysign(0.0F, result) : result;
}

}  // namespace scant::serve
