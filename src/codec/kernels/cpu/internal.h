// What the kernels' implementations share: the arithmetic of one group as plain functions, which
// also define what vectors compute, and the reference with an offset, for what is left behind whole
// vectors. Internal to kernels_*.cc and their tests.
#pragma once

#include <algorithm>

#include "codec/kernels/kernels.h"
#include "codec/quantise/levels.h"

namespace scant::codec {

inline constexpr size_t kSumLanes = 16;
// A smaller guess of a scale makes the group zero: units over a scale must stay finite, also when a
// fit makes it smaller.
inline constexpr float kScaleMin = 0x1p-120f;
inline constexpr float kByteScaleMin = 0x1p-100f;   // residuals: a smaller maximum is kept as zero
inline constexpr uint32_t kByteScaleMost = 0x7BFF;  // bf16: the largest that 128 leaves finite

// Magnitudes are compared with levels in whole units, so many of a level's one that thresholds
// between levels are integers and the highest level still fits a byte.
[[nodiscard]] constexpr int units(ValueKind kind) {
  if (levels(kind).size() < 2) return 2;
  int result = 2;
  while (2 * result * int{levels(kind).back()} <= 255) result *= 2;
  return result;
}
// Halfway between levels m and m + 1.
[[nodiscard]] constexpr int threshold_above(ValueKind kind, size_t m) {
  return (int{levels(kind)[m]} + int{levels(kind)[m + 1]}) * units(kind) / 2;
}

// x + 8 to x, then + 4, + 2, + 1.
template <typename T>
[[nodiscard]] T fold(T* lanes) {
  for (size_t half = kSumLanes / 2; half != 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

struct GroupScale {
  uint8_t code = 0;  // 0: the group decodes to zero
  float scale = 0;
  float inverse = 0;  // what magnitudes are multiplied by before levels are compared
};

// Names a scale by its distance from `base`: 0 when out of reach below, 255 at most.
[[nodiscard]] constexpr uint8_t scale_code(uint32_t scale_bits, uint32_t base) {
  return static_cast<uint8_t>(scale_bits > base ? std::min(scale_bits - base, 255u) : 0u);
}

// bf16 bits of the scale of 64 residuals in a byte each, rounded up; 0: all are zero.
[[nodiscard]] constexpr uint16_t byte_scale(uint32_t magnitude_max) {
  const auto max = std::bit_cast<float>(magnitude_max);
  if (max < kByteScaleMin) return 0;
  const uint32_t up = (std::bit_cast<uint32_t>(max / 127.0f) + 0xFFFFu) >> 16;
  return static_cast<uint16_t>(std::min(up, kByteScaleMost));
}

// kScalarKernels' functions from element `first` of a block on; `first` is a multiple of 64 for
// those that draw.
namespace reference {
struct Sums {
  float lanes[kSumLanes] = {};
  uint32_t magnitude_max = 0;
};
void accumulate(const float* gradient, float* work, size_t first, size_t n, float decay,
                Sums& sums);
size_t select(const float* gradient, float* work, size_t first, size_t n, float decay,
              float threshold, uint16_t* positions, float* values, Sums& sums);
void narrow(ValueKind kind, float* work, size_t n, std::byte* values);
void add_values(ValueKind kind, const std::byte* values, size_t n, float* sum);
void store_bf16(const float* work, size_t first, size_t n, DrawKey key, uint16_t* stored);
void load_bf16(const uint16_t* stored, size_t n, float* work);
void store_i8(const float* work, size_t first, size_t n, DrawKey key, int8_t* stored,
              uint16_t* scales);
void load_i8(const int8_t* stored, const uint16_t* scales, size_t n, float* work);
void finish(float* sum, size_t n, float weight, float* out);
void times_right(const Matrix& a, const Factor& right, float* left);
void add_times_right(const MatrixOut& a, const float* kept, float decay, const Factor& right,
                     float* left);
void times_left(const Matrix& a, const float* left, const FactorOut& right);
void add_product(const float* left, const Factor& right, const float* from, const MatrixOut& out);
void column_products(const Columns& columns, const double* by, double* sums);
void take_columns(const Columns& columns, const double* times, double* from);
}  // namespace reference

}  // namespace scant::codec
