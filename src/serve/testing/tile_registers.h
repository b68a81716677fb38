// AMX's eight tile registers in software, as Intel's manual defines them (Software Developer's
// Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSSD, TDPBF16PS, TILERELEASE).
// What the CPU would refuse ends the program. One object belongs to one thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "serve/kernels/x86/tile_shapes.h"

namespace scant::serve::testing {

class TileRegisters {
 public:
  static constexpr size_t kTiles = 8;
  static constexpr size_t kRows = 16;
  static constexpr size_t kRowBytes = 64;

  [[nodiscard]] static TileRegisters& of_thread();

  void configure(const TileShapes& shapes);  // and zeros all tiles
  void release();
  void load(size_t tile, const void* from, size_t stride);
  void store(size_t tile, void* to, size_t stride) const;
  void zero(size_t tile);
  // Signed bytes, four to a sum of 32 bits, which wraps.
  void add_bytes(size_t to, size_t left, size_t right);
  // bf16, two to a sum of f32: needs FMA. Denormals are zero, whatever the thread has set.
  void add_halves(size_t to, size_t left, size_t right);

 private:
  // What lies beyond its rows and their bytes is zero, and stays so.
  struct Tile {
    size_t rows = 0;  // 0: not configured
    size_t row_bytes = 0;
    std::array<std::array<std::byte, kRowBytes>, kRows> bytes{};

    template <typename Number>
    [[nodiscard]] Number number(size_t row, size_t index) const {
      Number value{};
      std::memcpy(&value, bytes[row].data() + index * sizeof value, sizeof value);
      return value;
    }
    template <typename Number>
    void set_number(size_t row, size_t index, Number value) {
      std::memcpy(bytes[row].data() + index * sizeof value, &value, sizeof value);
    }
  };
  static void add_halves_flushed(Tile& to, const Tile& left, const Tile& right);
  void check_used(size_t tile) const;
  void check_product(size_t to, size_t left, size_t right) const;

  bool configured_ = false;
  std::array<Tile, kTiles> tiles_;
};

}  // namespace scant::serve::testing
