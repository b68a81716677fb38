// Weights in tiles of 16 rows and 64 columns, in the order in which kernels read them. Levels,
// groups and scales are those of a record; only the order differs. A strip is the tiles of 16 rows,
// one after the other along the columns. docs/packed.md is the grammar. Plain
// functions, any thread.
#pragma once

#include <optional>
#include <span>

#include "base/aligned.h"
#include "codec/kernels/kernels.h"
#include "codec/point.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::codec {

inline constexpr size_t kTileRows = 16;
inline constexpr size_t kTileColumns = 64;
inline constexpr size_t kTileAlign = 64;         // of the pieces of a strip: a cache line
inline constexpr uint64_t kScaleBaseTop = 1792;  // with any scale's byte the scale stays finite

// bf16, q8, q4, q3, q2.
[[nodiscard]] constexpr bool in_tiles(ValueKind kind) {
  return kind == ValueKind::bf16 || (kind >= ValueKind::q8 && kind <= ValueKind::q2);
}

[[nodiscard]] constexpr uint64_t strips(uint64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}
[[nodiscard]] constexpr uint64_t tiles(uint64_t columns) {
  return (columns + kTileColumns - 1) / kTileColumns;
}
// Bytes of one tile's values, without scales.
[[nodiscard]] constexpr uint64_t tile_code_bytes(ValueKind kind) {
  return kTileRows * kTileColumns * bits(kind) / 8;
}
// Bytes of the scales of a strip, up to the end of a cache line.
[[nodiscard]] constexpr uint64_t scale_bytes(ValueKind kind, uint64_t columns) {
  return quantised(kind) ? base::align_up(kTileRows * tiles(columns), kTileAlign) : 0;
}
[[nodiscard]] constexpr uint64_t strip_bytes(ValueKind kind, uint64_t columns) {
  return scale_bytes(kind, columns) + tiles(columns) * tile_code_bytes(kind);
}
// Bytes of the strips' bases, which follow all strips.
[[nodiscard]] constexpr uint64_t base_bytes(ValueKind kind, uint64_t rows) {
  return quantised(kind) ? base::align_up(sizeof(uint16_t) * strips(rows), kTileAlign) : 0;
}
[[nodiscard]] constexpr uint64_t tiled_bytes(ValueKind kind, Shape shape) {
  return base_bytes(kind, shape.rows) + strips(shape.rows) * strip_bytes(kind, shape.columns);
}

// The place of the code of a row and column in a tile: byte and lowest bit. For q3 this is the
// place of the low two bits; the sign is bit `sign_bit` of byte `sign_byte`.
struct CodePlace {
  uint32_t byte = 0;
  uint32_t bit = 0;
  uint32_t sign_byte = 0;
  uint32_t sign_bit = 0;
};
[[nodiscard]] constexpr CodePlace code_place(ValueKind kind, uint32_t row, uint32_t column) {
  const uint32_t quad = column / 4;
  const uint32_t code = 4 * row + column % 4;
  switch (kind) {
    case ValueKind::bf16:  // pairs of 16 bits
      return {64 * (column / 2) + 4 * row + 2 * (column % 2), 0};
    case ValueKind::q8:
      return {64 * quad + code, 0};
    case ValueKind::q4:
      return {64 * (quad / 2) + code, 4 * (quad % 2)};
    case ValueKind::q3:
      return {64 * (quad / 4) + code, 2 * (quad % 4), 256 + 8 * quad + code / 8, code % 8};
    default:  // q2
      return {64 * (quad / 4) + code, 2 * (quad % 4)};
  }
}

// The place of a value that is NaN or infinite.
struct NotFinite {
  uint64_t row = 0;
  uint64_t column = 0;
};
// The first one in `rows` rows without gaps.
[[nodiscard]] std::optional<NotFinite> find_not_finite(const float* values, size_t rows,
                                                       size_t columns);

// Packs up to 16 rows of finite values, without gaps, into a strip, `out`, of strip_bytes().
// Returns the strip's base. The kind is quantised. `values` becomes what rounding leaves.
uint16_t pack_strip(ValueKind kind, float* values, size_t rows, size_t columns, MutableBytes out);
// Packs 16-bit values into a strip of bf16, unchanged.
void pack_strip16(const uint16_t* values, size_t rows, size_t columns, MutableBytes out);

// Unpacks `rows` rows of a strip, from its row `first` on.
void unpack_strip(ValueKind kind, Bytes strip, uint16_t base, size_t first, size_t rows,
                  size_t columns, float* values, const Kernels& by = kernels());
void unpack_strip16(Bytes strip, size_t first, size_t rows, size_t columns, uint16_t* values);

}  // namespace scant::codec
