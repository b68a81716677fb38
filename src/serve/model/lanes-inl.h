// Sixteen floats at once: one vector of AVX-512, two of AVX2, four of NEON. Included once for each
// instruction set, after highway.h; step_reference.cc has the same without vectors. No sum goes
// across lanes, so every instruction set gives the same bits.
#if defined(SCANT_SERVE_LANES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCANT_SERVE_LANES_INL_H
#undef SCANT_SERVE_LANES_INL_H
#else
#define SCANT_SERVE_LANES_INL_H
#endif

#include <hwy/highway.h>

#include "serve/model/step_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace scant::serve::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::CappedTag<float, kLanes>;
using Di = hn::RebindToSigned<Df>;
using Dh = hn::Rebind<uint16_t, Df>;
using Db = hn::Rebind<int8_t, Df>;
constexpr size_t kVectorLanes = hn::MaxLanes(Df());
constexpr size_t kVectors = kLanes / kVectorLanes;
// How many rows, and pages or columns, share what was loaded: by the number of registers.
constexpr size_t kRowsTogether = HWY_TARGET == HWY_AVX3 ? 4 : 2;
constexpr size_t kLanesTogether = HWY_TARGET == HWY_AVX3 ? 4 : 2;

struct Lanes {
  // An implicit one would not be compiled for the instruction set, and NEON's vectors have one too.
  HWY_INLINE Lanes() {}  // NOLINT(modernize-use-equals-default)
  hn::Vec<Df> v[kVectors];
};

template <typename Of>
HWY_INLINE Lanes each(const Of& of) {
  Lanes out;
  for (size_t i = 0; i < kVectors; ++i) out.v[i] = of(i);
  return out;
}

HWY_INLINE Lanes load(const float* from) {
  return each([&](size_t i) { return hn::LoadU(Df(), from + i * kVectorLanes); });
}
HWY_INLINE void store(const Lanes& x, float* to) {
  for (size_t i = 0; i < kVectors; ++i) hn::StoreU(x.v[i], Df(), to + i * kVectorLanes);
}
HWY_INLINE Lanes load_bf16(const uint16_t* from) {
  return each([&](size_t i) {
    const auto half =
        hn::PromoteTo(hn::RebindToUnsigned<Df>(), hn::LoadU(Dh(), from + i * kVectorLanes));
    return hn::BitCast(Df(), hn::ShiftLeft<16>(half));
  });
}
HWY_INLINE Lanes load_i8(const int8_t* from) {
  return each([&](size_t i) {
    const auto wide = hn::PromoteTo(Di(), hn::LoadU(Db(), from + i * kVectorLanes));
    return hn::ConvertTo(Df(), wide);
  });
}
HWY_INLINE Lanes set(float value) {
  const auto one = hn::Set(Df(), value);
  return each([&](size_t) { return one; });
}

HWY_INLINE Lanes add(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return hn::Add(a.v[i], b.v[i]); });
}
HWY_INLINE Lanes sub(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return hn::Sub(a.v[i], b.v[i]); });
}
HWY_INLINE Lanes mul(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return hn::Mul(a.v[i], b.v[i]); });
}
HWY_INLINE Lanes div(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return hn::Div(a.v[i], b.v[i]); });
}
HWY_INLINE Lanes max(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return hn::Max(a.v[i], b.v[i]); });
}
HWY_INLINE Lanes min(const Lanes& a, const Lanes& b) {
  return each([&](size_t i) { return hn::Min(a.v[i], b.v[i]); });
}
HWY_INLINE Lanes abs(const Lanes& a) {
  return each([&](size_t i) { return hn::Abs(a.v[i]); });
}
// a * b + c, rounded once
HWY_INLINE Lanes fma(const Lanes& a, const Lanes& b, const Lanes& c) {
  return each([&](size_t i) { return hn::MulAdd(a.v[i], b.v[i], c.v[i]); });
}
HWY_INLINE Lanes round(const Lanes& a) {
  return each([&](size_t i) { return hn::Round(a.v[i]); });
}
// 2^n of whole n from -126 to 127
HWY_INLINE Lanes power_of_two(const Lanes& n) {
  return each([&](size_t i) {
    const auto whole = hn::ConvertTo(Di(), n.v[i]);
    return hn::BitCast(Df(), hn::ShiftLeft<23>(hn::Add(whole, hn::Set(Di(), 127))));
  });
}
// Of all lanes. The order does not matter.
HWY_INLINE float largest_of(const Lanes& a) {
  auto most = a.v[0];
  for (size_t i = 1; i < kVectors; ++i) most = hn::Max(most, a.v[i]);
  return hn::GetLane(hn::MaxOfLanes(Df(), most));
}
// then where x < limit, else otherwise
HWY_INLINE Lanes where_less(const Lanes& x, const Lanes& limit, const Lanes& then,
                            const Lanes& otherwise) {
  return each([&](size_t i) {
    return hn::IfThenElse(hn::Lt(x.v[i], limit.v[i]), then.v[i], otherwise.v[i]);
  });
}
HWY_INLINE Lanes where_nan(const Lanes& x, const Lanes& otherwise) {
  return each(
      [&](size_t i) { return hn::IfThenElse(hn::Eq(x.v[i], x.v[i]), otherwise.v[i], x.v[i]); });
}

}  // namespace
}  // namespace scant::serve::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // guard of this instruction set
