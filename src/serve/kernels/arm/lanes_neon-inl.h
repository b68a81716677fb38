// Sixteen lanes of 32 bits, one for each row of a strip, in four registers of NEON. Included within
// the namespace of an instruction set; SCANT_HAS_DOT says whether it has products of four bytes.

inline constexpr size_t kTokensAtOnce = 4;       // as many sums as registers hold
inline constexpr size_t kTokensFew = 4;          // of codes, that are multiplied as they are read
inline constexpr size_t kPairTokensFew = 2;      // of bf16, likewise
inline constexpr size_t kFloatTokensAtOnce = 3;  // and tokens, of f32 and f16
inline constexpr size_t kRowsAtOnce = 2;         // of f32 and f16

// --- Vectors of 128 bits

using V128 = uint8x16_t;
SCANT_INLINE V128 load_128(const void* from) { return vld1q_u8(static_cast<const uint8_t*>(from)); }
SCANT_INLINE V128 load_64(const void* from) {
  return vcombine_u8(vld1_u8(static_cast<const uint8_t*>(from)), vdup_n_u8(0));
}
SCANT_INLINE void store_128(void* to, V128 value) { vst1q_u8(static_cast<uint8_t*>(to), value); }
SCANT_INLINE void store_64(void* to, V128 value) {
  vst1_u8(static_cast<uint8_t*>(to), vget_low_u8(value));
}
// Indices of bytes below 16; 128: a zero.
SCANT_INLINE V128 look_up_128(V128 table, V128 index) { return vqtbl1q_u8(table, index); }
SCANT_INLINE V128 low_nibbles(V128 a) { return vandq_u8(a, vdupq_n_u8(15)); }
SCANT_INLINE V128 high_nibbles(V128 a) { return vshrq_n_u8(a, 4); }
SCANT_INLINE V128 zip_low(V128 a, V128 b) { return vzip1q_u8(a, b); }
SCANT_INLINE V128 zip_high(V128 a, V128 b) { return vzip2q_u8(a, b); }
SCANT_INLINE size_t kept_of(uint64_t bits) {
  return static_cast<size_t>(__builtin_popcountll(bits));
}

// Sets how this thread treats denormals, and sets it back. A result counts as denormal before it is
// rounded: docs/serve.md, "Products".
class FlushDenormals {
 public:
  FlushDenormals() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    set(before_ | uint64_t{1} << 24U);
  }
  ~FlushDenormals() { set(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static void set(uint64_t mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
  uint64_t before_ = 0;
};

// --- Sixteen lanes

struct Vf {
  float32x4_t v[4];
};
struct Vi {
  int32x4_t v[4];
};

template <typename Of>
SCANT_INLINE Vf each_f(const Of& of) {
  return {{of(0), of(1), of(2), of(3)}};
}
template <typename Of>
SCANT_INLINE Vi each_i(const Of& of) {
  return {{of(0), of(1), of(2), of(3)}};
}
SCANT_INLINE int8x16_t bytes(int32x4_t a) { return vreinterpretq_s8_s32(a); }
SCANT_INLINE uint8x16_t unsigned_bytes(int32x4_t a) { return vreinterpretq_u8_s32(a); }
SCANT_INLINE uint32x4_t unsigned_lanes(int32x4_t a) { return vreinterpretq_u32_s32(a); }

SCANT_INLINE Vf every_f(float value) {
  return each_f([&](size_t) { return vdupq_n_f32(value); });
}
SCANT_INLINE Vf zero_f() { return every_f(0); }
SCANT_INLINE Vf load_f(const float* from) {
  return each_f([&](size_t i) { return vld1q_f32(from + 4 * i); });
}
SCANT_INLINE void store_f(float* to, const Vf& value) {
  for (size_t i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, value.v[i]);
}
// n: at most 16.
SCANT_INLINE Vf load_first(const float* from, size_t n) {
  float first[16] = {};
  std::memcpy(first, from, n * sizeof(float));
  return load_f(first);
}
SCANT_INLINE void store_first(float* to, const Vf& value, size_t n) {
  float all[16];
  store_f(all, value);
  std::memcpy(to, all, n * sizeof(float));
}
SCANT_INLINE Vf multiply_add(const Vf& a, const Vf& b, const Vf& sum) {
  return each_f([&](size_t i) { return vfmaq_f32(sum.v[i], a.v[i], b.v[i]); });
}
SCANT_INLINE Vf times(const Vf& a, const Vf& b) {
  return each_f([&](size_t i) { return vmulq_f32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vf plus(const Vf& a, const Vf& b) {
  return each_f([&](size_t i) { return vaddq_f32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vf of_integers(const Vi& value) {
  return each_f([&](size_t i) { return vcvtq_f32_s32(value.v[i]); });
}
SCANT_INLINE float32x4_t four_of_halves(uint16x4_t bits) {
  return vcvt_f32_f16(vreinterpret_f16_u16(bits));
}
SCANT_INLINE Vf of_halves(const std::byte* from) {
  const auto* const bytes_from = reinterpret_cast<const uint8_t*>(from);
  return each_f(
      [&](size_t i) { return four_of_halves(vreinterpret_u16_u8(vld1_u8(bytes_from + 8 * i))); });
}
// Lane i + 8 to i, then + 4, + 2, + 1.
SCANT_INLINE float fold(const Vf& lanes) {
  const float32x4_t four =
      vaddq_f32(vaddq_f32(lanes.v[0], lanes.v[2]), vaddq_f32(lanes.v[1], lanes.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

SCANT_INLINE Vi every_i(int32_t value) {
  return each_i([&](size_t) { return vdupq_n_s32(value); });
}
SCANT_INLINE Vi load_i(const void* from) {
  const auto* const at = static_cast<const int8_t*>(from);
  return each_i([&](size_t i) { return vreinterpretq_s32_s8(vld1q_s8(at + 16 * i)); });
}
SCANT_INLINE void store_i(void* to, const Vi& value) {
  for (size_t i = 0; i < 4; ++i) vst1q_s8(static_cast<int8_t*>(to) + 16 * i, bytes(value.v[i]));
}
SCANT_INLINE Vi both(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vandq_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi either(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vorrq_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi minus8(const Vi& a, const Vi& b) {
  return each_i(
      [&](size_t i) { return vreinterpretq_s32_s8(vsubq_s8(bytes(a.v[i]), bytes(b.v[i]))); });
}
template <int kBits>
SCANT_INLINE Vi down(const Vi& a) {
  if constexpr (kBits == 0) {
    return a;
  } else {
    return each_i([&](size_t i) {
      return vreinterpretq_s32_u32(vshrq_n_u32(unsigned_lanes(a.v[i]), kBits));
    });
  }
}
template <int kBits>
SCANT_INLINE Vi up(const Vi& a) {
  return each_i([&](size_t i) { return vshlq_n_s32(a.v[i], kBits); });
}
SCANT_INLINE Vf as_floats(const Vi& a) {
  return each_f([&](size_t i) { return vreinterpretq_f32_s32(a.v[i]); });
}
SCANT_INLINE Vi as_integers(const Vf& a) {
  return each_i([&](size_t i) { return vreinterpretq_s32_f32(a.v[i]); });
}
// Looks each byte's low four bits up in a table of 16 bytes; the others are zero.
SCANT_INLINE Vi look_up(V128 table, const Vi& index) {
  return each_i([&](size_t i) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(table, unsigned_bytes(index.v[i])));
  });
}
// Bit i of `bits` set: byte i takes `one`'s, else `zero`'s.
SCANT_INLINE Vi choose(uint64_t bits, const Vi& one, const Vi& zero) {
  return each_i([&](size_t i) {
    const uint8x8_t low = vdup_n_u8(static_cast<uint8_t>(bits >> (16 * i)));
    const uint8x8_t high = vdup_n_u8(static_cast<uint8_t>(bits >> (16 * i + 8)));
    const uint8x8_t bit = vcreate_u8(0x8040201008040201ULL);
    const uint8x16_t mask = vtstq_u8(vcombine_u8(low, high), vcombine_u8(bit, bit));
    return vreinterpretq_s32_u8(
        vbslq_u8(mask, unsigned_bytes(one.v[i]), unsigned_bytes(zero.v[i])));
  });
}
SCANT_INLINE Vi sum_of(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vaddq_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi larger(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vmaxq_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi smaller(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vminq_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi where_above(const Vi& value, int32_t bound, const Vi& above, const Vi& otherwise) {
  return each_i([&](size_t i) {
    return vbslq_s32(vcgtq_s32(value.v[i], vdupq_n_s32(bound)), above.v[i], otherwise.v[i]);
  });
}
SCANT_INLINE int32_t largest(const Vi& a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
SCANT_INLINE int32_t total_of(const Vi& a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
SCANT_INLINE Vi nearest(const Vf& a) {
  return each_i([&](size_t i) { return vcvtnq_s32_f32(a.v[i]); });
}
SCANT_INLINE void store_bytes(int8_t* to, const Vi& whole) {
  const int16x8_t low = vcombine_s16(vmovn_s32(whole.v[0]), vmovn_s32(whole.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(whole.v[2]), vmovn_s32(whole.v[3]));
  vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

// The upper 16 bits of each lane.
SCANT_INLINE void store_upper_halves(void* to, const Vi& value) {
  for (size_t i = 0; i < 4; ++i)
    vst1_u8(static_cast<uint8_t*>(to) + 8 * i,
            vreinterpret_u8_u16(vshrn_n_u32(unsigned_lanes(value.v[i]), 16)));
}

// 16 bytes of rows r, r + 4, r + 8 and r + 12.
SCANT_INLINE Vi four_rows(const RowPlaces& rows, size_t offset) {
  return each_i([&](size_t i) { return vreinterpretq_s32_u8(load_128(rows.at[i] + offset)); });
}
SCANT_INLINE Vi low32(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vzip1q_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi high32(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) { return vzip2q_s32(a.v[i], b.v[i]); });
}
SCANT_INLINE Vi low64(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) {
    return vreinterpretq_s32_s64(
        vzip1q_s64(vreinterpretq_s64_s32(a.v[i]), vreinterpretq_s64_s32(b.v[i])));
  });
}
SCANT_INLINE Vi high64(const Vi& a, const Vi& b) {
  return each_i([&](size_t i) {
    return vreinterpretq_s32_s64(
        vzip2q_s64(vreinterpretq_s64_s32(a.v[i]), vreinterpretq_s64_s32(b.v[i])));
  });
}

// 32 bits of 16 rows.
SCANT_INLINE Vi numbers_of_rows(const RowPlaces& rows) {
  int32_t numbers[16];
  for (size_t row = 0; row < 16; ++row) std::memcpy(numbers + row, rows.row(row), sizeof(int32_t));
  return load_i(numbers);
}
// The lower 16 bits of each lane are an f16.
SCANT_INLINE Vf of_low_halves(const Vi& value) {
  return each_f([&](size_t i) { return four_of_halves(vmovn_u32(unsigned_lanes(value.v[i]))); });
}
// f16 of 16 rows.
SCANT_INLINE Vf scales_of_rows(const RowPlaces& rows) {
  return of_low_halves(numbers_of_rows(rows));
}
// The scales of a tile's 16 rows.
SCANT_INLINE Vf tile_scales(const std::byte* from, uint32_t base) {
  const uint8x16_t codes = load_128(from);
  const uint16x8_t wide[2] = {vmovl_u8(vget_low_u8(codes)), vmovl_u8(vget_high_u8(codes))};
  return each_f([&](size_t i) {
    const uint16x8_t eight = wide[i / 2];
    const uint32x4_t four = vmovl_u16(i % 2 == 0 ? vget_low_u16(eight) : vget_high_u16(eight));
    const uint32x4_t bits = vshlq_n_u32(vaddq_u32(four, vdupq_n_u32(base)), codec::kScaleShift);
    return vreinterpretq_f32_u32(vbicq_u32(bits, vceqzq_u32(four)));
  });
}

// Sums of four products of bytes a lane: levels of -128 to 127, codes of -127 to 127.
struct Weights {
  Vi levels;
};
SCANT_INLINE Weights weights_of(const Vi& levels) { return {levels}; }
SCANT_INLINE Vi start_of(int32_t) { return every_i(0); }
SCANT_INLINE Vi add_products(const Vi& sum, const Weights& weights, const Vi& codes) {
  return each_i([&](size_t i) {
    const int8x16_t a = bytes(weights.levels.v[i]);
    const int8x16_t b = bytes(codes.v[i]);
#if SCANT_HAS_DOT
    return vdotq_s32(sum.v[i], a, b);
#else
    // Two products together stay within 16 bits.
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    return vpadalq_s16(sum.v[i], vpaddq_s16(low, vmull_high_s8(a, b)));
#endif
  });
}
// Values of 0 to 15.
SCANT_INLINE Vi add_products_of_nibbles(const Vi& sum, const Vi& values, const Vi& codes) {
  return add_products(sum, {values}, codes);
}
