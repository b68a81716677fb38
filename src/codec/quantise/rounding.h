// Scalars that kernels and reference share: random draws for stochastic rounding, conversions to 16
// bits, and the scale of a group. Everything is a pure function of its arguments.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace scant::codec {

// The draw for element i of a block depends on the block's key and i alone, whatever thread asks.
// One hash serves two elements, 32 apart in their group of 64, with 16 bits each.
struct DrawKey {
  uint32_t add = 0;
  uint32_t flip = 0;
};
[[nodiscard]] constexpr uint32_t draw_word(DrawKey key, uint32_t counter) {
  uint32_t x = counter * 0x9E3779B9u + key.add;  // two rounds of a multiply-xorshift hash
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x = ((x ^ (x >> 15)) ^ key.flip) * 0x846CA68Bu;
  return x ^ (x >> 16);
}
[[nodiscard]] constexpr uint32_t draw16(DrawKey key, size_t element) {
  const auto group = static_cast<uint32_t>(element / 64);
  const auto within = static_cast<uint32_t>(element % 64);
  const uint32_t word = draw_word(key, group * 32 + within % 32);
  return within < 32 ? word & 0xFFFFu : word >> 16;
}
// In (0, 1), a multiple of 2^-17.
[[nodiscard]] constexpr float draw_unit(DrawKey key, size_t element) {
  return (static_cast<float>(draw16(key, element)) + 0.5f) * 0x1p-16f;
}
// In [-1/2, 1/2], what is added before rounding to the nearest: the same draws, centred. The second
// element of a word keeps the first one's bits below its own.
[[nodiscard]] constexpr float draw_offset(DrawKey key, size_t element) {
  const auto group = static_cast<uint32_t>(element / 64);
  const auto within = static_cast<uint32_t>(element % 64);
  const uint32_t word = draw_word(key, group * 32 + within % 32);
  const uint32_t bits = within < 32 ? (word << 16) | 0x8000u : word;
  return static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-32f;
}

[[nodiscard]] constexpr uint32_t magnitude_bits(float value) {
  return std::bit_cast<uint32_t>(value) & 0x7FFFFFFFu;
}
inline constexpr uint32_t kInfinityBits = 0x7F800000u;
[[nodiscard]] constexpr bool is_finite(float value) {
  return magnitude_bits(value) < kInfinityBits;
}
// Of finite values; stops at the largest float.
[[nodiscard]] constexpr float finite_sum(float a, float b) {
  constexpr float kMost = 3.40282347e38f;
  const float sum = a + b;
  return sum > kMost ? kMost : sum < -kMost ? -kMost : sum;
}

// bf16, nearest even; a NaN stays one, and a finite value stays finite (it saturates).
[[nodiscard]] constexpr uint16_t bf16_nearest(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const uint32_t sign = bits & 0x80000000u;
  if (magnitude >= kInfinityBits) {
    const uint32_t quiet = magnitude > kInfinityBits ? 0x00400000u : 0u;
    return static_cast<uint16_t>((bits | quiet) >> 16);
  }
  uint32_t rounded = magnitude + 0x7FFFu + ((magnitude >> 16) & 1u);
  if (rounded >= kInfinityBits) rounded = 0x7F7F0000u;
  return static_cast<uint16_t>((sign | rounded) >> 16);
}
[[nodiscard]] constexpr float bf16_widen(uint16_t half) {
  return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}
// Up or down with the probability that keeps the mean; `draw` has 16 random bits. Finite only.
[[nodiscard]] constexpr uint16_t bf16_stochastic(float value, uint32_t draw) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits & 0x7FFFFFFFu) + draw;
  if (rounded >= kInfinityBits) return static_cast<uint16_t>(bits >> 16);
  return static_cast<uint16_t>(((bits & 0x80000000u) | rounded) >> 16);
}

// IEEE binary16, nearest even; a finite value saturates at 65504.
[[nodiscard]] uint16_t f16_nearest(float value);
[[nodiscard]] float f16_widen(uint16_t half);

// The scale of a group: an f32 with three bits of mantissa, named by its upper twelve bits.
inline constexpr uint32_t kScaleShift = 20;
inline constexpr uint32_t kScaleBitsMax = 247u << 3;  // 2^120: the largest level times it is finite
// What remains of a positive finite value, nearest; 0 when it is too small for a normal number.
[[nodiscard]] constexpr uint32_t scale_bits_nearest(float value) {
  const uint32_t rounded = (std::bit_cast<uint32_t>(value) + (1u << 19)) >> kScaleShift;
  return rounded < 8 ? 0 : (rounded > kScaleBitsMax ? kScaleBitsMax : rounded);
}
[[nodiscard]] constexpr uint32_t scale_bits_up(float value) {
  const uint32_t rounded = (std::bit_cast<uint32_t>(value) + 0xFFFFFu) >> kScaleShift;
  if (rounded == 0) return 0;
  return rounded < 8 ? 8 : (rounded > kScaleBitsMax ? kScaleBitsMax : rounded);
}
[[nodiscard]] constexpr float scale_value(uint32_t bits) {
  return std::bit_cast<float>(bits << kScaleShift);
}

}  // namespace scant::codec
