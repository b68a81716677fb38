// Sparse strips: the mask and its values come back, whatever the sparsity; bytes are the formula's
// counted from the mask alone; a strip that would lead a reader astray is refused.
#include "codec/tile/sparse.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <gtest/gtest.h>
#include <set>
#include <vector>

#include "base/little_endian.h"
#include "codec/quantise/rounding.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

constexpr uint64_t kSeed = 20261130;
constexpr ValueKind kKinds[] = {ValueKind::bf16, ValueKind::q8, ValueKind::q4};

std::vector<uint64_t> mask_of(const std::vector<float>& values, size_t rows, size_t columns,
                              double density) {
  std::vector<uint64_t> kept(rows * tiles(columns));
  const auto keep = static_cast<size_t>(std::lround(density * static_cast<double>(columns)));
  for (size_t row = 0; row < rows; ++row)
    keep_largest(std::span(values).subspan(row * columns, columns), keep,
                 std::span(kept).subspan(row * tiles(columns), tiles(columns)));
  return kept;
}

bool is_kept(const std::vector<uint64_t>& kept, size_t row, size_t column, size_t columns) {
  return (kept[row * tiles(columns) + column / 64] >> (column % 64) & 1U) != 0;
}

TEST(SparseTile, KeepsTheLargestOfARow) {
  const std::vector<float> row = {0.5F, -3.0F, 3.0F, 0.0F, -0.25F};
  std::vector<uint64_t> words(1);
  keep_largest(row, 1, words);
  EXPECT_EQ(words[0], 0b00010U) << "of equal ones the first";
  keep_largest(row, 3, words);
  EXPECT_EQ(words[0], 0b00111U);
  keep_largest(row, 0, words);
  EXPECT_EQ(words[0], 0U);
  keep_largest(row, 5, words);
  EXPECT_EQ(words[0], 0b11111U);
  const auto wide = testing::gaussians(300, kSeed, 1);
  std::vector<uint64_t> some(5);
  keep_largest(wide, 120, some);
  float least_kept = 1e9F;
  float most_dropped = 0;
  size_t count = 0;
  for (size_t i = 0; i < wide.size(); ++i) {
    const bool kept = (some[i / 64] >> (i % 64) & 1U) != 0;
    count += kept ? 1 : 0;
    if (kept) least_kept = std::min(least_kept, std::fabs(wide[i]));
    if (!kept) most_dropped = std::max(most_dropped, std::fabs(wide[i]));
  }
  EXPECT_EQ(count, 120U);
  EXPECT_GE(least_kept, most_dropped);
}

void check_strip(ValueKind kind, size_t rows, size_t columns, double density) {
  const auto values = testing::gaussians(rows * columns, kSeed, rows * 100 + columns);
  const auto kept = mask_of(values, rows, columns, density);
  std::vector<std::byte> strip;
  uint64_t entries = 0;
  const uint16_t base = pack_sparse_strip(kind, values.data(), kept, rows, columns, strip, entries);
  std::vector<uint8_t> groups;
  uint64_t expected_entries = 0;
  for (const uint64_t one : kept) {
    groups.push_back(static_cast<uint8_t>(std::popcount(one)));
    expected_entries += groups.back();
  }
  EXPECT_EQ(entries, expected_entries);
  EXPECT_EQ(strip.size(), sparse_strip_bytes(kind, columns, groups));
  EXPECT_LE(strip.size(), sparse_strip_bytes_max(kind, columns));
  uint64_t counted = 0;
  EXPECT_EQ(sparse_strip_fault(kind, strip, rows, columns, counted), std::nullopt);
  EXPECT_EQ(counted, entries);
  std::vector<float> back(rows * columns, 7.0F);
  unpack_sparse_strip(kind, strip, base, 0, rows, columns, back.data());
  double lost = 0;
  double energy = 0;
  for (size_t i = 0; i < back.size(); ++i) {
    if (!is_kept(kept, i / columns, i % columns, columns)) {
      ASSERT_EQ(back[i], 0.0F);
    } else if (kind == ValueKind::bf16) {
      ASSERT_EQ(back[i], bf16_widen(bf16_nearest(values[i])));
    } else {
      lost += std::pow(values[i] - back[i], 2);
      energy += std::pow(values[i], 2);
    }
  }
  EXPECT_LE(lost, energy * (kind == ValueKind::q8 ? 1e-3 : 0.05));
  if (rows > 2) {
    std::vector<float> middle(columns);
    unpack_sparse_strip(kind, strip, base, 1, 1, columns, middle.data());
    EXPECT_TRUE(
        std::equal(middle.begin(), middle.end(), back.begin() + static_cast<ptrdiff_t>(columns)));
  }
}

TEST(SparseTile, EveryKindShapeAndSparsity) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  for (const ValueKind kind : kKinds) {
    for (const size_t rows : {1U, 5U, 16U}) {
      for (const size_t columns : {1U, 64U, 65U, 200U, 577U}) {
        for (const double density : {0.0, 0.1, 0.5, 1.0}) {
          SCOPED_TRACE(std::string(name(kind)) + " " + std::to_string(rows) + " x " +
                       std::to_string(columns) + " density " + std::to_string(density));
          check_strip(kind, rows, columns, density);
        }
      }
    }
  }
}

TEST(SparseTile, BytesOfHalfAStrip) {
  // 16 x 128, half of each row of a tile: 2 tiles of 16 words, and 32 values a group.
  const std::vector<uint8_t> groups(32, 32);
  EXPECT_EQ(sparse_strip_bytes(ValueKind::bf16, 128, groups), 2U * 128 + 32 * 32 * 2);
  EXPECT_EQ(sparse_strip_bytes(ValueKind::q8, 128, groups), 2U * 128 + 64 + 32 * 32);
  EXPECT_EQ(sparse_strip_bytes(ValueKind::q4, 128, groups), 2U * 128 + 64 + 32 * 16);
  const std::vector<uint8_t> odd(32, 3);  // two bytes of four-bit codes each
  EXPECT_EQ(sparse_strip_bytes(ValueKind::q4, 128, odd), 2U * 128 + 64 + 64);
}

TEST(SparseTile, RefusesWhatWouldLeadAstray) {
  const size_t columns = 70;
  const auto values = testing::gaussians(3 * columns, kSeed, 9);
  const auto kept = mask_of(values, 3, columns, 0.5);
  std::vector<std::byte> strip;
  uint64_t entries = 0;
  pack_sparse_strip(ValueKind::q8, values.data(), kept, 3, columns, strip, entries);
  const auto fault = [&](const std::vector<std::byte>& bytes) {
    uint64_t counted = 0;
    return sparse_strip_fault(ValueKind::q8, bytes, 3, columns, counted).value_or("");
  };
  EXPECT_EQ(fault(strip), "");
  auto other = strip;
  other.resize(100);
  EXPECT_EQ(fault(other), "is shorter than its bits");
  other = strip;
  other.resize(strip.size() + 64);
  EXPECT_EQ(fault(other), "has not as many bytes as its bits ask for");
  other = strip;
  other[8 * 3] = std::byte{1};  // row 3 of 3
  EXPECT_EQ(fault(other), "keeps values outside of the tensor");
  other = strip;
  other[8 * 16] |= std::byte{0x40};  // column 70 of 70
  EXPECT_EQ(fault(other), "keeps values outside of the tensor");
  other = strip;
  for (size_t i = 0; i < 24; ++i) other[i] = std::byte{0xFF};
  EXPECT_EQ(fault(other), "has not as many bytes as its bits ask for");
}

}  // namespace
}  // namespace scant::codec
