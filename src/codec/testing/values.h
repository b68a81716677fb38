// Test support: values of every kind in which kernels or formulas could go wrong. Pure functions.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "codec/kernels/kernels.h"

namespace scant::codec {

inline constexpr uint64_t kSeed = 20260404;

// Families of values in which implementations or formulas could go wrong.
enum class Family {
  normal,
  heavy_tail,
  denormal,
  tiny,
  huge,
  zero,
  repeated,
  dyadic,
  lone,
  wide,
  nonfinite
};
inline constexpr Family kFinite[] = {
    Family::normal, Family::heavy_tail, Family::denormal, Family::tiny, Family::huge,
    Family::zero,   Family::repeated,   Family::dyadic,   Family::lone, Family::wide};

inline float gaussian(base::Rng& rng) {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - rng.uniform()));
  return static_cast<float>(radius * std::cos(6.283185307179586 * rng.uniform()));
}

inline float draw_value(base::Rng& rng, Family family) {
  const float sign = rng.chance(0.5) ? 1.0f : -1.0f;
  switch (family) {
    case Family::normal:
      return 0.01f * gaussian(rng);
    case Family::heavy_tail:
      return sign * static_cast<float>(std::pow(1.0 - rng.uniform(), -1.5)) * 1e-4f;
    case Family::denormal:
      return std::bit_cast<float>(static_cast<uint32_t>(rng.next()) & 0x80FFFFFFu);
    case Family::tiny:  // around the smallest scale, each group smaller than the one before
      return sign * (0.3f + 0.7f * static_cast<float>(rng.uniform())) * 0x1p-112f;
    case Family::huge:
      return sign * static_cast<float>(3.0e38 + 0.4e38 * rng.uniform());
    case Family::zero:
      return sign * 0.0f;
    case Family::repeated:
      return sign * 0.0371f;
    case Family::dyadic:
      return sign * static_cast<float>(rng.below(256)) * 0x1p-8f;
    case Family::lone:
      return rng.chance(0.01) ? sign * 1000.0f : sign * 1e-3f * static_cast<float>(rng.uniform());
    case Family::wide: {  // any finite bits
      const auto bits = static_cast<uint32_t>(rng.next());
      const float value = std::bit_cast<float>(bits);
      return is_finite(value) ? value : 1.0f;
    }
    case Family::nonfinite:
      break;
  }
  constexpr uint32_t kStrange[] = {0x7F800000u, 0xFF800000u, 0x7FC00000u, 0xFF812345u,
                                   0x7F7FFFFFu, 0x477FE000u, 0x477FF000u, 0xC77FEFFFu};
  return rng.chance(0.1) ? std::bit_cast<float>(kStrange[rng.below(8)]) : gaussian(rng);
}

inline std::vector<float> draw_values(Family family, size_t n, uint64_t stream) {
  base::Rng rng(kSeed, stream * 16 + static_cast<uint64_t>(family));
  std::vector<float> values(n);
  for (float& value : values) value = draw_value(rng, family);
  for (size_t i = 0; family == Family::tiny && i < n; ++i) {
    values[i] = std::ldexp(values[i], -static_cast<int>(i / kGroupElements % 16));
  }
  return values;
}

}  // namespace scant::codec
