// Lines of sparse tiles in registers, expanded by VBMI2: see lanes/lines-inl.h. Included within the
// namespace of an instruction set.

class Lines {
 public:
  SCANT_METHOD void set16(size_t row, uint32_t bits, const std::byte* from) {
    rows_[row] = _mm512_maskz_expand_epi16(bits, apart(load_i(from)));
  }
  SCANT_METHOD void set8(size_t row, uint64_t bits, const std::byte* from) {
    rows_[row] = _mm512_maskz_expand_epi8(bits, apart(load_i(from)));
  }
  // Codes of 4 bits, the lower half of a byte first.
  SCANT_METHOD void set4(size_t row, uint64_t bits, const std::byte* from, V128 table) {
    const Vi wide =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const Vi codes = both(either(wide, _mm512_slli_epi16(wide, 4)), every_i(0x0F0F0F0F));
    rows_[row] = _mm512_maskz_expand_epi8(bits, look_up(table, codes));
  }
  // Element k of 32 bits of each row, to sink(k, elements).
  template <typename Sink>
  SCANT_METHOD void turn_to(const Sink& sink) {
    turn_registers(rows_);
    for_sixteen([&](auto k) SCANT_METHOD { sink(k, rows_[k]); });
  }

 private:
  // A load of its own: Zen 4 takes ten times as long to expand from memory.
  SCANT_METHOD static Vi apart(Vi loaded) {
    asm("" : "+v"(loaded));
    return loaded;
  }
  Vi rows_[codec::kTileRows];
};
