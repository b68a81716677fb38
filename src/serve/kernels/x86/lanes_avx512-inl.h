// Sixteen lanes of 32 bits, one for each row of a strip, in one register of AVX-512. Included
// within the namespace of an instruction set; SCANT_HAS_VNNI says whether it has VNNI (and VBMI2).

inline constexpr size_t kTokensAtOnce = 8;       // as many sums as registers hold
inline constexpr size_t kTokensFew = 16;         // of codes, that are multiplied as they are read
inline constexpr size_t kPairTokensFew = 8;      // of bf16, likewise
inline constexpr size_t kFloatTokensAtOnce = 4;  // and tokens, of f32 and f16
inline constexpr size_t kRowsAtOnce = 4;         // of f32 and f16

using Vf = __m512;
using Vi = __m512i;

SCANT_INLINE Vf zero_f() { return _mm512_setzero_ps(); }
SCANT_INLINE Vf load_f(const float* from) { return _mm512_loadu_ps(from); }
SCANT_INLINE Vf every_f(float value) { return _mm512_set1_ps(value); }
SCANT_INLINE void store_f(float* to, Vf value) { _mm512_storeu_ps(to, value); }
SCANT_INLINE __mmask16 first_lanes(size_t n) { return static_cast<__mmask16>((1U << n) - 1); }
// n: at most 16.
SCANT_INLINE Vf load_first(const float* from, size_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), from);
}
SCANT_INLINE void store_first(float* to, Vf value, size_t n) {
  _mm512_mask_storeu_ps(to, first_lanes(n), value);
}
SCANT_INLINE Vf multiply_add(Vf a, Vf b, Vf sum) { return _mm512_fmadd_ps(a, b, sum); }
SCANT_INLINE Vf times(Vf a, Vf b) { return _mm512_mul_ps(a, b); }
SCANT_INLINE Vf plus(Vf a, Vf b) { return _mm512_add_ps(a, b); }
SCANT_INLINE Vf of_integers(Vi value) { return _mm512_cvtepi32_ps(value); }
SCANT_INLINE Vf of_halves(const std::byte* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
// Lane i + 8 to i, then + 4, + 2, + 1.
SCANT_INLINE float fold(Vf lanes) {
  const __m256 eight =
      _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

SCANT_INLINE Vi load_i(const void* from) { return _mm512_loadu_si512(from); }
SCANT_INLINE void store_i(void* to, Vi value) { _mm512_storeu_si512(to, value); }
SCANT_INLINE Vi every_i(int32_t value) { return _mm512_set1_epi32(value); }
SCANT_INLINE Vi both(Vi a, Vi b) { return _mm512_and_si512(a, b); }
SCANT_INLINE Vi either(Vi a, Vi b) { return _mm512_or_si512(a, b); }
SCANT_INLINE Vi minus8(Vi a, Vi b) { return _mm512_sub_epi8(a, b); }
template <int kBits>
SCANT_INLINE Vi down(Vi a) {
  return _mm512_srli_epi32(a, kBits);
}
template <int kBits>
SCANT_INLINE Vi up(Vi a) {
  return _mm512_slli_epi32(a, kBits);
}
SCANT_INLINE Vf as_floats(Vi a) { return _mm512_castsi512_ps(a); }
// Looks each byte's low four bits up in a table of 16 bytes; the others are zero.
SCANT_INLINE Vi look_up(V128 table, Vi index) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index);
}
// Bit i of `bits` set: byte i takes `one`'s, else `zero`'s.
SCANT_INLINE Vi choose(uint64_t bits, Vi one, Vi zero) {
  return _mm512_mask_blend_epi8(bits, zero, one);
}

SCANT_INLINE Vi as_integers(Vf a) { return _mm512_castps_si512(a); }
SCANT_INLINE Vi sum_of(Vi a, Vi b) { return _mm512_add_epi32(a, b); }
SCANT_INLINE Vi larger(Vi a, Vi b) { return _mm512_max_epi32(a, b); }
SCANT_INLINE Vi smaller(Vi a, Vi b) { return _mm512_min_epi32(a, b); }
SCANT_INLINE Vi where_above(Vi value, int32_t bound, Vi above, Vi otherwise) {
  return _mm512_mask_mov_epi32(otherwise, _mm512_cmpgt_epi32_mask(value, every_i(bound)), above);
}
SCANT_INLINE int32_t largest(Vi a) { return _mm512_reduce_max_epi32(a); }
SCANT_INLINE int32_t total_of(Vi a) { return _mm512_reduce_add_epi32(a); }
SCANT_INLINE Vi nearest(Vf a) { return _mm512_cvtps_epi32(a); }
SCANT_INLINE void store_bytes(int8_t* to, Vi whole) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(whole));
}

// The upper 16 bits of each lane.
SCANT_INLINE void store_upper_halves(void* to, Vi value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_cvtepi32_epi16(down<16>(value)));
}

// 16 bytes of rows r, r + 4, r + 8 and r + 12.
SCANT_INLINE Vi four_rows(const RowPlaces& rows, size_t offset) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(rows.at[0] + offset)),
                                              load_128(rows.at[1] + offset), 1);
  const __m256i high = _mm256_inserti128_si256(
      _mm256_castsi128_si256(load_128(rows.at[2] + offset)), load_128(rows.at[3] + offset), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
SCANT_INLINE Vi low32(Vi a, Vi b) { return _mm512_unpacklo_epi32(a, b); }
SCANT_INLINE Vi high32(Vi a, Vi b) { return _mm512_unpackhi_epi32(a, b); }
SCANT_INLINE Vi low64(Vi a, Vi b) { return _mm512_unpacklo_epi64(a, b); }
SCANT_INLINE Vi high64(Vi a, Vi b) { return _mm512_unpackhi_epi64(a, b); }

// f16 of 16 rows.
SCANT_INLINE Vf scales_of_rows(const RowPlaces& rows) {
  const __m128i low = eight_halves(rows, 0);
  const __m128i high = eight_halves(rows, 8);
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
// Element k of each row to lane row of rows[k].
SCANT_INLINE void turn_registers(Vi (&rows)[16]) {
  Vi fours[4][4];  // [rows / 4][element mod 4]
  for (size_t g = 0; g < 4; ++g) {
    const Vi low01 = low32(rows[4 * g], rows[4 * g + 1]);
    const Vi low23 = low32(rows[4 * g + 2], rows[4 * g + 3]);
    const Vi high01 = high32(rows[4 * g], rows[4 * g + 1]);
    const Vi high23 = high32(rows[4 * g + 2], rows[4 * g + 3]);
    fours[g][0] = low64(low01, low23);
    fours[g][1] = high64(low01, low23);
    fours[g][2] = low64(high01, high23);
    fours[g][3] = high64(high01, high23);
  }
  for (size_t k = 0; k < 4; ++k) {
    const Vi even0 = _mm512_shuffle_i32x4(fours[0][k], fours[1][k], 0x88);
    const Vi even1 = _mm512_shuffle_i32x4(fours[2][k], fours[3][k], 0x88);
    const Vi odd0 = _mm512_shuffle_i32x4(fours[0][k], fours[1][k], 0xDD);
    const Vi odd1 = _mm512_shuffle_i32x4(fours[2][k], fours[3][k], 0xDD);
    rows[k] = _mm512_shuffle_i32x4(even0, even1, 0x88);
    rows[4 + k] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
    rows[8 + k] = _mm512_shuffle_i32x4(even0, even1, 0xDD);
    rows[12 + k] = _mm512_shuffle_i32x4(odd0, odd1, 0xDD);
  }
}
// 64 bytes of each row, to sink(k, elements).
template <typename Sink>
SCANT_INLINE void turn_lines_to(const std::byte* from, size_t stride, const Sink& sink) {
  Vi rows[16];
  for (size_t row = 0; row < 16; ++row) rows[row] = load_i(from + row * stride);
  turn_registers(rows);
  for_sixteen([&](auto k) SCANT_METHOD { sink(k, rows[k]); });
}

// 32 bits of 16 rows.
SCANT_INLINE Vi numbers_of_rows(const RowPlaces& rows) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(eight_numbers(rows, 0)), eight_numbers(rows, 8),
                            1);
}
// The lower 16 bits of each lane are an f16.
SCANT_INLINE Vf of_low_halves(Vi value) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(value)); }
// The scales of a tile's 16 rows.
SCANT_INLINE Vf tile_scales(const std::byte* from, uint32_t base) {
  const Vi codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const Vi bits = _mm512_slli_epi32(
      _mm512_add_epi32(codes, _mm512_set1_epi32(static_cast<int>(base))), codec::kScaleShift);
  return as_floats(_mm512_maskz_mov_epi32(_mm512_test_epi32_mask(codes, codes), bits));
}

// Sums of four products of bytes a lane: levels of -128 to 127, codes of -127 to 127.
#if SCANT_HAS_VNNI
struct Weights {
  Vi shifted;  // by 128, without a sign
};
SCANT_INLINE Weights weights_of(Vi levels) {
  return {_mm512_xor_si512(levels, _mm512_set1_epi8(static_cast<char>(0x80)))};
}
SCANT_INLINE Vi start_of(int32_t start) { return every_i(start); }
SCANT_INLINE Vi add_products(Vi sum, const Weights& weights, Vi codes) {
  return _mm512_dpbusd_epi32(sum, weights.shifted, codes);
}
// Values of 0 to 15.
SCANT_INLINE Vi add_products_of_nibbles(Vi sum, Vi values, Vi codes) {
  return _mm512_dpbusd_epi32(sum, values, codes);
}
#else
SCANT_INLINE Vi add_products_of_nibbles(Vi sum, Vi values, Vi codes) {
  const Vi two = _mm512_maddubs_epi16(values, codes);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(two, _mm512_set1_epi16(1)));
}
struct Weights {
  Vi magnitudes;  // 128 at most, and 127 in codes: two products stay below 2^15
  __mmask64 negative;
};
SCANT_INLINE Weights weights_of(Vi levels) {
  return {_mm512_abs_epi8(levels), _mm512_movepi8_mask(levels)};
}
SCANT_INLINE Vi start_of(int32_t) { return _mm512_setzero_si512(); }
SCANT_INLINE Vi add_products(Vi sum, const Weights& weights, Vi codes) {
  const Vi turned = _mm512_mask_sub_epi8(codes, weights.negative, _mm512_setzero_si512(), codes);
  const Vi two = _mm512_maddubs_epi16(weights.magnitudes, turned);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(two, _mm512_set1_epi16(1)));
}
#endif
