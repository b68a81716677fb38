// Scales of groups, for cpu/quantise.cc: a chunk of groups takes the passes survey (mean and
// maximum), guess, least squares and naming, each free of long chains. Magnitudes are compared with
// levels as bytes, 32 at a time on a 256-bit vector. Included once for each instruction set.
#if defined(SCANT_CODEC_KERNELS_SCALES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCANT_CODEC_KERNELS_SCALES_INL_H
#undef SCANT_CODEC_KERNELS_SCALES_INL_H
#else
#define SCANT_CODEC_KERNELS_SCALES_INL_H
#endif

#include "codec/kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {

constexpr size_t kChunkQuads = 4;
constexpr size_t kChunkGroups = 4 * kChunkQuads;
constexpr size_t kQuadGroups = kQuadElements / kGroupElements;

// Magnitudes in units are bytes. Comparisons are signed, hence 0x80.
// With the eight levels of q4 every 16 units hold at most one threshold: what the upper four
// bits leave open takes a single comparison.
constexpr Table coarse_levels() {
  Table result;
  for (size_t bin = 0; bin < 16; ++bin) {
    for (size_t m = 0; m + 1 < kLevels4.size(); ++m) {
      if (threshold_above(ValueKind::q4, m) < static_cast<int>(16 * bin)) ++result.bytes[bin];
    }
  }
  return result;
}
constexpr Table fine_thresholds() {
  Table result;
  for (uint8_t& byte : result.bytes) byte = 0x7F;  // none: nothing is greater
  for (size_t m = 0; m + 1 < kLevels4.size(); ++m) {
    const int threshold = threshold_above(ValueKind::q4, m);
    result.bytes[threshold / 16] = static_cast<uint8_t>((threshold - 1) ^ 0x80);
  }
  return result;
}
constexpr bool one_threshold_a_bin() {
  for (size_t m = 1; m + 1 < kLevels4.size(); ++m) {
    if (threshold_above(ValueKind::q4, m) / 16 == threshold_above(ValueKind::q4, m - 1) / 16)
      return false;
  }
  return threshold_above(ValueKind::q4, kLevels4.size() - 2) < 256;
}
static_assert(one_threshold_a_bin(), "levels of q4 are too close: use larger units");

// What a code of this kind means, as signed bytes.
template <ValueKind kind>
constexpr Table signed_levels() {
  Table result;
  const auto table = levels(kind);
  for (size_t m = 0; m < table.size(); ++m) {
    result.bytes[m] = table[m];
    result.bytes[m + table.size()] = static_cast<uint8_t>(-static_cast<int>(table[m]));
  }
  return result;
}

template <ValueKind kind>
constexpr float kUnits = static_cast<float>(units(kind));
constexpr Table kCoarse = coarse_levels();
constexpr Table kFine = fine_thresholds();
template <ValueKind kind>
constexpr Table kSigned = signed_levels<kind>();
// Minus one where the byte is greater than its limit; both with 0x80 flipped.
HWY_INLINE Vb above(Vb biased, Vb limit) {
  const Dsb d;
  const auto greater = hn::Gt(hn::BitCast(d, biased), hn::BitCast(d, limit));
  return hn::BitCast(Db(), hn::VecFromMask(d, greater));
}

// How many thresholds each magnitude has reached.
template <ValueKind kind>
HWY_INLINE Vb nearest_levels(Vb in_units) {
  const Vb biased = hn::Xor(in_units, hn::Set(Db(), uint8_t{0x80}));
  if constexpr (kind == ValueKind::q4) {
    const auto shifted = hn::ShiftRight<4>(hn::BitCast(Duh(), in_units));
    const Vb bin = hn::And(hn::BitCast(Db(), shifted), hn::Set(Db(), uint8_t{0x0F}));
    return hn::Sub(hn::TableLookupBytes(load_table(kCoarse), bin),
                   above(biased, hn::TableLookupBytes(load_table(kFine), bin)));
  } else {
    Vb m = hn::Zero(Db());
    for (size_t next = 1; next < levels(kind).size(); ++next) {
      const int limit = threshold_above(kind, next - 1) - 1;
      m = hn::Sub(m, above(biased, hn::Set(Db(), static_cast<uint8_t>(limit ^ 0x80))));
    }
    return m;
  }
}

// Squares of bytes up to 127, added up four by four.
HWY_INLINE Vi squares_of(Vb v) {
#if HWY_ARCH_X86
  return Vi{_mm256_madd_epi16(_mm256_maddubs_epi16(v.raw, v.raw), _mm256_set1_epi16(1))};
#else
  const Vh even = hn::BitCast(Dh(), hn::And(hn::BitCast(Duh(), v), hn::Set(Duh(), uint16_t{0xFF})));
  const Vh odd = hn::BitCast(Dh(), hn::ShiftRight<8>(hn::BitCast(Duh(), v)));
  Vi upper = hn::Zero(Di());
  Vi sum = hn::ReorderWidenMulAccumulate(Di(), even, even, hn::Zero(Di()), upper);
  sum = hn::ReorderWidenMulAccumulate(Di(), odd, odd, sum, upper);
  return hn::Add(sum, upper);
#endif
}

// Results of the passes over a chunk.
struct Groups {
  alignas(32) float mean[kChunkGroups];
  alignas(32) float largest[kChunkGroups];
  alignas(32) float guess[kChunkGroups];
  alignas(32) float inverse[kChunkGroups];  // what magnitudes are multiplied by
  alignas(32) float scale[kChunkGroups];
  alignas(32) int32_t products[kChunkGroups];
  alignas(32) int32_t squares[kChunkGroups];
};

HWY_INLINE void survey(const float* work, size_t groups, Groups& to) {
  Survey survey;
  for (size_t g = 0; g < groups; ++g) {
    survey.begin();
    for (size_t j = 0; j < kGroupVectors; ++j) {
      survey.add(j, hn::LoadU(Df(), work + g * kGroupElements + j * kLanes));
    }
    survey.end(g);
    if (g % kLanes == kLanes - 1 || g + 1 == groups) {
      survey.flush(to.mean + g / kLanes * kLanes, to.largest + g / kLanes * kLanes);
    }
  }
}

// Scale bits become the group's code, scale and inverse. `inverse`: 0 where the group is zero.
template <typename Inverse>
HWY_INLINE void name_scales(Vi scale_bits, uint32_t base, size_t g, Groups& to, uint8_t* codes,
                            const Inverse& inverse) {
  const Vi most = hn::Set(Di(), static_cast<int32_t>(kScaleBitsMax));
  const Vi from_base = hn::Sub(hn::Min(scale_bits, most), hn::Set(Di(), static_cast<int>(base)));
  const Vi code = hn::Max(hn::Min(from_base, hn::Set(Di(), 255)), hn::Zero(Di()));
  const auto sent = hn::Gt(code, hn::Zero(Di()));
  const Vi bits = hn::ShiftLeft<20>(hn::Add(code, hn::Set(Di(), static_cast<int>(base))));
  const Vf scale = hn::BitCast(Df(), hn::IfThenElseZero(sent, bits));
  hn::StoreU(scale, Df(), to.scale + g);
  hn::StoreU(hn::IfThenElseZero(hn::RebindMask(Df(), sent), inverse(scale)), Df(), to.inverse + g);
  const hn::Rebind<uint8_t, Df> bytes;
  hn::StoreU(hn::DemoteTo(bytes, code), bytes, codes);
}

// scale_bits_nearest(), scale_bits_up()
HWY_INLINE Vi bits_nearest(Vf scale) {
  const Vi rounded = hn::ShiftRight<20>(hn::Add(hn::BitCast(Di(), scale), hn::Set(Di(), 1 << 19)));
  return hn::IfThenElseZero(hn::Gt(rounded, hn::Set(Di(), 7)), rounded);
}
HWY_INLINE Vi bits_up(Vf scale) {
  const Vi rounded = hn::ShiftRight<20>(hn::Add(hn::BitCast(Di(), scale), hn::Set(Di(), 0xFFFFF)));
  return hn::IfThenElseZero(hn::Gt(rounded, hn::Zero(Di())), hn::Max(rounded, hn::Set(Di(), 8)));
}

// Chunks are padded to whole vectors of groups: the numbers there are never used.
template <ValueKind kind>
HWY_INLINE void guess_scales(Groups& groups) {
  constexpr ScaleStart kStart = scale_start(kind);
  for (size_t g = 0; g < kChunkGroups; g += kLanes) {
    const Vf mean = hn::Mul(hn::Set(Df(), kStart.of_mean), hn::LoadU(Df(), groups.mean + g));
    const Vf most = hn::Mul(hn::Set(Df(), kStart.of_max), hn::LoadU(Df(), groups.largest + g));
    const Vf sum = hn::Add(mean, most);
    const Mf usable = hn::Ge(sum, hn::Set(Df(), kScaleMin));
    const Vf inverse = hn::Div(hn::Set(Df(), kUnits<kind>), sum);
    hn::StoreU(hn::IfThenElseZero(usable, sum), Df(), groups.guess + g);
    hn::StoreU(hn::IfThenElseZero(usable, inverse), Df(), groups.inverse + g);
  }
}

HWY_INLINE Vi rounded_units(const float* from, Vf inverse) {
  return nearest_int(hn::Mul(hn::Abs(hn::LoadU(Df(), from)), inverse));
}

// Sums of units * level and of level * level, in integers, so that their order is free.
template <ValueKind kind>
HWY_INLINE void least_squares(const float* work, size_t groups, Groups& to) {
  const Vb table = load_table(kSigned<kind>);
  const auto add = [](Vi a, Vi b) HWY_ATTR { return hn::Add(a, b); };
  for (size_t first = 0; first < groups; first += kLanes) {
    Vi products[kLanes];
    Vi squares[kLanes];
    for (Vi& v : products) v = hn::Zero(Di());
    for (Vi& v : squares) v = hn::Zero(Di());
    for (size_t g = first; g < std::min(first + kLanes, groups); ++g) {
      const Vf inverse = hn::Set(Df(), to.inverse[g]);
      Vi sums[2] = {hn::Zero(Di()), hn::Zero(Di())};
      Vi square = hn::Zero(Di());
      for (size_t j = 0; j < kGroupVectors; j += 4) {
        const float* const from = work + g * kGroupElements + j * kLanes;
        const Vh a = hn::ReorderDemote2To(Dh(), rounded_units(from, inverse),
                                          rounded_units(from + kLanes, inverse));
        const Vh b = hn::ReorderDemote2To(Dh(), rounded_units(from + 2 * kLanes, inverse),
                                          rounded_units(from + 3 * kLanes, inverse));
        const Vb level = hn::TableLookupBytes(table, nearest_levels<kind>(pack_bytes(a, b)));
        const Vb zero = hn::Zero(Db());
        const Vh level_a = hn::BitCast(Dh(), hn::InterleaveLower(Db(), level, zero));
        const Vh level_b = hn::BitCast(Dh(), hn::InterleaveUpper(Db(), level, zero));
        sums[0] = hn::ReorderWidenMulAccumulate(Di(), a, level_a, sums[0], sums[1]);
        sums[0] = hn::ReorderWidenMulAccumulate(Di(), b, level_b, sums[0], sums[1]);
        square = hn::Add(square, squares_of(level));
      }
      products[g - first] = hn::Add(sums[0], sums[1]);
      squares[g - first] = square;
    }
    hn::StoreU(across(Di(), products, add), Di(), to.products + first);
    hn::StoreU(across(Di(), squares, add), Di(), to.squares + first);
  }
}

template <ValueKind kind>
HWY_INLINE void fitted_scales(uint32_t base, Groups& groups, uint8_t* codes) {
  for (size_t g = 0; g < kChunkGroups; g += kLanes) {
    Vf best = hn::LoadU(Df(), groups.guess + g);
    if constexpr (fits_scale(kind)) {
      const Vf products = hn::ConvertTo(Df(), hn::LoadU(Di(), groups.products + g));
      const Vf squares = hn::ConvertTo(Df(), hn::LoadU(Di(), groups.squares + g));
      best = hn::Mul(hn::Mul(best, hn::Set(Df(), 1.0f / kUnits<kind>)), hn::Div(products, squares));
    }
    name_scales(bits_nearest(best), base, g, groups, codes + g,
                [](Vf scale) HWY_ATTR { return hn::Div(hn::Set(Df(), kUnits<kind>), scale); });
  }
}

// A single level: its best scale is the mean over it.
HWY_INLINE void mean_scales(uint32_t base, Groups& groups, uint8_t* codes) {
  for (size_t g = 0; g < kChunkGroups; g += kLanes) {
    const Vf best =
        hn::Div(hn::LoadU(Df(), groups.mean + g), hn::Set(Df(), static_cast<float>(kLevels1[0])));
    name_scales(bits_nearest(best), base, g, groups, codes + g,
                [](Vf) HWY_ATTR { return hn::Zero(Df()); });
  }
}

// Nothing exceeds the highest level.
template <ValueKind kind>
HWY_INLINE void covering_scales(uint32_t base, Groups& groups, uint8_t* codes) {
  const float top = kind == ValueKind::q8 ? 127.0f : static_cast<float>(levels(kind).back());
  for (size_t g = 0; g < kChunkGroups; g += kLanes) {
    const Vf least = hn::Div(hn::LoadU(Df(), groups.largest + g), hn::Set(Df(), top));
    name_scales(bits_up(least), base, g, groups, codes + g,
                [](Vf scale) HWY_ATTR { return hn::Div(hn::Set(Df(), 1.0f), scale); });
  }
}

// The last `padding` values of the last group are zeros that do not count.
template <ValueKind kind, bool kStochastic>
HWY_INLINE void find_scales(const float* work, size_t count, uint32_t base, Groups& groups,
                            uint8_t* codes, size_t padding = 0) {
  if constexpr (kStochastic || kind == ValueKind::q8) {
    covering_scales<kind>(base, groups, codes);
  } else if constexpr (kind == ValueKind::q1) {
    mean_scales(base, groups, codes);
  } else {
    guess_scales<kind>(groups);
    if constexpr (fits_scale(kind)) {
      least_squares<kind>(work, count, groups);
      constexpr int kLowest = levels(kind).front();  // the level of zero
      groups.squares[count - 1] -= static_cast<int>(padding) * kLowest * kLowest;
    }
    fitted_scales<kind>(base, groups, codes);
  }
}

}  // namespace
}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // included for this target
