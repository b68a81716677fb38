// The inner loops of the codec, one set for each kind of CPU this build knows. The first of
// kernel_targets() is used; tests hold every one that runs here equal to the last, "scalar", the
// readable reference, bit for bit. All expect the default floating-point environment. Sums over
// elements are taken in 16 lanes (element i in lane i mod 16), folded by halves at the end, so that
// every vector width gives the same bits.
#pragma once

#include <span>

#include "codec/point.h"
#include "codec/quantise/rounding.h"
#include "scant/base/types.h"

namespace scant::codec {

struct Accumulated {
  uint32_t magnitude_max = 0;  // bits of the largest magnitude; >= kInfinityBits: not finite
  float energy = 0;            // sum of squares
};
// Of each whole group of 64: its mean magnitude and the largest.
struct GroupMagnitudes {
  static constexpr size_t kMost = 64;
  alignas(32) float mean[kMost];
  alignas(32) float largest[kMost];
};
struct Selected {
  size_t count = 0;
  float energy = 0;  // of all elements, sent or not
};
// How codes are rounded: to the level that is nearest, or so that the mean is kept.
struct Rounding {
  bool stochastic = false;
  DrawKey key;
};

// What will be worked on next, as many elements as now, for the cache; null without. Half is
// fetched while the gradient is added, half while values are quantised: neither pass takes as long
// as fetching all of it.
struct Ahead {
  const float* gradient = nullptr;
  const std::byte* residual = nullptr;
  size_t residual_bytes = 0;  // of an element
};

// Values as a record holds them, from a group's first on. `ahead`: codes that will be needed next,
// as many bytes; may be null.
struct CodedValues {
  uint32_t base = 0;
  const uint8_t* scales = nullptr;
  const std::byte* codes = nullptr;
  const std::byte* ahead = nullptr;
};

// Rows of a matrix, `stride` floats apart.
struct Matrix {
  const float* values = nullptr;
  size_t stride = 0;
  size_t rows = 0;
  size_t columns = 0;
};
struct MatrixOut {
  float* values = nullptr;
  size_t stride = 0;
  size_t rows = 0;
  size_t columns = 0;
};
// The few columns of a right factor, each `stride` floats behind the one before, one number for
// each column of the matrix. A left factor has a row of `rank` numbers for each row of the matrix,
// without gaps.
struct Factor {
  const float* values = nullptr;
  size_t stride = 0;
  size_t rank = 0;
};
// Columns of f64, `stride` numbers apart: a multiple of 16, zeros behind the last row.
struct Columns {
  const double* values = nullptr;
  size_t stride = 0;
  size_t count = 0;
};
struct FactorOut {
  float* values = nullptr;
  size_t stride = 0;
  size_t rank = 0;
};

struct Kernels {
  const char* name;  // "avx512", "avx2", "neon", "scalar"

  // work = gradient + decay * work. A null gradient leaves work as it is.
  Accumulated (*accumulate)(const float* gradient, float* work, size_t n, float decay);
  // The same for n <= 4096; also finds the magnitudes of the groups.
  Accumulated (*accumulate_groups)(const float* gradient, float* work, size_t n, float decay,
                                   GroupMagnitudes& groups, Ahead ahead);
  // The same after load_i8().
  Accumulated (*accumulate_groups_i8)(const float* gradient, const int8_t* stored,
                                      const uint16_t* scales, float* work, size_t n, float decay,
                                      GroupMagnitudes& groups, Ahead ahead);

  // The same, and lists every element whose magnitude is not below `threshold` (> 0), NaN
  // included, in ascending order. n <= 65536; both lists have room for n + 16.
  Selected (*select)(const float* gradient, float* work, size_t n, float decay, float threshold,
                     uint16_t* positions, float* values);

  // Quantises quads * 256 values, q8 to q1, as docs/record.md writes them: one byte of `scales` a
  // group, `codes` 32 * bits bytes a quad. work becomes what is left: work - decoded. All values
  // are finite and a scale that `base` puts out of reach becomes zero. `groups`: their magnitudes,
  // where known; null otherwise.
  void (*quantise)(ValueKind kind, Rounding rounding, float* work, size_t quads, uint32_t base,
                   const GroupMagnitudes* groups, uint8_t* scales, std::byte* codes, Ahead ahead);
  // The same for what stands behind the last quad, n < 256, the block's from `first` on.
  void (*quantise_rest)(ValueKind kind, Rounding rounding, size_t first, float* work, size_t n,
                        uint32_t base, uint8_t* scales, std::byte* codes);
  // sum[i] += decoded[i], for `count` sources one after the other.
  void (*add_quads)(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,
                    float* sum);
  // out[i] = weight * (((0 + decoded[i] of the first) + ...)), of eight sources at most, past the
  // cache where the CPU can; see finish().
  void (*mean_quads)(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,
                     float weight, float* out);
  // out[i] = decoded[i], of any n <= 65536, what stands behind the last quad included. `out` has
  // room for n + 31.
  void (*decode)(ValueKind kind, const CodedValues& source, size_t n, float* out);

  // 16-bit values. work becomes work - widened, 0 where that is not finite.
  void (*narrow)(ValueKind kind, float* work, size_t n, std::byte* values);           // bf16, f16
  void (*add_values)(ValueKind kind, const std::byte* values, size_t n, float* sum);  // f32 too

  // Residuals. Groups of 64, the last may be shorter. `scales` are bf16 bits.
  void (*store_bf16)(const float* work, size_t n, DrawKey key, uint16_t* stored);
  void (*load_bf16)(const uint16_t* stored, size_t n, float* work);
  void (*store_i8)(const float* work, size_t n, DrawKey key, int8_t* stored, uint16_t* scales);
  void (*load_i8)(const int8_t* stored, const uint16_t* scales, size_t n, float* work);

  // out = weight * sum, past the cache where the CPU can. Then sum = 0. Other threads may look at
  // `out` after flush().
  void (*finish)(float* sum, size_t n, float weight, float* out);
  void (*flush)();

  // Skinny products, whose multiply-adds round once. Memory of one call lies apart.
  // left[i][k] += sum over j of a[i][j] * right[k][j]: in 16 lanes, as if zeros filled the last
  // ones of a row.
  void (*times_right)(const Matrix& a, const Factor& right, float* left);
  // First a becomes a + decay * kept, whose rows are as far apart as a's; then the same. The rank
  // is above 0.
  void (*add_times_right)(const MatrixOut& a, const float* kept, float decay, const Factor& right,
                          float* left);
  // right[k][j] += sum over i of a[i][j] * left[i][k], row after row.
  void (*times_left)(const Matrix& a, const float* left, const FactorOut& right);
  // out[i][j] = from[i][j] + sum over k of left[i][k] * right[k][j], column after column of the
  // factors. Rows of `from` are as far apart as those of `out`; both may be the same memory.
  void (*add_product)(const float* left, const Factor& right, const float* from,
                      const MatrixOut& out);

  // For a basis. sums[k] = sum over i of column[k][i] * by[i], in 16 lanes.
  void (*column_products)(const Columns& columns, const double* by, double* sums);
  // from[i] -= sum over k of times[k] * column[k][i], column after column.
  void (*take_columns)(const Columns& columns, const double* times, double* from);
};

// What this CPU can run, fastest first; the last is "scalar".
[[nodiscard]] std::span<const Kernels> kernel_targets();
[[nodiscard]] inline const Kernels& kernels() { return kernel_targets().front(); }
extern const Kernels kScalarKernels;

[[nodiscard]] constexpr size_t rest_bytes(ValueKind kind, size_t n) {
  return (n * bits(kind) + 7) / 8;
}

// The base that reaches every scale of values up to this magnitude (bits of a finite float).
[[nodiscard]] uint32_t scale_base(ValueKind kind, uint32_t magnitude_max);

}  // namespace scant::codec
