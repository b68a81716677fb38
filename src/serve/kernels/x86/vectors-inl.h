// What the x86 instruction sets share: vectors of 128 bits, how denormals are treated, and numbers
// of rows. Included within the namespace of an instruction set, before its lanes.

using V128 = __m128i;
SCANT_INLINE V128 load_128(const void* from) {
  return _mm_loadu_si128(static_cast<const __m128i*>(from));
}
SCANT_INLINE V128 load_64(const void* from) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(from));
}
SCANT_INLINE void store_128(void* to, V128 value) {
  _mm_storeu_si128(static_cast<__m128i*>(to), value);
}
SCANT_INLINE void store_64(void* to, V128 value) {
  _mm_storel_epi64(static_cast<__m128i*>(to), value);
}
// Indices of bytes below 16; 128: a zero.
SCANT_INLINE V128 look_up_128(V128 table, V128 index) { return _mm_shuffle_epi8(table, index); }
SCANT_INLINE V128 low_nibbles(V128 a) { return _mm_and_si128(a, _mm_set1_epi8(15)); }
SCANT_INLINE V128 high_nibbles(V128 a) { return low_nibbles(_mm_srli_epi16(a, 4)); }
SCANT_INLINE V128 zip_low(V128 a, V128 b) { return _mm_unpacklo_epi8(a, b); }
SCANT_INLINE V128 zip_high(V128 a, V128 b) { return _mm_unpackhi_epi8(a, b); }
SCANT_INLINE size_t kept_of(uint64_t bits) {
  return static_cast<size_t>(__builtin_popcountll(bits));
}

// Sets how this thread treats denormals, and sets it back.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040U); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_;
};

// Numbers of eight rows. Gathers take as long, and much longer on CPUs whose microcode guards them.
template <typename Number>
SCANT_INLINE Number number_at(const std::byte* from) {
  Number value = 0;
  std::memcpy(&value, from, sizeof value);
  return value;
}
SCANT_INLINE __m128i eight_halves(const RowPlaces& rows, size_t first) {
  const auto at = [&](size_t i) { return number_at<int16_t>(rows.row(first + i)); };
  return _mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
}
SCANT_INLINE __m256i eight_numbers(const RowPlaces& rows, size_t first) {
  const auto at = [&](size_t i) { return number_at<int32_t>(rows.row(first + i)); };
  return _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
}
