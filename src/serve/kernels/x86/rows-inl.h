// Numbers of GGUF's blocks, of eight rows. Included within the namespace of an instruction set,
// before its lanes. Gathers take as long, and much longer on CPUs whose microcode guards them.

template <typename Number>
SCANT_INLINE Number number_at(const std::byte* from) {
  Number value = 0;
  std::memcpy(&value, from, sizeof value);
  return value;
}
SCANT_INLINE __m128i eight_halves(const std::byte* from, size_t stride) {
  const auto at = [&](size_t i) { return number_at<int16_t>(from + i * stride); };
  return _mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
}
SCANT_INLINE __m256i eight_numbers(const std::byte* from, size_t stride) {
  const auto at = [&](size_t i) { return number_at<int32_t>(from + i * stride); };
  return _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
}
