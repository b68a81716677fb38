// Vectors as the codec's kernels use them: at most eight lanes of 32 bits, because a quad is eight
// streams wide. Included once for each instruction set, after highway.h; see kernels_stream.cc.
#if defined(SCANT_CODEC_KERNELS_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCANT_CODEC_KERNELS_SIMD_INL_H
#undef SCANT_CODEC_KERNELS_SIMD_INL_H
#else
#define SCANT_CODEC_KERNELS_SIMD_INL_H
#endif

#include <hwy/highway.h>

#include "codec/kernels_internal.h"
#include "codec/kernels_simd.h"

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

constexpr size_t kLanes = hn::MaxLanes(Df());
constexpr size_t kSumVectors = kSumLanes / kLanes;
constexpr size_t kGroupVectors = kGroupElements / kLanes;

HWY_INLINE Vu magnitude(Vf v) { return hn::And(hn::BitCast(Du(), v), hn::Set(Du(), 0x7FFFFFFFu)); }
HWY_INLINE Mf finite(Vf v) {
  const Vi bits = hn::BitCast(Di(), magnitude(v));
  return hn::RebindMask(Df(), hn::Lt(bits, hn::Set(Di(), static_cast<int32_t>(kInfinityBits))));
}

// draw_word() for `kLanes` counters from `counter` on.
HWY_INLINE Vu draw_words(DrawKey key, uint32_t counter) {
  const Vu first = hn::Iota(Du(), counter);
  Vu x = hn::Add(hn::Mul(first, hn::Set(Du(), 0x9E3779B9u)), hn::Set(Du(), key.add));
  x = hn::Mul(hn::Xor(x, hn::ShiftRight<16>(x)), hn::Set(Du(), 0x7FEB352Du));
  x = hn::Xor(hn::Xor(x, hn::ShiftRight<15>(x)), hn::Set(Du(), key.flip));
  x = hn::Mul(x, hn::Set(Du(), 0x846CA68Bu));
  return hn::Xor(x, hn::ShiftRight<16>(x));
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

// The largest lane; no lane is negative.
HWY_INLINE float max_lane(Vf v) { return hn::GetLane(hn::MaxOfLanes(Df(), v)); }

}  // namespace
}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // included for this target
