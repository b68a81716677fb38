#include "codec/tile/tile.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/little_endian.h"
#include "codec/quantise/rounding.h"
#include "codec/tile/row_codes.h"

namespace scant::codec {
namespace {

constexpr size_t kChunkTiles = kRowChunk / kTileColumns;

void put_code(ValueKind kind, std::byte* tile, uint32_t row, uint32_t column, uint8_t code) {
  const CodePlace place = code_place(kind, row, column);
  const unsigned low = kind == ValueKind::q3 ? code & 3U : code;
  tile[place.byte] |= static_cast<std::byte>(low << place.bit);
  if (kind == ValueKind::q3)
    tile[place.sign_byte] |= static_cast<std::byte>((code >> 2U) << place.sign_bit);
}

uint8_t get_code(ValueKind kind, const std::byte* tile, uint32_t row, uint32_t column) {
  const CodePlace place = code_place(kind, row, column);
  const unsigned width = kind == ValueKind::q3 ? 2 : bits(kind);
  unsigned code = std::to_integer<unsigned>(tile[place.byte]) >> place.bit & ((1U << width) - 1);
  if (kind == ValueKind::q3)
    code |= (std::to_integer<unsigned>(tile[place.sign_byte]) >> place.sign_bit & 1U) << 2U;
  return static_cast<uint8_t>(code);
}

}  // namespace

std::optional<NotFinite> find_not_finite(const float* values, size_t rows, size_t columns) {
  for (size_t i = 0; i < rows * columns; ++i) {
    if (!is_finite(values[i])) return NotFinite{.row = i / columns, .column = i % columns};
  }
  return std::nullopt;
}

uint16_t pack_strip(ValueKind kind, float* values, size_t rows, size_t columns, MutableBytes out) {
  SCANT_CHECK(quantised(kind) && in_tiles(kind) && rows <= kTileRows);
  SCANT_CHECK(out.size() == strip_bytes(kind, columns));
  std::ranges::fill(out, std::byte{0});
  uint32_t most = 0;
  for (size_t i = 0; i < rows * columns; ++i) most = std::max(most, magnitude_bits(values[i]));
  const auto base = static_cast<uint16_t>(scale_base(kind, most));
  std::byte* const codes = out.data() + scale_bytes(kind, columns);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t at = 0; at < columns; at += kRowChunk) {
      const size_t n = std::min(kRowChunk, columns - at);
      std::array<uint8_t, kChunkTiles> scales{};
      std::array<uint8_t, kRowChunk> row_codes{};
      row_to_codes(kind, values + row * columns + at, n, base, scales.data(), row_codes.data());
      for (size_t i = 0; i < tiles(n); ++i)
        out[(at / kTileColumns + i) * kTileRows + row] = static_cast<std::byte>(scales[i]);
      for (size_t i = 0; i < n; ++i) {
        std::byte* const tile = codes + (at + i) / kTileColumns * tile_code_bytes(kind);
        put_code(kind, tile, static_cast<uint32_t>(row),
                 static_cast<uint32_t>((at + i) % kTileColumns), row_codes[i]);
      }
    }
  }
  return base;
}

void pack_strip16(const uint16_t* values, size_t rows, size_t columns, MutableBytes out) {
  SCANT_CHECK(rows <= kTileRows && out.size() == strip_bytes(ValueKind::bf16, columns));
  std::ranges::fill(out, std::byte{0});
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < columns; ++i) {
      const CodePlace place = code_place(ValueKind::bf16, static_cast<uint32_t>(row),
                                         static_cast<uint32_t>(i % kTileColumns));
      const size_t tile = i / kTileColumns * tile_code_bytes(ValueKind::bf16);
      base::store_little(out.data() + tile + place.byte, values[row * columns + i]);
    }
  }
}

void unpack_strip(ValueKind kind, Bytes strip, uint16_t base, size_t first, size_t rows,
                  size_t columns, float* values, const Kernels& by) {
  SCANT_CHECK(quantised(kind) && in_tiles(kind) && first + rows <= kTileRows);
  SCANT_CHECK(strip.size() == strip_bytes(kind, columns));
  const std::byte* const codes = strip.data() + scale_bytes(kind, columns);
  for (size_t row = first; row < first + rows; ++row) {
    for (size_t at = 0; at < columns; at += kRowChunk) {
      const size_t n = std::min(kRowChunk, columns - at);
      std::array<uint8_t, kChunkTiles> scales{};
      std::array<uint8_t, kRowChunk> row_codes{};
      for (size_t i = 0; i < tiles(n); ++i) {
        const std::byte scale = strip[(at / kTileColumns + i) * kTileRows + row];
        scales[i] = std::to_integer<uint8_t>(scale);
      }
      for (size_t i = 0; i < n; ++i) {
        const std::byte* const tile = codes + (at + i) / kTileColumns * tile_code_bytes(kind);
        row_codes[i] = get_code(kind, tile, static_cast<uint32_t>(row),
                                static_cast<uint32_t>((at + i) % kTileColumns));
      }
      row_from_codes(kind, scales.data(), row_codes.data(), n, base,
                     values + (row - first) * columns + at, by);
    }
  }
}

void unpack_strip16(Bytes strip, size_t first, size_t rows, size_t columns, uint16_t* values) {
  SCANT_CHECK(first + rows <= kTileRows && strip.size() == strip_bytes(ValueKind::bf16, columns));
  for (size_t row = first; row < first + rows; ++row) {
    for (size_t i = 0; i < columns; ++i) {
      const CodePlace place = code_place(ValueKind::bf16, static_cast<uint32_t>(row),
                                         static_cast<uint32_t>(i % kTileColumns));
      const size_t tile = i / kTileColumns * tile_code_bytes(ValueKind::bf16);
      values[(row - first) * columns + i] =
          base::load_little<uint16_t>(strip.data() + tile + place.byte);
    }
  }
}

}  // namespace scant::codec
