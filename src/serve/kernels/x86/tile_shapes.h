// The shapes of AMX's eight tile registers, as the instruction LDTILECFG reads them from memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace scant::serve {

struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  std::array<uint8_t, 14> reserved{};
  std::array<uint16_t, 16> row_bytes{};
  std::array<uint8_t, 16> rows{};
  void set(size_t tile, size_t row_count, size_t bytes) {
    rows[tile] = static_cast<uint8_t>(row_count);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};
static_assert(sizeof(TileShapes) == 64);

}  // namespace scant::serve
