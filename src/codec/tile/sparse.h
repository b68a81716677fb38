// Strips of which only some values are kept: a u64 of bits for each row of a tile says which, and
// the values follow row by row. Scales are of the kept values of a row of a tile. docs/packed.md is
// the grammar. Plain functions, any thread.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "codec/tile/tile.h"

namespace scant::codec {

// bf16, q8, q4.
[[nodiscard]] constexpr bool in_sparse_tiles(ValueKind kind) {
  return kind == ValueKind::bf16 || kind == ValueKind::q8 || kind == ValueKind::q4;
}
// Of the values of one row of a tile.
[[nodiscard]] constexpr uint64_t sparse_group_bytes(ValueKind kind, uint64_t kept) {
  return (kept * bits(kind) + 7) / 8;
}
// Of a strip's bits and scales; its values follow.
[[nodiscard]] constexpr uint64_t sparse_strip_head_bytes(ValueKind kind, uint64_t columns) {
  return sizeof(uint64_t) * kTileRows * tiles(columns) + scale_bytes(kind, columns);
}
[[nodiscard]] constexpr uint64_t sparse_strip_bytes_max(ValueKind kind, uint64_t columns) {
  return sparse_strip_head_bytes(kind, columns) + tiles(columns) * tile_code_bytes(kind);
}
// What stands behind all strips: where each begins, and where the last ends; then the bases.
[[nodiscard]] constexpr uint64_t sparse_table_bytes(ValueKind kind, uint64_t rows) {
  return align_up(sizeof(uint64_t) * (strips(rows) + 1), kTileAlign) + base_bytes(kind, rows);
}
// By how many values each row of each tile keeps.
[[nodiscard]] uint64_t sparse_strip_bytes(ValueKind kind, uint64_t columns,
                                          std::span<const uint8_t> kept_of_groups);

// Bits of one row, a word for each 64 columns: its `keep` largest magnitudes, of equal ones the
// first. Finite values.
void keep_largest(std::span<const float> row, size_t keep, std::span<uint64_t> words);

// As pack_strip(): `kept` has tiles(columns) words for each row. Appends to `out`. `entries` grows
// by the number of kept values. Gives the base; 0 for bf16.
uint16_t pack_sparse_strip(ValueKind kind, const float* values, std::span<const uint64_t> kept,
                           size_t rows, size_t columns, std::vector<std::byte>& out,
                           uint64_t& entries);

// What is wrong with a strip, so that unpacking or multiplying it could leave its bytes; nothing
// where all is well. `entries` grows by the number of kept values.
[[nodiscard]] std::optional<std::string> sparse_strip_fault(ValueKind kind, Bytes strip,
                                                            size_t rows, size_t columns,
                                                            uint64_t& entries);
// Of a strip without fault. What is not kept becomes 0.
void unpack_sparse_strip(ValueKind kind, Bytes strip, uint16_t base, size_t first, size_t rows,
                         size_t columns, float* values);

}  // namespace scant::codec
