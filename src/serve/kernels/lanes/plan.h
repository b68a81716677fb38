// What the implementations in vectors share: how much of a matrix is expanded at a time, where a
// worker's scratch holds it, and what their functions are called. Pure functions.
#pragma once

#include "serve/kernels/targets.h"

namespace scant::serve {

inline constexpr size_t kStripsMany = 8;
// Columns of a piece. One strip's piece, and the same columns of so many panels, stay in L1. With
// few tokens a short piece lets memory work while codes are multiplied.
inline constexpr size_t kColumnsFew = 128;
inline constexpr size_t kColumnsMany = 512;
inline constexpr size_t kPanelsAtOnce = 2;
// Rows of f32 and f16 that are multiplied with all tokens before the next ones.
inline constexpr size_t kRowBlockBytes = 256 << 10;
// Tiles are one stream of bytes: so far ahead of it, to L1 or to L2. What is better for a kind was
// measured on a Zen 4: q4 read at 0.82 of its speed and reads at 1, sparse bf16 at 0.75 and 0.93.
// Rows are asked for a whole strip ahead.
inline constexpr size_t kTileDistanceBytes = 4096;
inline constexpr size_t kFarDistanceBytes = 32 << 10;

// Bytes from the beginning of a worker's scratch.
struct Plan {
  size_t strips = 0;  // that are expanded at a time
  size_t groups = 0;  // of a piece; of pairs: blocks
  size_t quads = 0;   // of a group
  size_t elements = 0;
  size_t scales = 0;
  size_t leasts = 0;
  size_t sums = 0;
  size_t rows = 0;  // a last strip of fewer than 16 rows, filled up
  size_t edge = 0;  // the last columns of rows that end within a block
  size_t bytes = 0;
};
[[nodiscard]] Plan plan_of(const Tensor& weights, size_t tokens);
[[nodiscard]] size_t lanes_scratch_bytes(const Tensor& weights, size_t tokens);
[[nodiscard]] Form lanes_form(TensorKind kind, size_t tokens);
[[nodiscard]] bool of_pairs(TensorKind kind);

[[nodiscard]] Bytes part_bytes(const Part& part);
// Sixteen rows of a matrix that is row by row, `stride` bytes from each to the next: where they
// lie, or a copy filled up with zeros.
[[nodiscard]] const std::byte* sixteen_rows(const Tensor& weights, uint64_t strip, size_t stride,
                                            std::byte* copy);

// Where each element of a run of eight goes by which of them are kept, in bytes for a shuffle; 128:
// a zero.
template <size_t kBytes>
struct Places {
  alignas(16) uint8_t of[256][8 * kBytes];
  constexpr Places() : of() {
    for (size_t bits = 0; bits < 256; ++bits) {
      size_t kept = 0;
      for (size_t i = 0; i < 8; ++i) {
        const bool keep = (bits >> i & 1U) != 0;
        for (size_t k = 0; k < kBytes; ++k)
          of[bits][i * kBytes + k] = static_cast<uint8_t>(keep ? kept * kBytes + k : 128);
        kept += keep ? 1 : 0;
      }
    }
  }
};
inline constexpr Places<2> kPlaces16;
inline constexpr Places<1> kPlaces8;

void begin_nothing(size_t tokens);
void end_nothing();

// Adds the products of a piece of a strip and the tokens of a panel to sums[token][row].
struct Piece {
  const std::byte* levels = nullptr;
  const float* scales = nullptr;
  const float* leasts = nullptr;  // null: the kind has none
  size_t group_first = 0;
  size_t groups = 0;
  size_t quads = 0;
};
using AddPanel = void (*)(const Piece& piece, const Operand& operand, size_t panel, float* sums);

#define SCANT_DECLARE_PRODUCTS(SET)                                                      \
  namespace SET {                                                                        \
  void fill(const Operand& operand, size_t panel);                                       \
  void add_panel(const Piece& piece, const Operand& operand, size_t panel, float* sums); \
  void multiply_codes(const Part& part, AddPanel add, size_t columns);                   \
  void multiply(const Part& part);                                                       \
  }
SCANT_DECLARE_PRODUCTS(neon)
SCANT_DECLARE_PRODUCTS(neondot)
SCANT_DECLARE_PRODUCTS(avx2)
SCANT_DECLARE_PRODUCTS(avx512)
SCANT_DECLARE_PRODUCTS(avx512vnni)
#undef SCANT_DECLARE_PRODUCTS
namespace avx512bf16 {
[[nodiscard]] Form form(TensorKind kind, size_t tokens);
[[nodiscard]] size_t scratch_bytes(const Tensor& weights, size_t tokens);
void multiply(const Part& part);
}  // namespace avx512bf16

}  // namespace scant::serve
