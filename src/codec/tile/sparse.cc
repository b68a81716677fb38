#include "codec/tile/sparse.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "base/aligned.h"
#include "base/check.h"
#include "base/little_endian.h"
#include "codec/quantise/rounding.h"
#include "codec/tile/row_codes.h"

namespace scant::codec {
namespace {

constexpr size_t kWordBytes = sizeof(uint64_t);

[[nodiscard]] uint64_t word(Bytes strip, size_t tile, size_t row) {
  return base::load_little<uint64_t>(strip.data() + kWordBytes * (tile * kTileRows + row));
}
// Where a strip's scale of a row of a tile stands.
[[nodiscard]] size_t scale_at(size_t columns, size_t tile, size_t row) {
  return (kWordBytes * tiles(columns) + tile) * kTileRows + row;
}

// The kept values of one row of a tile, at most 64, as bytes of the kind.
void put_group(ValueKind kind, float* values, size_t n, uint16_t base, std::byte* scale,
               std::vector<std::byte>& out) {
  const size_t at = out.size();
  out.resize(at + sparse_group_bytes(kind, n));
  if (kind == ValueKind::bf16) {
    for (size_t i = 0; i < n; ++i)
      base::store_little(out.data() + at + 2 * i, bf16_nearest(values[i]));
    return;
  }
  std::array<uint8_t, kGroupElements> codes{};
  uint8_t group_scale = 0;
  if (n > 0) row_to_codes(kind, values, n, base, &group_scale, codes.data());
  *scale = static_cast<std::byte>(group_scale);
  for (size_t i = 0; i < n; ++i) {
    const size_t bit = i * bits(kind);
    out[at + bit / 8] |= static_cast<std::byte>(unsigned{codes[i]} << (bit % 8));
  }
}

void get_group(ValueKind kind, const std::byte* from, size_t n, uint16_t base, uint8_t scale,
               float* values, const Kernels& by) {
  if (kind == ValueKind::bf16) {
    for (size_t i = 0; i < n; ++i)
      values[i] = bf16_widen(base::load_little<uint16_t>(from + 2 * i));
    return;
  }
  std::array<uint8_t, kGroupElements> codes{};
  for (size_t i = 0; i < n; ++i) {
    const size_t bit = i * bits(kind);
    codes[i] = static_cast<uint8_t>(std::to_integer<unsigned>(from[bit / 8]) >> (bit % 8) &
                                    ((1U << bits(kind)) - 1));
  }
  if (n > 0) row_from_codes(kind, &scale, codes.data(), n, base, values, by);
}

}  // namespace

uint64_t sparse_strip_bytes(ValueKind kind, uint64_t columns,
                            std::span<const uint8_t> kept_of_groups) {
  uint64_t values = 0;
  for (const uint8_t kept : kept_of_groups) values += sparse_group_bytes(kind, kept);
  return sparse_strip_head_bytes(kind, columns) + base::align_up(values, kTileAlign);
}

void keep_largest(std::span<const float> row, size_t keep, std::span<uint64_t> words) {
  SCANT_CHECK(words.size() == tiles(row.size()) && keep <= row.size());
  std::vector<uint32_t> order(row.size());
  std::iota(order.begin(), order.end(), 0U);
  const auto before = [&](uint32_t a, uint32_t b) {
    const uint32_t one = magnitude_bits(row[a]);
    const uint32_t two = magnitude_bits(row[b]);
    return one != two ? one > two : a < b;
  };
  std::nth_element(order.begin(), order.begin() + static_cast<ptrdiff_t>(keep), order.end(),
                   before);
  std::ranges::fill(words, uint64_t{0});
  for (size_t i = 0; i < keep; ++i)
    words[order[i] / kTileColumns] |= uint64_t{1} << (order[i] % kTileColumns);
}

uint16_t pack_sparse_strip(ValueKind kind, const float* values, std::span<const uint64_t> kept,
                           size_t rows, size_t columns, std::vector<std::byte>& out,
                           uint64_t& entries) {
  SCANT_CHECK(in_sparse_tiles(kind) && rows <= kTileRows && kept.size() == rows * tiles(columns));
  uint32_t most = 0;
  for (size_t i = 0; i < rows * columns; ++i) {
    const uint64_t bit = kept[i / columns * tiles(columns) + i % columns / kTileColumns] >>
                             (i % columns % kTileColumns) &
                         1U;
    if (bit != 0) most = std::max(most, magnitude_bits(values[i]));
  }
  const uint16_t base =
      quantised(kind) ? static_cast<uint16_t>(scale_base(kind, most)) : uint16_t{0};
  const size_t begin = out.size();
  out.resize(begin + sparse_strip_head_bytes(kind, columns));
  for (size_t tile = 0; tile < tiles(columns); ++tile) {
    for (size_t row = 0; row < rows; ++row) {
      const uint64_t mask = kept[row * tiles(columns) + tile];
      base::store_little(out.data() + begin + kWordBytes * (tile * kTileRows + row), mask);
      std::array<float, kTileColumns> group{};
      size_t n = 0;
      for (uint64_t left = mask; left != 0; left &= left - 1) {
        const size_t column = tile * kTileColumns + static_cast<size_t>(std::countr_zero(left));
        SCANT_CHECK(column < columns);
        group[n++] = values[row * columns + column];
      }
      std::byte scale{0};
      put_group(kind, group.data(), n, base, &scale, out);
      if (quantised(kind)) out[begin + scale_at(columns, tile, row)] = scale;
      entries += n;
    }
  }
  out.resize(begin + base::align_up(out.size() - begin, kTileAlign));
  return base;
}

std::optional<std::string> sparse_strip_fault(ValueKind kind, Bytes strip, size_t rows,
                                              size_t columns, uint64_t& entries) {
  const uint64_t head = sparse_strip_head_bytes(kind, columns);
  if (strip.size() < head) return "is shorter than its bits";
  uint64_t values = 0;
  for (size_t tile = 0; tile < tiles(columns); ++tile) {
    const size_t wide = std::min(kTileColumns, columns - tile * kTileColumns);
    for (size_t row = 0; row < kTileRows; ++row) {
      const uint64_t mask = word(strip, tile, row);
      if ((row >= rows && mask != 0) || (wide < kTileColumns && mask >> wide != 0))
        return "keeps values outside of the tensor";
      const auto kept = static_cast<uint64_t>(std::popcount(mask));
      values += sparse_group_bytes(kind, kept);
      entries += kept;
    }
  }
  if (strip.size() != base::align_up(head + values, kTileAlign))
    return "has not as many bytes as its bits ask for";
  return std::nullopt;
}

void unpack_sparse_strip(ValueKind kind, Bytes strip, uint16_t base, size_t first, size_t rows,
                         size_t columns, float* values, const Kernels& by) {
  SCANT_CHECK(in_sparse_tiles(kind) && first + rows <= kTileRows);
  std::fill_n(values, rows * columns, 0.0F);
  const std::byte* from = strip.data() + sparse_strip_head_bytes(kind, columns);
  for (size_t tile = 0; tile < tiles(columns); ++tile) {
    for (size_t row = 0; row < kTileRows; ++row) {
      const uint64_t mask = word(strip, tile, row);
      const auto n = static_cast<size_t>(std::popcount(mask));
      if (row >= first && row < first + rows) {
        const uint8_t scale = quantised(kind)
                                  ? std::to_integer<uint8_t>(strip[scale_at(columns, tile, row)])
                                  : uint8_t{0};
        std::array<float, kTileColumns> group{};
        get_group(kind, from, n, base, scale, group.data(), by);
        float* const out = values + (row - first) * columns + tile * kTileColumns;
        size_t i = 0;
        for (uint64_t left = mask; left != 0; left &= left - 1)
          out[std::countr_zero(left)] = group[i++];
      }
      from += sparse_group_bytes(kind, n);
    }
  }
}

}  // namespace scant::codec
