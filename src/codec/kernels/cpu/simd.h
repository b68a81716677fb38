// The vector kernels of one instruction set, declared for each set of which any build may contain
// code. cpu/simd.cc chooses among them; cpu/stream.cc,
// cpu/quantise.cc, cpu/decode.cc and cpu/products.cc define them.
#pragma once

#include "codec/kernels/kernels.h"

// NOLINTNEXTLINE: namespaces cannot be template arguments
#define SCANT_CODEC_DECLARE_KERNELS(TARGET)                                                     \
  namespace TARGET {                                                                            \
  Accumulated accumulate(const float* gradient, float* work, size_t n, float decay);            \
  Accumulated accumulate_groups(const float* gradient, float* work, size_t n, float decay,      \
                                GroupMagnitudes& groups, Ahead ahead);                          \
  Accumulated accumulate_groups_i8(const float* gradient, const int8_t* stored,                 \
                                   const uint16_t* scales, float* work, size_t n, float decay,  \
                                   GroupMagnitudes& groups, Ahead ahead);                       \
  Selected select(const float* gradient, float* work, size_t n, float decay, float threshold,   \
                  uint16_t* positions, float* values);                                          \
  void quantise(ValueKind kind, Rounding rounding, float* work, size_t quads, uint32_t base,    \
                const GroupMagnitudes* groups, uint8_t* scales, std::byte* codes, Ahead ahead); \
  void quantise_rest(ValueKind kind, Rounding rounding, size_t first, float* work, size_t n,    \
                     uint32_t base, uint8_t* scales, std::byte* codes);                         \
  void add_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,        \
                 float* sum);                                                                   \
  void mean_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,       \
                  float weight, float* out);                                                    \
  void decode(ValueKind kind, const CodedValues& source, size_t n, float* out);                 \
  void narrow(ValueKind kind, float* work, size_t n, std::byte* values);                        \
  void add_values(ValueKind kind, const std::byte* values, size_t n, float* sum);               \
  void store_bf16(const float* work, size_t n, DrawKey key, uint16_t* stored);                  \
  void load_bf16(const uint16_t* stored, size_t n, float* work);                                \
  void store_i8(const float* work, size_t n, DrawKey key, int8_t* stored, uint16_t* scales);    \
  void load_i8(const int8_t* stored, const uint16_t* scales, size_t n, float* work);            \
  void finish(float* sum, size_t n, float weight, float* out);                                  \
  void flush();                                                                                 \
  void times_right(const Matrix& a, const Factor& right, float* left);                          \
  void add_times_right(const MatrixOut& a, const float* kept, float decay, const Factor& right, \
                       float* left);                                                            \
  void times_left(const Matrix& a, const float* left, const FactorOut& right);                  \
  void add_product(const float* left, const Factor& right, const float* from,                   \
                   const MatrixOut& out);                                                       \
  void column_products(const Columns& columns, const double* by, double* sums);                 \
  void take_columns(const Columns& columns, const double* times, double* from);                 \
  }

namespace scant::codec {
SCANT_CODEC_DECLARE_KERNELS(N_AVX3)
SCANT_CODEC_DECLARE_KERNELS(N_AVX2)
SCANT_CODEC_DECLARE_KERNELS(N_NEON)
}  // namespace scant::codec
