// Lines of sparse tiles: 64 bytes of each of sixteen rows, expanded from kept values. Included
// within the namespace of an instruction set.

// Elements whose bits are set follow one another at `from`, the others are zero. A table says which
// bytes go where, for each eight bits.
class Lines {
 public:
  SCANT_METHOD void set16(size_t row, uint32_t bits, const std::byte* from) {
    for (size_t i = 0; i < 4; ++i, bits >>= 8U) {
      const V128 places = load_128(kPlaces16.of[bits & 255U]);
      store_128(rows_ + 64 * row + 16 * i, look_up_128(load_128(from), places));
      from += 2 * kept_of(bits & 255U);
    }
  }
  SCANT_METHOD void set8(size_t row, uint64_t bits, const std::byte* from) {
    for (size_t i = 0; i < 8; ++i, bits >>= 8U) {
      const V128 places = load_64(kPlaces8.of[bits & 255U]);
      store_64(rows_ + 64 * row + 8 * i, look_up_128(load_64(from), places));
      from += kept_of(bits & 255U);
    }
  }
  SCANT_METHOD void set4(size_t row, uint64_t bits, const std::byte* from, V128 table) {
    alignas(16) std::byte kept[codec::kTileColumns + 8];
    for (size_t i = 0; i < 2; ++i) {
      const V128 two = load_128(from + 16 * i);
      const V128 even = look_up_128(table, low_nibbles(two));
      const V128 odd = look_up_128(table, high_nibbles(two));
      store_128(kept + 32 * i, zip_low(even, odd));
      store_128(kept + 32 * i + 16, zip_high(even, odd));
    }
    set8(row, bits, kept);
  }
  template <typename Sink>
  SCANT_METHOD void turn_to(const Sink& sink) const {
    turn_lines_to(rows_, 64, sink);
  }

 private:
  alignas(64) std::byte rows_[codec::kTileRows * 64];
};
