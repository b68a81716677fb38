// Vector kernels that pass over values once: accumulation, selection, 16-bit values, residuals, the
// final mean. Compiled once for each instruction set (Highway's foreach_target, headers alone); the
// last elements of an array go to the reference.
#include "codec/kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/kernels/cpu/stream.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <cstring>
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

#include "codec/kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {

using D16 = hn::Rebind<uint16_t, Df>;
using D8 = hn::Rebind<int8_t, Df>;

// Sums in the reference's lanes.
struct Sums {
  Vf energy[kSumVectors];
  Vu largest = hn::Zero(Du());
  HWY_INLINE Sums() {
    for (Vf& v : energy) v = hn::Zero(Df());
  }
  HWY_INLINE void add(size_t j, Vf v) {
    energy[j] = hn::Add(energy[j], hn::Mul(v, v));
    largest = hn::Max(largest, magnitude(v));
  }
  HWY_INLINE void store(reference::Sums& to) const {
    for (size_t j = 0; j < kSumVectors; ++j) hn::StoreU(energy[j], Df(), to.lanes + j * kLanes);
    to.magnitude_max = hn::GetLane(hn::MaxOfLanes(Du(), largest));
  }
};

// work = gradient + decay * before
HWY_INLINE Vf step_from(Vf before, const float* gradient, float* work, Vf decay) {
  const Vf after = hn::Add(hn::LoadU(Df(), gradient), hn::Mul(decay, before));
  hn::StoreU(after, Df(), work);
  return after;
}
template <bool kGradient>
HWY_INLINE Vf step(const float* gradient, float* work, Vf decay) {
  const Vf before = hn::LoadU(Df(), work);
  if constexpr (!kGradient) return before;
  return step_from(before, gradient, work, decay);
}

HWY_INLINE Vf load_bytes(const int8_t* stored, Vf scale) {
  const Vi level = hn::PromoteTo(Di(), hn::LoadU(D8(), stored));
  return hn::Mul(hn::ConvertTo(Df(), level), scale);
}

// Whole groups, and what they hold. `before`: of a group; gives a function of the element, which
// gives what was left.
template <bool kGradient, typename Before>
HWY_INLINE size_t accumulate_whole_groups(const float* gradient, const Before& before, float* work,
                                          size_t n, float decay, GroupMagnitudes& groups,
                                          Ahead ahead, reference::Sums& to) {
  Sums sums;
  Survey survey;
  const Vf by = hn::Set(Df(), decay);
  const size_t count = n / kGroupElements;
  for (size_t g = 0; g < count; ++g) {
    survey.begin();
    fetch(ahead, g * (kGroupElements / 2), (g + 1) * (kGroupElements / 2));
    const auto left = before(g);
    for (size_t j = 0; j < kGroupVectors; ++j) {
      const size_t at = g * kGroupElements + j * kLanes;
      const Vf v = kGradient ? step_from(left(at), gradient + at, work + at, by) : left(at);
      sums.energy[j % kSumVectors] = hn::Add(sums.energy[j % kSumVectors], hn::Mul(v, v));
      survey.add(j, v);
    }
    sums.largest = hn::Max(sums.largest, survey.most());
    survey.end(g);
    if (g % kLanes == kLanes - 1 || g + 1 == count) {
      survey.flush(groups.mean + g / kLanes * kLanes, groups.largest + g / kLanes * kLanes);
    }
  }
  sums.store(to);
  return count * kGroupElements;
}

template <bool kGradient>
size_t accumulate_vectors(const float* gradient, float* work, size_t n, float decay,
                          reference::Sums& to) {
  Sums sums;
  const Vf by = hn::Set(Df(), decay);
  size_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
    for (size_t j = 0; j < kSumVectors; ++j) {
      const size_t at = i + j * kLanes;
      sums.add(j, step<kGradient>(kGradient ? gradient + at : nullptr, work + at, by));
    }
  }
  sums.store(to);
  return i;
}

// One bit for each lane that is not below the threshold.
HWY_INLINE uint32_t passed(Vf v, Vf threshold) {
  uint8_t mask[8] = {};
  hn::StoreMaskBits(Df(), hn::Not(hn::Lt(hn::Abs(v), threshold)), mask);
  return mask[0];
}

// Steps of 32 elements: most hold nothing that passes.
template <bool kGradient>
size_t select_vectors(const float* gradient, float* work, size_t n, float decay, float threshold,
                      uint16_t* positions, float* values, size_t& count, reference::Sums& to) {
  constexpr size_t kStep = 32;
  Sums sums;
  const Vf by = hn::Set(Df(), decay);
  const Vf limit = hn::Set(Df(), threshold);
  size_t found = 0;
  size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    uint32_t mask = 0;
    for (size_t j = 0; j < kStep / kLanes; ++j) {
      const size_t at = i + j * kLanes;
      const Vf v = step<kGradient>(kGradient ? gradient + at : nullptr, work + at, by);
      sums.energy[j % kSumVectors] = hn::Add(sums.energy[j % kSumVectors], hn::Mul(v, v));
      mask |= passed(v, limit) << (j * kLanes);
    }
    for (; mask != 0; mask &= mask - 1) {
      const size_t at = i + static_cast<size_t>(__builtin_ctz(mask));
      positions[found] = static_cast<uint16_t>(at);
      values[found] = work[at];
      ++found;
    }
  }
  sums.store(to);
  count = found;
  return i;
}

HWY_INLINE void narrow_bf16(Vf v, float* work, uint16_t* to) {
  const Vu bits = hn::BitCast(Du(), v);
  const Vu sign = hn::And(bits, hn::Set(Du(), 0x80000000u));
  const Vu size = magnitude(v);
  const Vu odd = hn::And(hn::ShiftRight<16>(size), hn::Set(Du(), 1u));
  const Vu sum = hn::Add(size, hn::Add(odd, hn::Set(Du(), 0x7FFFu)));
  const Vu upper = hn::ShiftRight<16>(hn::Or(sign, hn::Min(sum, hn::Set(Du(), 0x7F7FFFFFu))));
  hn::StoreU(hn::DemoteTo(D16(), hn::BitCast(Di(), upper)), D16(), to);
  const Vf widened = hn::BitCast(Df(), hn::ShiftLeft<16>(upper));
  hn::StoreU(hn::Sub(v, widened), Df(), work);
}

HWY_INLINE void narrow_f16(Vf v, float* work, uint16_t* to) {
  const hn::Rebind<hwy::float16_t, Df> half;
  const Vf largest = hn::Set(Df(), 65504.0f);
  const auto narrowed = hn::DemoteTo(half, hn::Max(hn::Min(v, largest), hn::Neg(largest)));
  hn::StoreU(hn::BitCast(D16(), narrowed), D16(), to);
  hn::StoreU(hn::Sub(v, hn::PromoteTo(Df(), narrowed)), Df(), work);
}

// 16-bit values may stand at any address.
HWY_INLINE hn::Vec<D16> load_half(const std::byte* from) {
  const hn::Repartition<uint8_t, D16> bytes;
  return hn::BitCast(D16(), hn::LoadU(bytes, reinterpret_cast<const uint8_t*>(from)));
}
HWY_INLINE Vf widen_bf16(hn::Vec<D16> v) {
  return hn::BitCast(Df(), hn::ShiftLeft<16>(hn::PromoteTo(Du(), v)));
}
template <ValueKind kind>
HWY_INLINE Vf load_value(const std::byte* from) {
  if constexpr (kind == ValueKind::f32) {
    const hn::Repartition<uint8_t, Df> bytes;
    return hn::BitCast(Df(), hn::LoadU(bytes, reinterpret_cast<const uint8_t*>(from)));
  } else if constexpr (kind == ValueKind::bf16) {
    return widen_bf16(load_half(from));
  } else {
    return hn::PromoteTo(Df(), hn::BitCast(hn::Rebind<hwy::float16_t, Df>(), load_half(from)));
  }
}
template <ValueKind kind>
void add_vectors(const std::byte* values, size_t n, float* sum) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vf value = load_value<kind>(values + i * bits(kind) / 8);
    hn::StoreU(hn::Add(hn::LoadU(Df(), sum + i), value), Df(), sum + i);
  }
  reference::add_values(kind, values + i * bits(kind) / 8, n - i, sum + i);
}

HWY_INLINE void round_bf16(Vf v, Vu draw, uint16_t* to) {
  const Vu bits = hn::BitCast(Du(), v);
  const Vu sign = hn::And(bits, hn::Set(Du(), 0x80000000u));
  const Vu size = magnitude(v);
  const Vu sum = hn::Add(size, draw);
  // Up to infinity is not rounded: then the sum exceeds what a finite value may be.
  const auto stays =
      hn::Lt(hn::BitCast(Di(), sum), hn::Set(Di(), static_cast<int32_t>(kInfinityBits)));
  const Vu rounded = hn::IfThenElse(hn::RebindMask(Du(), stays), sum, size);
  const Vu upper = hn::ShiftRight<16>(hn::Or(sign, rounded));
  hn::StoreU(hn::DemoteTo(D16(), hn::BitCast(Di(), upper)), D16(), to);
}

constexpr size_t kResidualGroups = 16;  // whose scales are found together

// The scales of up to kResidualGroups groups; their inverses go to `inverses`.
HWY_INLINE void byte_scales(const float* work, size_t groups, uint16_t* scales, float* inverses) {
  const auto max = [](Vf a, Vf b) HWY_ATTR { return hn::Max(a, b); };
  Vf largest[kLanes];
  for (Vf& v : largest) v = hn::Zero(Df());
  for (size_t g = 0; g < groups; ++g) {
    Vf most = hn::Zero(Df());
    for (size_t j = 0; j < kGroupVectors; ++j) {
      most = hn::Max(most, hn::Abs(hn::LoadU(Df(), work + g * kGroupElements + j * kLanes)));
    }
    largest[g % kLanes] = most;
    if (g % kLanes == kLanes - 1 || g + 1 == groups) {
      hn::StoreU(across(Df(), largest, max), Df(), inverses + g / kLanes * kLanes);
    }
  }
  uint16_t named[kResidualGroups];  // byte_scale(), past `groups` of anything
  for (size_t g = 0; g < groups; g += kLanes) {
    const Vf most = hn::LoadU(Df(), inverses + g);
    const Vf share = hn::Div(most, hn::Set(Df(), 127.0f));
    const Vu rounded = hn::Add(hn::BitCast(Du(), share), hn::Set(Du(), 0xFFFFu));
    const Vu up = hn::Min(hn::ShiftRight<16>(rounded), hn::Set(Du(), kByteScaleMost));
    const Mf kept = hn::Ge(most, hn::Set(Df(), kByteScaleMin));
    const Vu bits = hn::IfThenElseZero(hn::RebindMask(Du(), kept), up);
    hn::StoreU(hn::DemoteTo(D16(), hn::BitCast(Di(), bits)), D16(), named + g);
    const Vf scale = hn::BitCast(Df(), hn::ShiftLeft<16>(bits));
    hn::StoreU(hn::IfThenElseZero(kept, hn::Div(hn::Set(Df(), 1.0f), scale)), Df(), inverses + g);
  }
  std::memcpy(scales, named, groups * sizeof(uint16_t));
}

// Four vectors of numbers as signed bytes, clamped, in their order.
HWY_INLINE void store_bytes(const Vi* v, int8_t* to) {
  // Packing works within blocks of 128 bits.
  Vu bytes = hn::BitCast(Du(), pack_signed(hn::ReorderDemote2To(Dh(), v[0], v[1]),
                                           hn::ReorderDemote2To(Dh(), v[2], v[3])));
  if constexpr (kLanes == 8) {
    alignas(32) constexpr uint32_t kBlocks[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    bytes = hn::TableLookupLanes(bytes, hn::SetTableIndices(Du(), kBlocks));
  }
  hn::StoreU(hn::BitCast(Dsb(), bytes), Dsb(), to);
}

// draw_offset() times 2^32, of half a group.
template <bool kSecond>
HWY_INLINE Vf offsets(Vu words) {
  const Vu bits =
      kSecond ? words : hn::Or(hn::ShiftLeft<16>(words), hn::Set(Du(), uint32_t{0x8000}));
  return hn::ConvertTo(Df(), hn::BitCast(Di(), bits));
}

// Half a group, with the upper or the lower halves of its draws.
template <bool kSecond>
HWY_INLINE void store_half_group(const float* work, Vf inverse, const Vu* words, int8_t* to) {
  for (size_t j = 0; j < kGroupVectors / 2; j += 4) {
    Vi levels_of[4];
    for (size_t t = 0; t < 4; ++t) {
      const Vf x = hn::Mul(hn::LoadU(Df(), work + (j + t) * kLanes), inverse);
      // The product is exact.
      const Vf moved = hn::MulAdd(offsets<kSecond>(words[j + t]), hn::Set(Df(), 0x1p-32f), x);
      levels_of[t] = nearest_int(moved);
    }
    store_bytes(levels_of, to + j * kLanes);
  }
}

}  // namespace

Accumulated accumulate(const float* gradient, float* work, size_t n, float decay) {
  reference::Sums sums;
  const size_t done = gradient != nullptr
                          ? accumulate_vectors<true>(gradient, work, n, decay, sums)
                          : accumulate_vectors<false>(nullptr, work, n, decay, sums);
  reference::accumulate(gradient, work, done, n - done, decay, sums);
  return {sums.magnitude_max, fold(sums.lanes)};
}

Accumulated accumulate_groups(const float* gradient, float* work, size_t n, float decay,
                              GroupMagnitudes& groups, Ahead ahead) {
  reference::Sums sums;
  const auto before = [work](size_t) HWY_ATTR {
    return [work](size_t at) HWY_ATTR { return hn::LoadU(Df(), work + at); };
  };
  const size_t done =
      gradient != nullptr
          ? accumulate_whole_groups<true>(gradient, before, work, n, decay, groups, ahead, sums)
          : accumulate_whole_groups<false>(gradient, before, work, n, decay, groups, ahead, sums);
  reference::accumulate(gradient, work, done, n - done, decay, sums);
  return {sums.magnitude_max, fold(sums.lanes)};
}

Accumulated accumulate_groups_i8(const float* gradient, const int8_t* stored,
                                 const uint16_t* scales, float* work, size_t n, float decay,
                                 GroupMagnitudes& groups, Ahead ahead) {
  reference::Sums sums;
  const auto before = [stored, scales](size_t g) HWY_ATTR {
    const Vf scale = hn::Set(Df(), bf16_widen(scales[g]));
    return [stored, scale](size_t at) HWY_ATTR { return load_bytes(stored + at, scale); };
  };
  const size_t done =
      accumulate_whole_groups<true>(gradient, before, work, n, decay, groups, ahead, sums);
  reference::load_i8(stored + done, scales + done / kGroupElements, n - done, work + done);
  reference::accumulate(gradient, work, done, n - done, decay, sums);
  return {sums.magnitude_max, fold(sums.lanes)};
}

Selected select(const float* gradient, float* work, size_t n, float decay, float threshold,
                uint16_t* positions, float* values) {
  reference::Sums sums;
  size_t count = 0;
  const size_t done = gradient != nullptr
                          ? select_vectors<true>(gradient, work, n, decay, threshold, positions,
                                                 values, count, sums)
                          : select_vectors<false>(nullptr, work, n, decay, threshold, positions,
                                                  values, count, sums);
  count += reference::select(gradient, work, done, n - done, decay, threshold, positions + count,
                             values + count, sums);
  return {count, fold(sums.lanes)};
}

void narrow(ValueKind kind, float* work, size_t n, std::byte* values) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Vf v = hn::LoadU(Df(), work + i);
    if (HWY_UNLIKELY(!hn::AllTrue(Df(), finite(v)))) {
      reference::narrow(kind, work + i, kLanes, values + 2 * i);
      continue;
    }
    uint16_t narrowed[kLanes];
    if (kind == ValueKind::f16) {
      narrow_f16(v, work + i, narrowed);
    } else {
      narrow_bf16(v, work + i, narrowed);
    }
    std::memcpy(values + 2 * i, narrowed, sizeof(narrowed));
  }
  reference::narrow(kind, work + i, n - i, values + 2 * i);
}

void add_values(ValueKind kind, const std::byte* values, size_t n, float* sum) {
  switch (kind) {
    case ValueKind::f32:
      return add_vectors<ValueKind::f32>(values, n, sum);
    case ValueKind::bf16:
      return add_vectors<ValueKind::bf16>(values, n, sum);
    default:
      return add_vectors<ValueKind::f16>(values, n, sum);
  }
}

void store_bf16(const float* work, size_t n, DrawKey key, uint16_t* stored) {
  size_t i = 0;
  for (; i + kGroupElements <= n; i += kGroupElements) {
    for (size_t j = 0; j < kGroupElements / 2; j += kLanes) {
      const Vu words = draw_words(key, static_cast<uint32_t>(i / 2 + j));
      const size_t first = i + j;
      const size_t second = first + kGroupElements / 2;
      round_bf16(hn::LoadU(Df(), work + first), draws<false>(words), stored + first);
      round_bf16(hn::LoadU(Df(), work + second), draws<true>(words), stored + second);
    }
  }
  reference::store_bf16(work, i, n - i, key, stored);
}

void load_bf16(const uint16_t* stored, size_t n, float* work) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(widen_bf16(hn::LoadU(D16(), stored + i)), Df(), work + i);
  }
  reference::load_bf16(stored + i, n - i, work + i);
}

void store_i8(const float* work, size_t n, DrawKey key, int8_t* stored, uint16_t* scales) {
  float inverses[kResidualGroups];
  const size_t groups = n / kGroupElements;
  Vu seeds = draw_seeds(key, 0);
  for (size_t g = 0; g < groups; ++g) {
    const size_t i = g * kGroupElements;
    if (g % kResidualGroups == 0) {
      byte_scales(work + i, std::min(kResidualGroups, groups - g), scales + g, inverses);
    }
    const Vf inverse = hn::Set(Df(), inverses[g % kResidualGroups]);
    Vu words[kGroupVectors / 2];
    for (Vu& word : words) {
      word = hashed(key, seeds);
      seeds = next_seeds(seeds);
    }
    store_half_group<false>(work + i, inverse, words, stored + i);
    store_half_group<true>(work + i + kGroupElements / 2, inverse, words,
                           stored + i + kGroupElements / 2);
  }
  const size_t done = groups * kGroupElements;
  reference::store_i8(work, done, n - done, key, stored, scales);
}

void load_i8(const int8_t* stored, const uint16_t* scales, size_t n, float* work) {
  size_t i = 0;
  for (; i + kGroupElements <= n; i += kGroupElements) {
    const Vf scale = hn::Set(Df(), bf16_widen(scales[i / kGroupElements]));
    for (size_t j = i; j < i + kGroupElements; j += kLanes) {
      hn::StoreU(load_bytes(stored + j, scale), Df(), work + j);
    }
  }
  reference::load_i8(stored + i, scales + i / kGroupElements, n - i, work + i);
}

// Half vectors at both ends, where they fit: a line that is written in part by ordinary stores, in
// part past the cache, costs more than all others of a block.
void finish(float* sum, size_t n, float weight, float* out) {
  const hn::Half<Df> half;
  constexpr size_t kHalf = kLanes / 2;
  const Vf by = hn::Set(Df(), weight);
  const auto lane = [&](size_t at, size_t lanes) {
    return reinterpret_cast<uintptr_t>(out + at) / sizeof(float) % lanes;
  };
  size_t i = std::min(n, (kHalf - lane(0, kHalf)) % kHalf);
  reference::finish(sum, i, weight, out);
  const auto finish_half = [&]() HWY_ATTR {
    hn::Stream(hn::Mul(hn::LowerHalf(half, by), hn::LoadU(half, sum + i)), half, out + i);
    hn::StoreU(hn::Zero(half), half, sum + i);
    i += kHalf;
  };
  if (i + kHalf <= n && lane(i, kLanes) != 0) finish_half();
  for (; i + kLanes <= n; i += kLanes) {
    hn::Stream(hn::Mul(by, hn::LoadU(Df(), sum + i)), Df(), out + i);
    hn::StoreU(hn::Zero(Df()), Df(), sum + i);
  }
  if (i + kHalf <= n) finish_half();
  reference::finish(sum + i, n - i, weight, out + i);
}

void flush() { hwy::FlushStream(); }

}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // an instruction set with kernels
