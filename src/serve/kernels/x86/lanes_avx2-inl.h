// Sixteen lanes of 32 bits, one for each row of a strip, in two registers of AVX2. Included within
// the namespace of an instruction set.

inline constexpr size_t kTokensAtOnce = 2;       // as many sums as registers hold
inline constexpr size_t kTokensFew = 4;          // of codes, that are multiplied as they are read
inline constexpr size_t kPairTokensFew = 2;      // of bf16, likewise
inline constexpr size_t kFloatTokensAtOnce = 3;  // and tokens, of f32 and f16
inline constexpr size_t kRowsAtOnce = 2;         // of f32 and f16

struct Vf {
  __m256 a, b;
};
struct Vi {
  __m256i a, b;
};

SCANT_INLINE Vf zero_f() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
SCANT_INLINE Vf load_f(const float* from) {
  return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
}
SCANT_INLINE Vf every_f(float value) {
  const __m256 one = _mm256_set1_ps(value);
  return {one, one};
}
SCANT_INLINE void store_f(float* to, Vf value) {
  _mm256_storeu_ps(to, value.a);
  _mm256_storeu_ps(to + 8, value.b);
}
SCANT_INLINE Vi first_lanes(size_t n) {
  const __m256i count = _mm256_set1_epi32(static_cast<int>(n));
  return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}
// n: at most 16.
SCANT_INLINE Vf load_first(const float* from, size_t n) {
  const Vi mask = first_lanes(n);
  return {_mm256_maskload_ps(from, mask.a), _mm256_maskload_ps(from + 8, mask.b)};
}
SCANT_INLINE void store_first(float* to, Vf value, size_t n) {
  const Vi mask = first_lanes(n);
  _mm256_maskstore_ps(to, mask.a, value.a);
  _mm256_maskstore_ps(to + 8, mask.b, value.b);
}
SCANT_INLINE Vf multiply_add(Vf a, Vf b, Vf sum) {
  return {_mm256_fmadd_ps(a.a, b.a, sum.a), _mm256_fmadd_ps(a.b, b.b, sum.b)};
}
SCANT_INLINE Vf times(Vf a, Vf b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
SCANT_INLINE Vf plus(Vf a, Vf b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
SCANT_INLINE Vf of_integers(Vi value) {
  return {_mm256_cvtepi32_ps(value.a), _mm256_cvtepi32_ps(value.b)};
}
SCANT_INLINE Vf of_halves(const std::byte* from) {
  const auto* const halves = reinterpret_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
// Lane i + 8 to i, then + 4, + 2, + 1.
SCANT_INLINE float fold(Vf lanes) {
  const __m256 eight = _mm256_add_ps(lanes.a, lanes.b);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

SCANT_INLINE Vi load_i(const void* from) {
  const auto* const at = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
SCANT_INLINE void store_i(void* to, Vi value) {
  auto* const at = static_cast<__m256i*>(to);
  _mm256_storeu_si256(at, value.a);
  _mm256_storeu_si256(at + 1, value.b);
}
SCANT_INLINE Vi every_i(int32_t value) {
  const __m256i one = _mm256_set1_epi32(value);
  return {one, one};
}
SCANT_INLINE Vi both(Vi a, Vi b) {
  return {_mm256_and_si256(a.a, b.a), _mm256_and_si256(a.b, b.b)};
}
SCANT_INLINE Vi either(Vi a, Vi b) {
  return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)};
}
SCANT_INLINE Vi minus8(Vi a, Vi b) {
  return {_mm256_sub_epi8(a.a, b.a), _mm256_sub_epi8(a.b, b.b)};
}
template <int kBits>
SCANT_INLINE Vi down(Vi a) {
  return {_mm256_srli_epi32(a.a, kBits), _mm256_srli_epi32(a.b, kBits)};
}
template <int kBits>
SCANT_INLINE Vi up(Vi a) {
  return {_mm256_slli_epi32(a.a, kBits), _mm256_slli_epi32(a.b, kBits)};
}
SCANT_INLINE Vf as_floats(Vi a) { return {_mm256_castsi256_ps(a.a), _mm256_castsi256_ps(a.b)}; }
// Looks each byte's low four bits up in a table of 16 bytes; the others are zero.
SCANT_INLINE Vi look_up(V128 table, Vi index) {
  const __m256i twice = _mm256_broadcastsi128_si256(table);
  return {_mm256_shuffle_epi8(twice, index.a), _mm256_shuffle_epi8(twice, index.b)};
}
// Bit i of `bits` set: byte i takes `one`'s, else `zero`'s.
SCANT_INLINE __m256i bytes_of_bits(uint32_t bits) {
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                          2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i of_byte = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
  return _mm256_cmpeq_epi8(_mm256_and_si256(of_byte, bit), bit);
}
SCANT_INLINE Vi choose(uint64_t bits, Vi one, Vi zero) {
  return {_mm256_blendv_epi8(zero.a, one.a, bytes_of_bits(static_cast<uint32_t>(bits))),
          _mm256_blendv_epi8(zero.b, one.b, bytes_of_bits(static_cast<uint32_t>(bits >> 32U)))};
}

SCANT_INLINE Vi as_integers(Vf a) { return {_mm256_castps_si256(a.a), _mm256_castps_si256(a.b)}; }
SCANT_INLINE Vi sum_of(Vi a, Vi b) {
  return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)};
}
SCANT_INLINE Vi larger(Vi a, Vi b) {
  return {_mm256_max_epi32(a.a, b.a), _mm256_max_epi32(a.b, b.b)};
}
SCANT_INLINE Vi smaller(Vi a, Vi b) {
  return {_mm256_min_epi32(a.a, b.a), _mm256_min_epi32(a.b, b.b)};
}
SCANT_INLINE Vi where_above(Vi value, int32_t bound, Vi above, Vi otherwise) {
  const __m256i limit = _mm256_set1_epi32(bound);
  return {_mm256_blendv_epi8(otherwise.a, above.a, _mm256_cmpgt_epi32(value.a, limit)),
          _mm256_blendv_epi8(otherwise.b, above.b, _mm256_cmpgt_epi32(value.b, limit))};
}
SCANT_INLINE __m128i upper_half(__m256i a) { return _mm256_extracti128_si256(a, 1); }
SCANT_INLINE int32_t largest(Vi a) {
  const __m256i eight = _mm256_max_epi32(a.a, a.b);
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), upper_half(eight));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
SCANT_INLINE int32_t total_of(Vi a) {
  const __m256i eight = _mm256_add_epi32(a.a, a.b);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), upper_half(eight));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
SCANT_INLINE Vi nearest(Vf a) { return {_mm256_cvtps_epi32(a.a), _mm256_cvtps_epi32(a.b)}; }
SCANT_INLINE void store_bytes(int8_t* to, Vi whole) {
  const __m128i low = _mm_packs_epi32(_mm256_castsi256_si128(whole.a), upper_half(whole.a));
  const __m128i high = _mm_packs_epi32(_mm256_castsi256_si128(whole.b), upper_half(whole.b));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
}

// The upper 16 bits of each lane.
SCANT_INLINE void store_upper_halves(void* to, Vi value) {
  const Vi halves = down<16>(value);
  const __m256i mixed = _mm256_packus_epi32(halves.a, halves.b);
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xD8));
}

// 16 bytes of rows r, r + 4, r + 8 and r + 12.
SCANT_INLINE Vi four_rows(const RowPlaces& rows, size_t offset) {
  const auto two = [&](size_t i) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(rows.at[i] + offset)),
                                   load_128(rows.at[i + 1] + offset), 1);
  };
  return {two(0), two(2)};
}
SCANT_INLINE Vi low32(Vi a, Vi b) {
  return {_mm256_unpacklo_epi32(a.a, b.a), _mm256_unpacklo_epi32(a.b, b.b)};
}
SCANT_INLINE Vi high32(Vi a, Vi b) {
  return {_mm256_unpackhi_epi32(a.a, b.a), _mm256_unpackhi_epi32(a.b, b.b)};
}
SCANT_INLINE Vi low64(Vi a, Vi b) {
  return {_mm256_unpacklo_epi64(a.a, b.a), _mm256_unpacklo_epi64(a.b, b.b)};
}
SCANT_INLINE Vi high64(Vi a, Vi b) {
  return {_mm256_unpackhi_epi64(a.a, b.a), _mm256_unpackhi_epi64(a.b, b.b)};
}

// f16 of 16 rows.
SCANT_INLINE Vf scales_of_rows(const RowPlaces& rows) {
  return {_mm256_cvtph_ps(eight_halves(rows, 0)), _mm256_cvtph_ps(eight_halves(rows, 8))};
}
// 32 bits of 16 rows.
SCANT_INLINE Vi numbers_of_rows(const RowPlaces& rows) {
  return {eight_numbers(rows, 0), eight_numbers(rows, 8)};
}
// The lower 16 bits of each lane are an f16.
SCANT_INLINE Vf of_low_halves(Vi value) {
  const Vi halves = both(value, every_i(0xFFFF));
  const __m256i mixed = _mm256_packus_epi32(halves.a, halves.b);
  const __m256i packed = _mm256_permute4x64_epi64(mixed, 0xD8);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(packed)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(packed, 1))};
}
// The scales of a tile's 16 rows.
SCANT_INLINE Vf tile_scales(const std::byte* from, uint32_t base) {
  const auto eight = [base](const std::byte* at) {
    const __m256i codes =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    const __m256i bits = _mm256_slli_epi32(
        _mm256_add_epi32(codes, _mm256_set1_epi32(static_cast<int>(base))), codec::kScaleShift);
    return _mm256_andnot_si256(_mm256_cmpeq_epi32(codes, _mm256_setzero_si256()), bits);
  };
  return as_floats({eight(from), eight(from + 8)});
}

// Sums of four products of bytes a lane: levels of -128 to 127, codes of -127 to 127.
struct Weights {
  Vi levels;
  Vi magnitudes;  // 128 at most, and 127 in codes: two products stay below 2^15
};
SCANT_INLINE Weights weights_of(Vi levels) {
  return {levels, {_mm256_abs_epi8(levels.a), _mm256_abs_epi8(levels.b)}};
}
SCANT_INLINE Vi start_of(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
SCANT_INLINE __m256i add_products(__m256i sum, __m256i levels, __m256i magnitudes, __m256i codes) {
  const __m256i two = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(codes, levels));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}
SCANT_INLINE Vi add_products(Vi sum, const Weights& weights, Vi codes) {
  return {add_products(sum.a, weights.levels.a, weights.magnitudes.a, codes.a),
          add_products(sum.b, weights.levels.b, weights.magnitudes.b, codes.b)};
}
// Values of 0 to 15.
SCANT_INLINE __m256i add_products_of_nibbles(__m256i sum, __m256i values, __m256i codes) {
  const __m256i two = _mm256_maddubs_epi16(values, codes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
}
SCANT_INLINE Vi add_products_of_nibbles(Vi sum, Vi values, Vi codes) {
  return {add_products_of_nibbles(sum.a, values.a, codes.a),
          add_products_of_nibbles(sum.b, values.b, codes.b)};
}
