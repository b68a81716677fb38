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
// Bytes of the kept values of one row of a tile.
[[nodiscard]] constexpr uint64_t sparse_group_bytes(ValueKind kind, uint64_t kept) {
  return (kept * bits(kind) + 7) / 8;
}
// Bytes of a strip's bits and scales; the values follow.
[[nodiscard]] constexpr uint64_t sparse_strip_head_bytes(ValueKind kind, uint64_t columns) {
  return sizeof(uint64_t) * kTileRows * tiles(columns) + scale_bytes(kind, columns);
}
[[nodiscard]] constexpr uint64_t sparse_strip_bytes_max(ValueKind kind, uint64_t columns) {
  return sparse_strip_head_bytes(kind, columns) + tiles(columns) * tile_code_bytes(kind);
}
// Bytes of the tables, which follow all strips: where each begins, where the last ends, bases.
[[nodiscard]] constexpr uint64_t sparse_table_bytes(ValueKind kind, uint64_t rows) {
  return base::align_up(sizeof(uint64_t) * (strips(rows) + 1), kTileAlign) + base_bytes(kind, rows);
}
// `kept_of_groups`: how many values each row of each tile keeps.
[[nodiscard]] uint64_t sparse_strip_bytes(ValueKind kind, uint64_t columns,
                                          std::span<const uint8_t> kept_of_groups);

// Sets the bits of one row's `keep` largest magnitudes, a word for each 64 columns. Of equal ones
// the first are kept. Values are finite.
void keep_largest(std::span<const float> row, size_t keep, std::span<uint64_t> words);

// Like pack_strip(), but appends to `out`. `kept` has tiles(columns) words for each row. `entries`
// grows by the number of kept values. Returns the base; 0 for bf16.
uint16_t pack_sparse_strip(ValueKind kind, const float* values, std::span<const uint64_t> kept,
                           size_t rows, size_t columns, std::vector<std::byte>& out,
                           uint64_t& entries);

// The fault by which unpacking or multiplying a strip would read beyond its bytes; nothing if there
// is none. `entries` grows by the number of kept values.
[[nodiscard]] std::optional<std::string> sparse_strip_fault(ValueKind kind, Bytes strip,
                                                            size_t rows, size_t columns,
                                                            uint64_t& entries);
// For a strip without fault. Values that are not kept become 0.
void unpack_sparse_strip(ValueKind kind, Bytes strip, uint16_t base, size_t first, size_t rows,
                         size_t columns, float* values, const Kernels& by = kernels());

}  // namespace scant::codec
