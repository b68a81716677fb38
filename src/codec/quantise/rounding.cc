#include "codec/quantise/rounding.h"

namespace scant::codec {

uint16_t f16_nearest(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  if (magnitude >= kInfinityBits) {
    const uint32_t payload = (magnitude >> 13) & 0x3FFu;
    const uint32_t quiet = magnitude > kInfinityBits ? 0x200u : 0u;
    return static_cast<uint16_t>(sign | 0x7C00u | payload | quiet);
  }
  constexpr uint32_t kNormalMin = 113u << 23;  // 2^-14
  if (magnitude < kNormalMin) {
    // Adding 0.5 leaves a multiple of 2^-24, the unit of subnormals, rounded to nearest even.
    const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(rounded) - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - (112u << 23);
  const uint32_t half = rounded >> 13;
  return static_cast<uint16_t>(sign | (half > 0x7BFFu ? 0x7BFFu : half));
}

float f16_widen(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1Fu;
  const uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  const uint32_t quiet = exponent == 31 && mantissa != 0 ? 0x400000u : 0u;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13) | quiet);
}

}  // namespace scant::codec
