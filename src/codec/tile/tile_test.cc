// Tiles: every code stands where docs/packed.md says; what comes back is what a record of the same
// values would give; bytes are the formula's, for every shape.
#include "codec/tile/tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "base/little_endian.h"
#include "codec/kernels/kernels.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

constexpr uint64_t kSeed = 20261130;
constexpr ValueKind kKinds[] = {ValueKind::q8, ValueKind::q4, ValueKind::q3, ValueKind::q2};
constexpr size_t kRowCounts[] = {1, 7, 15, 16};
constexpr size_t kColumnCounts[] = {1, 63, 64, 65, 191, 192, 193, 576, 1000};

// One row's scales and codes as the codec's kernels give them, 64 columns at a time.
struct RowCodes {
  std::vector<uint8_t> scales;
  std::vector<uint8_t> codes;
  std::vector<float> left;
};
RowCodes expected_row(ValueKind kind, const float* row, size_t columns, uint32_t base) {
  RowCodes result{.scales = {}, .codes = {}, .left = std::vector<float>(row, row + columns)};
  for (size_t at = 0; at < columns; at += 64) {
    const size_t n = std::min<size_t>(64, columns - at);
    uint8_t scale = 0;
    std::vector<std::byte> packed(128);
    kernels().quantise_rest(kind, {}, 0, result.left.data() + at, n, base, &scale, packed.data());
    result.scales.push_back(scale);
    for (size_t i = 0; i < n; ++i) {
      unsigned code = 0;
      for (size_t b = 0; b < bits(kind); ++b) {
        const size_t bit = i * bits(kind) + b;
        code |= (std::to_integer<unsigned>(packed[bit / 8]) >> (bit % 8) & 1U) << b;
      }
      result.codes.push_back(static_cast<uint8_t>(code));
    }
  }
  return result;
}

// The document's words once more: quads of four columns by sixteen rows.
unsigned code_in_tile(ValueKind kind, Bytes tile, size_t row, size_t column) {
  const size_t quad = column / 4;
  const size_t code = 4 * row + column % 4;
  const auto at = [&](size_t byte) { return std::to_integer<unsigned>(tile[byte]); };
  switch (kind) {
    case ValueKind::q8:
      return at(quad * 64 + code);
    case ValueKind::q4:
      return quad % 2 == 0 ? at(quad / 2 * 64 + code) & 15U : at(quad / 2 * 64 + code) >> 4U;
    case ValueKind::q2:
      return at(quad / 4 * 64 + code) >> 2 * (quad % 4) & 3U;
    default: {
      const unsigned low = at(quad / 4 * 64 + code) >> 2 * (quad % 4) & 3U;
      const auto signs = base::load_little<uint64_t>(tile.data() + 256 + 8 * quad);
      return low | static_cast<unsigned>(signs >> code & 1U) << 2U;
    }
  }
}

void check_strip(ValueKind kind, size_t rows, size_t columns) {
  const auto values = testing::gaussians(rows * columns, kSeed, rows * 7919 + columns);
  std::vector<float> work = values;
  std::vector<std::byte> strip(strip_bytes(kind, columns), std::byte{0xAA});
  const uint16_t base = pack_strip(kind, work.data(), rows, columns, strip);
  EXPECT_LE(base, kScaleBaseTop);
  const size_t tile_count = (columns + 63) / 64;
  const size_t scale_room = (16 * tile_count + 63) / 64 * 64;
  ASSERT_EQ(strip.size(), scale_room + tile_count * 128 * bits(kind));
  std::vector<float> unpacked(rows * columns);
  unpack_strip(kind, strip, base, 0, rows, columns, unpacked.data());
  size_t ones = 0;
  size_t expected_ones = 0;
  for (const std::byte byte : strip)
    ones += static_cast<size_t>(std::popcount(std::to_integer<uint8_t>(byte)));
  for (size_t row = 0; row < rows; ++row) {
    const RowCodes expected = expected_row(kind, &values[row * columns], columns, base);
    for (size_t i = 0; i < columns; ++i) {
      const Bytes tile =
          Bytes(strip).subspan(scale_room + i / 64 * 128 * bits(kind), 128 * bits(kind));
      ASSERT_EQ(code_in_tile(kind, tile, row, i % 64), expected.codes[i]);
      const float decoded = values[row * columns + i] - expected.left[i];
      EXPECT_FLOAT_EQ(unpacked[row * columns + i], decoded);
      ASSERT_EQ(work[row * columns + i], expected.left[i]);
      expected_ones += static_cast<size_t>(std::popcount(expected.codes[i]));
    }
    for (size_t t = 0; t < tile_count; ++t) {
      ASSERT_EQ(std::to_integer<uint8_t>(strip[16 * t + row]), expected.scales[t]);
      expected_ones += static_cast<size_t>(std::popcount(expected.scales[t]));
    }
  }
  EXPECT_EQ(ones, expected_ones) << "what no value fills is 0";
}

TEST(Tile, CodesStandWhereTheDocumentSays) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  for (const ValueKind kind : kKinds) {
    for (const size_t rows : kRowCounts) {
      for (const size_t columns : kColumnCounts) {
        SCOPED_TRACE(std::string(name(kind)) + " " + std::to_string(rows) + " x " +
                     std::to_string(columns));
        check_strip(kind, rows, columns);
      }
    }
  }
}

TEST(Tile, RowsCanBeReadAlone) {
  const size_t columns = 130;
  for (const ValueKind kind : kKinds) {
    auto values = testing::gaussians(16 * columns, kSeed, 3);
    std::vector<std::byte> strip(strip_bytes(kind, columns));
    const uint16_t base = pack_strip(kind, values.data(), 16, columns, strip);
    std::vector<float> all(16 * columns);
    unpack_strip(kind, strip, base, 0, 16, columns, all.data());
    std::vector<float> some(3 * columns);
    unpack_strip(kind, strip, base, 5, 3, columns, some.data());
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + 5 * columns));
  }
}

TEST(Tile, LosesAsLittleAsTheCodec) {
  const size_t columns = 200;
  for (const ValueKind kind : {ValueKind::q8, ValueKind::q4}) {
    auto values = testing::gaussians(16 * columns, kSeed, 4);
    std::vector<std::byte> strip(strip_bytes(kind, columns));
    const uint16_t base = pack_strip(kind, values.data(), 16, columns, strip);
    for (const float left : values) EXPECT_TRUE(std::isfinite(left));
    std::vector<float> once(16 * columns);
    unpack_strip(kind, strip, base, 0, 16, columns, once.data());
    double kept = 0;
    double energy = 0;
    const auto original = testing::gaussians(16 * columns, kSeed, 4);
    for (size_t i = 0; i < once.size(); ++i) {
      kept += std::pow(original[i] - once[i], 2);
      energy += std::pow(original[i], 2);
    }
    EXPECT_LT(kept / energy, kind == ValueKind::q8 ? 2e-4 : 1.2e-2);
  }
}

TEST(Tile, SixteenBitsComeBackAsTheyWere) {
  for (const size_t rows : kRowCounts) {
    for (const size_t columns : kColumnCounts) {
      std::vector<uint16_t> values(rows * columns);
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = static_cast<uint16_t>(i * 40503U + 0x7F81U);  // NaN and infinities among them
      std::vector<std::byte> strip(strip_bytes(ValueKind::bf16, columns), std::byte{0xAA});
      ASSERT_EQ(strip.size(), (columns + 63) / 64 * 2048);
      pack_strip16(values.data(), rows, columns, strip);
      for (size_t row = 0; row < rows; ++row) {
        for (size_t i = 0; i < columns; ++i) {
          const size_t at = i / 64 * 2048 + (i % 64 / 2 * 16 + row) * 4 + i % 2 * 2;
          ASSERT_EQ(base::load_little<uint16_t>(strip.data() + at), values[row * columns + i]);
        }
      }
      std::vector<uint16_t> back(values.size());
      unpack_strip16(strip, 0, rows, columns, back.data());
      EXPECT_EQ(back, values);
    }
  }
}

TEST(Tile, EdgesOfTheFloats) {
  const float most = std::numeric_limits<float>::max();
  const float least = std::numeric_limits<float>::denorm_min();
  for (const ValueKind kind : kKinds) {
    for (const std::vector<float>& given :
         {std::vector<float>(64, 0.0F), std::vector<float>(64, most),
          std::vector<float>{most, -most, 1.0F, least, -0.0F}, std::vector<float>(70, least)}) {
      std::vector<float> work = given;
      std::vector<std::byte> strip(strip_bytes(kind, given.size()));
      const uint16_t base = pack_strip(kind, work.data(), 1, given.size(), strip);
      EXPECT_LE(base, kScaleBaseTop);
      std::vector<float> back(given.size());
      unpack_strip(kind, strip, base, 0, 1, given.size(), back.data());
      for (size_t i = 0; i < given.size(); ++i) {
        EXPECT_TRUE(std::isfinite(back[i]));
        if (given == std::vector<float>(64, 0.0F)) {
          EXPECT_EQ(back[i], 0.0F);
        }
      }
    }
  }
}

TEST(Tile, NamesTheFirstValueThatIsNotFinite) {
  std::vector<float> values(6, 1.0F);
  EXPECT_FALSE(find_not_finite(values.data(), 2, 3));
  values[4] = std::numeric_limits<float>::quiet_NaN();
  values[5] = std::numeric_limits<float>::infinity();
  const auto found = find_not_finite(values.data(), 2, 3);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->row, 1U);
  EXPECT_EQ(found->column, 1U);
}

TEST(Tile, BytesOfATensor) {
  // 40 rows: 3 strips; 130 columns: 3 tiles. Bases fill a line, and so do a strip's 48 scales.
  EXPECT_EQ(tiled_bytes(ValueKind::q4, {40, 130}), 64U + 3 * (64 + 3 * 512));
  EXPECT_EQ(tiled_bytes(ValueKind::q3, {40, 130}), 64U + 3 * (64 + 3 * 384));
  EXPECT_EQ(tiled_bytes(ValueKind::bf16, {40, 130}), 3U * 3 * 2048);
  EXPECT_EQ(tiled_bytes(ValueKind::q8, {16, 64}), 64U + 64 + 1024);
  // 4096 x 4096 at 4 bits: 4.125 bits a weight and the bases.
  EXPECT_EQ(tiled_bytes(ValueKind::q4, {4096, 4096}), 512U + 4096ULL * 4096 * 33 / 64);
}

}  // namespace
}  // namespace scant::codec
