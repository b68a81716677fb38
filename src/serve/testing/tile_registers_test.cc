// Tiles in software against what Intel's manual says of them: shapes, strides, zeros, sums, and
// what ends the program because the CPU would refuse it.
#include "serve/testing/tile_registers.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <gtest/gtest.h>
#include <vector>

#include "base/cpu.h"

namespace scant::serve::testing {
namespace {

constexpr std::byte kUntouched{0x5A};

// Tile 0: 2 rows of 3 elements; tile 1: 2 rows of 4; tile 2: 4 rows of 3; tile 3 has another shape.
TileShapes small_shapes() {
  TileShapes shapes;
  shapes.set(0, 2, 12);
  shapes.set(1, 2, 16);
  shapes.set(2, 4, 12);
  shapes.set(3, 5, 64);
  return shapes;
}

TileRegisters small_tiles() {
  TileRegisters tiles;
  tiles.configure(small_shapes());
  return tiles;
}

uint16_t half(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16U); }

// One product of two halves and one sum: tiles of one element.
float sum_of_pair(float start, const float (&left)[2], const float (&right)[2]) {
  TileShapes shapes;
  for (size_t tile = 0; tile < 3; ++tile) shapes.set(tile, 1, 4);
  TileRegisters tiles;
  tiles.configure(shapes);
  const uint16_t a[2] = {half(left[0]), half(left[1])};
  const uint16_t b[2] = {half(right[0]), half(right[1])};
  tiles.load(0, &start, 4);
  tiles.load(1, a, 4);
  tiles.load(2, b, 4);
  tiles.add_halves(0, 1, 2);
  tiles.store(0, &start, 4);
  return start;
}

TEST(TileRegisters, LoadAndStoreOnlyTheirShape) {
  TileRegisters tiles = small_tiles();
  std::vector<std::byte> from(4 * 20);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i);
  tiles.load(0, from.data(), 20);
  std::vector<std::byte> to(4 * 64, kUntouched);
  tiles.store(0, to.data(), 64);
  for (size_t row = 0; row < 4; ++row) {
    for (size_t i = 0; i < 64; ++i)
      EXPECT_EQ(to[64 * row + i], row < 2 && i < 12 ? from[20 * row + i] : kUntouched);
  }
}

TEST(TileRegisters, AreZeroOnceConfiguredAndWhenTold) {
  TileRegisters tiles = small_tiles();
  const std::vector<std::byte> from(4 * 64, std::byte{7});
  std::vector<std::byte> to(24, kUntouched);
  tiles.load(0, from.data(), 64);
  tiles.zero(0);
  tiles.store(0, to.data(), 12);
  EXPECT_EQ(to, std::vector<std::byte>(24));
  tiles.load(0, from.data(), 64);
  tiles.configure(small_shapes());
  to.assign(24, kUntouched);
  tiles.store(0, to.data(), 12);
  EXPECT_EQ(to, std::vector<std::byte>(24));
}

TEST(TileRegisters, AddProductsOfSignedBytes) {
  TileRegisters tiles = small_tiles();
  int8_t left[2][16];
  int8_t right[4][12];
  int32_t sums[2][3] = {{1, -2, 3}, {INT32_MAX, 5, -6}};
  int32_t expected[2][3];
  for (int i = 0; i < 32; ++i) left[i / 16][i % 16] = static_cast<int8_t>(37 * i - 128);
  for (int i = 0; i < 48; ++i) right[i / 12][i % 12] = static_cast<int8_t>(91 * i + 127);
  for (size_t m = 0; m < 2; ++m) {
    for (size_t n = 0; n < 3; ++n) {
      int64_t sum = sums[m][n];
      for (size_t c = 0; c < 16; ++c) sum += left[m][c] * right[c / 4][4 * n + c % 4];
      expected[m][n] = static_cast<int32_t>(sum);
    }
  }
  tiles.load(0, sums, 12);
  tiles.load(1, left, 16);
  tiles.load(2, right, 12);
  tiles.add_bytes(0, 1, 2);
  tiles.store(0, sums, 12);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(sums[i / 3][i % 3], expected[i / 3][i % 3]) << i;
}

TEST(TileRegisters, AddProductsOfHalvesInTheirOrder) {
  if (!base::cpu_has_avx2()) GTEST_SKIP() << "this CPU lacks FMA";
  TileRegisters tiles = small_tiles();
  uint16_t left[2][8];
  uint16_t right[4][6];
  float sums[2][3] = {{1, -2, 3}, {4, 5, -6}};
  float expected[2][3];
  const auto wide = [](uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16U); };
  for (int i = 0; i < 16; ++i) left[i / 8][i % 8] = half(std::sin(static_cast<float>(i)) * 97);
  for (int i = 0; i < 24; ++i) right[i / 6][i % 6] = half(std::cos(static_cast<float>(i)) / 3);
  for (size_t m = 0; m < 2; ++m) {
    for (size_t n = 0; n < 3; ++n) {
      float parts[2] = {0, 0};
      for (size_t c = 0; c < 8; ++c)
        parts[c % 2] = std::fma(wide(left[m][c]), wide(right[c / 2][2 * n + c % 2]), parts[c % 2]);
      expected[m][n] = sums[m][n] + (parts[0] + parts[1]);
    }
  }
  tiles.load(0, sums, 12);
  tiles.load(1, left, 16);
  tiles.load(2, right, 12);
  tiles.add_halves(0, 1, 2);
  tiles.store(0, sums, 12);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(sums[i / 3][i % 3], expected[i / 3][i % 3]) << i;
}

TEST(TileRegisters, TakeDenormalsForZeroAndReturnNone) {
  if (!base::cpu_has_avx2()) GTEST_SKIP() << "this CPU lacks FMA";
  EXPECT_EQ(sum_of_pair(0, {0x1p-130F, 0}, {0x1p100F, 0}), 0);  // a denormal factor
  EXPECT_EQ(sum_of_pair(0, {0x1p-70F, 0}, {0x1p-70F, 0}), 0);   // a denormal product
  EXPECT_EQ(sum_of_pair(0x1p-130F, {0, 0}, {0, 0}), 0);         // a denormal sum to begin with
  EXPECT_EQ(sum_of_pair(0, {0x1p-63F, 0x1p-63F}, {0x1.8p-63F, -0x1p-63F}), 0);  // a denormal sum
  const float negative = sum_of_pair(-0.0F, {-0x1p-70F, -0.0F}, {0x1p-70F, 0x1p0F});
  EXPECT_EQ(negative, 0);
  EXPECT_EQ(sum_of_pair(0, {0x1p-63F, 0}, {0x1p-63F, 0}), 0x1p-126F);  // the least that stays
  EXPECT_EQ(sum_of_pair(0x1p-148F, {1, 0}, {2, 0}), 2);
}

// Each would be the other number if one part were added to the sum before the other part.
TEST(TileRegisters, AddTheirPartsBeforeTheSum) {
  if (!base::cpu_has_avx2()) GTEST_SKIP() << "this CPU lacks FMA";
  EXPECT_EQ(sum_of_pair(0x1p30F, {1, -0x1p15F}, {1, 0x1p15F}), 0);
  EXPECT_EQ(sum_of_pair(1, {0x1p15F, -0x1p15F}, {0x1p15F, 0x1p15F}), 1);
}

TEST(TileRegistersDeathTest, RefuseConfigurations) {
  const auto refused = [](const auto& spoil, const char* words) {
    TileShapes shapes = small_shapes();
    spoil(shapes);
    EXPECT_DEATH(TileRegisters().configure(shapes), words);
  };
  refused([](TileShapes& shapes) { shapes.palette = 2; }, "one palette");
  refused([](TileShapes& shapes) { shapes.reserved[13] = 1; }, "reserved");
  refused([](TileShapes& shapes) { shapes.set(4, 17, 64); }, "at most 16 rows");
  refused([](TileShapes& shapes) { shapes.set(4, 16, 65); }, "at most 64 bytes");
  refused([](TileShapes& shapes) { shapes.set(4, 0, 4); }, "rows and bytes, or neither");
  refused([](TileShapes& shapes) { shapes.set(4, 1, 0); }, "rows and bytes, or neither");
  refused([](TileShapes& shapes) { shapes.set(8, 1, 4); }, "there are 8 tiles");
}

TEST(TileRegistersDeathTest, RefuseWhatIsNotConfigured) {
  std::byte row[64 * 16];
  TileRegisters tiles;
  EXPECT_DEATH(tiles.zero(0), "before they are configured, or after");
  tiles.configure(small_shapes());
  EXPECT_DEATH(tiles.load(4, row, 64), "configuration lacks");
  EXPECT_DEATH(tiles.store(7, row, 64), "configuration lacks");
  tiles.release();
  EXPECT_DEATH(tiles.load(0, row, 64), "before they are configured, or after");
  EXPECT_DEATH(tiles.store(0, row, 64), "before they are configured, or after");
  EXPECT_DEATH(tiles.add_bytes(0, 1, 2), "before they are configured, or after");
}

TEST(TileRegistersDeathTest, RefuseProductsOfOtherShapes) {
  TileRegisters tiles = small_tiles();
  EXPECT_DEATH(tiles.add_bytes(0, 1, 1), "three different tiles");
  EXPECT_DEATH(tiles.add_bytes(1, 1, 2), "three different tiles");
  EXPECT_DEATH(tiles.add_bytes(3, 1, 2), "rows of its left");
  EXPECT_DEATH(tiles.add_halves(0, 3, 2), "rows of its left");
  EXPECT_DEATH(tiles.add_halves(0, 1, 3), "columns of its right");
  TileShapes shapes = small_shapes();
  shapes.set(1, 2, 12);
  tiles.configure(shapes);
  EXPECT_DEATH(tiles.add_halves(0, 1, 2), "as many columns as the right one has rows");
  shapes.set(1, 2, 15);
  tiles.configure(shapes);
  EXPECT_DEATH(tiles.add_halves(0, 1, 2), "whole elements");
}

}  // namespace
}  // namespace scant::serve::testing
