#include "serve/testing/tile_registers.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "base/check.h"
#include "serve/kernels/lanes/region.h"

namespace scant::serve::testing {

TileRegisters& TileRegisters::of_thread() {
  thread_local TileRegisters registers;
  return registers;
}

// --- State. Loads and stores begin with the first row: nothing interrupts them here.

void TileRegisters::configure(const TileShapes& shapes) {
  SCANT_CHECK(shapes.palette == 1, "LDTILECFG: there is one palette, 1");
  SCANT_CHECK(shapes.start_row == 0, "LDTILECFG: no load or store was interrupted");
  SCANT_CHECK(std::ranges::count(shapes.reserved, 0) == std::ssize(shapes.reserved),
              "LDTILECFG: reserved bytes are zero");
  for (size_t tile = 0; tile < shapes.rows.size(); ++tile) {
    const size_t rows = shapes.rows[tile];
    const size_t row_bytes = shapes.row_bytes[tile];
    SCANT_CHECK(tile < kTiles || (rows == 0 && row_bytes == 0), "LDTILECFG: there are 8 tiles");
    SCANT_CHECK(rows <= kRows, "LDTILECFG: a tile has at most 16 rows");
    SCANT_CHECK(row_bytes <= kRowBytes, "LDTILECFG: a row has at most 64 bytes");
    SCANT_CHECK((rows == 0) == (row_bytes == 0),
                "LDTILECFG: a tile has rows and bytes, or neither");
  }
  for (size_t tile = 0; tile < kTiles; ++tile)
    tiles_[tile] = {.rows = shapes.rows[tile], .row_bytes = shapes.row_bytes[tile]};
  configured_ = true;
}

void TileRegisters::release() {
  tiles_ = {};
  configured_ = false;
}

void TileRegisters::check_used(size_t tile) const {
  SCANT_CHECK(configured_, "tiles are used before they are configured, or after their release");
  SCANT_CHECK(tile < kTiles, "there are 8 tiles");
  SCANT_CHECK(tiles_[tile].rows > 0, "a tile is used that the configuration lacks");
}

void TileRegisters::load(size_t tile, const void* from, size_t stride) {
  check_used(tile);
  Tile& to = tiles_[tile];
  to.bytes = {};
  for (size_t row = 0; row < to.rows; ++row)
    std::memcpy(to.bytes[row].data(), static_cast<const std::byte*>(from) + row * stride,
                to.row_bytes);
}

void TileRegisters::store(size_t tile, void* to, size_t stride) const {
  check_used(tile);
  const Tile& from = tiles_[tile];
  for (size_t row = 0; row < from.rows; ++row)
    std::memcpy(static_cast<std::byte*>(to) + row * stride, from.bytes[row].data(), from.row_bytes);
}

void TileRegisters::zero(size_t tile) {
  check_used(tile);
  tiles_[tile].bytes = {};
}

// --- Products: element n of a row m is a sum over elements k of the left row m and of right row k.

void TileRegisters::check_product(size_t to, size_t left, size_t right) const {
  for (const size_t tile : {to, left, right}) {
    check_used(tile);
    SCANT_CHECK(tiles_[tile].row_bytes % 4 == 0, "rows of a product's tiles are whole elements");
  }
  SCANT_CHECK(to != left && to != right && left != right, "a product has three different tiles");
  SCANT_CHECK(tiles_[to].rows == tiles_[left].rows, "a product has the rows of its left factor");
  SCANT_CHECK(tiles_[to].row_bytes == tiles_[right].row_bytes,
              "a product has the columns of its right factor");
  SCANT_CHECK(tiles_[left].row_bytes == 4 * tiles_[right].rows,
              "the left factor has as many columns as the right one has rows");
}

void TileRegisters::add_bytes(size_t to, size_t left, size_t right) {
  check_product(to, left, right);
  const Tile& a = tiles_[left];
  const Tile& b = tiles_[right];
  Tile& sums = tiles_[to];
  for (size_t m = 0; m < sums.rows; ++m) {
    for (size_t n = 0; n < sums.row_bytes / 4; ++n) {
      auto sum = sums.number<uint32_t>(m, n);
      for (size_t k = 0; k < b.rows; ++k) {
        for (size_t i = 0; i < 4; ++i)
          sum += static_cast<uint32_t>(a.number<int8_t>(m, 4 * k + i) *
                                       b.number<int8_t>(k, 4 * n + i));
      }
      sums.set_number(m, n, sum);
    }
  }
}

SCANT_BEGIN_INSTRUCTIONS(SCANT_AVX2);

// The sums of even and odd halves start with 0 and are added to what was there at the end.
__attribute__((noinline)) void TileRegisters::add_halves_flushed(Tile& to, const Tile& left,
                                                                 const Tile& right) {
  const auto half = [](const Tile& tile, size_t row, size_t index) {
    return std::bit_cast<float>(uint32_t{tile.number<uint16_t>(row, index)} << 16U);
  };
  for (size_t m = 0; m < to.rows; ++m) {
    for (size_t n = 0; n < to.row_bytes / 4; ++n) {
      float even = 0;
      float odd = 0;
      for (size_t k = 0; k < right.rows; ++k) {
        even = std::fma(half(left, m, 2 * k), half(right, k, 2 * n), even);
        odd = std::fma(half(left, m, 2 * k + 1), half(right, k, 2 * n + 1), odd);
      }
      to.set_number(m, n, to.number<float>(m, n) + (even + odd));
    }
  }
}

// Whatever the thread has set, denormals are zero, sums are rounded to nearest even, nothing traps
// and no exception is noted.
void TileRegisters::add_halves(size_t to, size_t left, size_t right) {
  check_product(to, left, right);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(0x9FC0);
  add_halves_flushed(tiles_[to], tiles_[left], tiles_[right]);
  _mm_setcsr(before);
}

SCANT_END_INSTRUCTIONS;

}  // namespace scant::serve::testing
