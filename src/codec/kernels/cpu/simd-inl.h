// Vectors as the codec's kernels use them: at most eight lanes of 32 bits, because a quad is eight
// streams wide. Included once for each instruction set, after highway.h; see cpu/stream.cc.
#if defined(SCANT_CODEC_KERNELS_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCANT_CODEC_KERNELS_SIMD_INL_H
#undef SCANT_CODEC_KERNELS_SIMD_INL_H
#else
#define SCANT_CODEC_KERNELS_SIMD_INL_H
#endif

#include <hwy/highway.h>

#include "codec/kernels/cpu/internal.h"
#include "codec/kernels/cpu/simd.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::CappedTag<float, 8>;
using Du = hn::RebindToUnsigned<Df>;
using Di = hn::RebindToSigned<Df>;
using Vf = hn::Vec<Df>;
using Vu = hn::Vec<Du>;
using Vi = hn::Vec<Di>;
using Mf = hn::Mask<Df>;

using Db = hn::Repartition<uint8_t, Df>;
using Dsb = hn::Repartition<int8_t, Df>;
using Dh = hn::Repartition<int16_t, Df>;
using Duh = hn::Repartition<uint16_t, Df>;
using Vb = hn::Vec<Db>;
using Vh = hn::Vec<Dh>;

constexpr size_t kLanes = hn::MaxLanes(Df());
constexpr size_t kSumVectors = kSumLanes / kLanes;
constexpr size_t kGroupVectors = kGroupElements / kLanes;

// The same 16 bytes in each 128-bit block, which is what TableLookupBytes looks into.
struct Table {
  alignas(16) uint8_t bytes[16] = {};
};
HWY_INLINE Vb load_table(const Table& table) { return hn::LoadDup128(Db(), table.bytes); }

HWY_INLINE Vu magnitude(Vf v) { return hn::And(hn::BitCast(Du(), v), hn::Set(Du(), 0x7FFFFFFFu)); }
HWY_INLINE Mf finite(Vf v) {
  const Vi bits = hn::BitCast(Di(), magnitude(v));
  return hn::RebindMask(Df(), hn::Lt(bits, hn::Set(Di(), static_cast<int32_t>(kInfinityBits))));
}

// draw_word() for `kLanes` counters: what its hash begins with, from `counter` on; the same for the
// kLanes behind; and the hash.
constexpr uint32_t kDrawStep = 0x9E3779B9u;
HWY_INLINE Vu draw_seeds(DrawKey key, uint32_t counter) {
  const Vu steps = hn::Mul(hn::Iota(Du(), 0), hn::Set(Du(), kDrawStep));
  return hn::Add(steps, hn::Set(Du(), counter * kDrawStep + key.add));
}
HWY_INLINE Vu next_seeds(Vu seeds) {
  return hn::Add(seeds, hn::Set(Du(), static_cast<uint32_t>(kLanes) * kDrawStep));
}
HWY_INLINE Vu hashed(DrawKey key, Vu x) {
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(Du(), 0x7FEB352Du));
  x = hn::Xor(hn::Xor(x, hn::ShiftRight<15>(x)), hn::Set(Du(), key.flip));
  x = hn::Mul(x, hn::Set(Du(), 0x846CA68Bu));
  return hn::Xor(x, hn::ShiftRight<16>(x));
}
HWY_INLINE Vu draw_words(DrawKey key, uint32_t counter) {
  return hashed(key, draw_seeds(key, counter));
}
// The 16 bits of the first and of the second half of a group.
template <bool kSecond>
HWY_INLINE Vu draws(Vu words) {
  if constexpr (kSecond) return hn::ShiftRight<16>(words);
  return hn::And(words, hn::Set(Du(), 0xFFFFu));
}
HWY_INLINE Vf unit_draws(Vu draw) {
  const Vf x = hn::ConvertTo(Df(), hn::BitCast(Di(), draw));
  return hn::Mul(hn::Add(x, hn::Set(Df(), 0.5f)), hn::Set(Df(), 0x1p-16f));
}

// Conversions of numbers far below 2^31, which spares the care that Highway takes of larger ones: a
// group's scale is at least its maximum over 2^20.
HWY_INLINE Vi nearest_int(Vf v) {
#if HWY_ARCH_X86
  return Vi{_mm256_cvtps_epi32(v.raw)};
#else
  return hn::NearestInt(v);
#endif
}
HWY_INLINE Vi truncated(Vf v) {
#if HWY_ARCH_X86
  return Vi{_mm256_cvttps_epi32(v.raw)};
#else
  return hn::ConvertTo(Di(), v);
#endif
}

// Two vectors of 16-bit numbers as bytes, clamped; those of each 128-bit block stay in it, `first`
// below `second`.
HWY_INLINE Vb pack_bytes(Vh first, Vh second) {
#if HWY_ARCH_X86
  return Vb{_mm256_packus_epi16(first.raw, second.raw)};
#else
  const hn::Half<Db> half;
  return hn::Combine(Db(), hn::DemoteTo(half, second), hn::DemoteTo(half, first));
#endif
}
// The same, as signed bytes.
HWY_INLINE Vb pack_signed(Vh first, Vh second) {
#if HWY_ARCH_X86
  return Vb{_mm256_packs_epi16(first.raw, second.raw)};
#else
  const hn::Half<Dsb> half;
  return hn::BitCast(Db(),
                     hn::Combine(Dsb(), hn::DemoteTo(half, second), hn::DemoteTo(half, first)));
#endif
}

// All lanes of vector k, of kLanes vectors, in lane k: first lanes i and i + 4, then + 2, + 1.
template <class D, class Op>
HWY_INLINE hn::Vec<D> across(D d, const hn::Vec<D>* v, const Op& op) {
  const hn::Repartition<uint64_t, D> pairs;
  hn::Vec<D> four[4];
  for (size_t k = 0; k < 4; ++k) {
    if constexpr (kLanes == 8) {
      four[k] =
          op(hn::ConcatLowerLower(d, v[k + 4], v[k]), hn::ConcatUpperUpper(d, v[k + 4], v[k]));
    } else {
      four[k] = v[k];
    }
  }
  const auto folded = [&](hn::Vec<D> a, hn::Vec<D> b) HWY_ATTR {
    const auto x = hn::BitCast(pairs, a);
    const auto y = hn::BitCast(pairs, b);
    return op(hn::BitCast(d, hn::InterleaveLower(pairs, x, y)),
              hn::BitCast(d, hn::InterleaveUpper(pairs, x, y)));
  };
  const auto even = folded(four[0], four[2]);
  const auto odd = folded(four[1], four[3]);
  return folded(hn::InterleaveLower(d, even, odd), hn::InterleaveUpper(d, even, odd));
}

// The cache lines of elements [i, end), into the second-level cache.
HWY_INLINE void fetch(Ahead ahead, size_t i, size_t end) {
  constexpr size_t kLineBytes = 64;
  if (ahead.gradient == nullptr) return;
  const auto* const gradient = reinterpret_cast<const std::byte*>(ahead.gradient);
  for (size_t at = i * sizeof(float); at < end * sizeof(float); at += kLineBytes)
    __builtin_prefetch(gradient + at, 0, 2);
  for (size_t at = i * ahead.residual_bytes; at < end * ahead.residual_bytes; at += kLineBytes)
    __builtin_prefetch(ahead.residual + at, 0, 2);
}

// Magnitudes of groups: collects kLanes of them, then gives them together.
class Survey {
 public:
  HWY_INLINE Survey() {
    for (Vf& mean : means_) mean = hn::Zero(Df());
    for (Vu& largest : largest_) largest = hn::Zero(Du());
  }
  HWY_INLINE void begin() {
    for (Vf& sum : sums_) sum = hn::Zero(Df());
    most_ = hn::Zero(Du());
  }
  // Vector j of the group.
  HWY_INLINE void add(size_t j, Vf v) {
    const Vu bits = magnitude(v);
    const Vf part = hn::Mul(hn::BitCast(Df(), bits), hn::Set(Df(), 1.0f / float{kGroupElements}));
    sums_[j % kSumVectors] = hn::Add(sums_[j % kSumVectors], part);
    most_ = hn::Max(most_, bits);
  }
  HWY_INLINE Vu most() const { return most_; }
  // Ends group g; every kLanes groups, and after the last, `flush` stores them.
  HWY_INLINE void end(size_t g) {
    means_[g % kLanes] = kSumVectors == 2 ? hn::Add(sums_[0], sums_[kSumVectors - 1])
                                          : hn::Add(hn::Add(sums_[0], sums_[kSumVectors / 2]),
                                                    hn::Add(sums_[1], sums_[kSumVectors - 1]));
    largest_[g % kLanes] = most_;
  }
  HWY_INLINE void flush(float* mean, float* largest) const {
    const auto add = [](Vf a, Vf b) HWY_ATTR { return hn::Add(a, b); };
    const auto max = [](Vu a, Vu b) HWY_ATTR { return hn::Max(a, b); };
    hn::StoreU(across(Df(), means_, add), Df(), mean);
    hn::StoreU(hn::BitCast(Df(), across(Du(), largest_, max)), Df(), largest);
  }

 private:
  Vf sums_[kSumVectors];
  Vu most_;
  Vf means_[kLanes];
  Vu largest_[kLanes];
};

}  // namespace
}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // included for this target
