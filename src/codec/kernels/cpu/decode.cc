// Vector kernels that read the quantised kinds. Compiled once for each instruction set (Highway's
// foreach_target, headers alone). The sums of a group stay in registers while all records are added
// to it; where their start is zero, memory sees the mean alone. Codes of one or two bits become
// floats lane by lane where the CPU can, wider ones bytes first.
#include "codec/kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/kernels/cpu/decode.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <algorithm>
#include <cstring>
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <utility>

#include "base/check.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

#include "codec/kernels/cpu/quads-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {

HWY_INLINE Vu load_words(const std::byte* from) {
  return hn::BitCast(Du(), hn::LoadU(Db(), reinterpret_cast<const uint8_t*>(from)));
}

// A byte is brought to the top of its lane, where it counts 2^24 times: the product with a scale is
// exact as long as the scale's 2^-24th is a normal number, which bases from kRaisedBase on ensure.
constexpr uint32_t kRaisedBits = 24 << 3;
constexpr uint32_t kRaisedBase = kRaisedBits + 8;

template <int kByte>
constexpr Table top_byte() {
  Table result;
  for (size_t i = 0; i < 16; ++i)
    result.bytes[i] = i % 4 == 3 ? static_cast<uint8_t>(i - 3 + kByte) : uint8_t{0x80};
  return result;
}
template <int kByte>
constexpr Table kTopByte = top_byte<kByte>();

template <int kByte>
constexpr Table each_byte() {
  Table result;
  for (size_t i = 0; i < 16; ++i) result.bytes[i] = static_cast<uint8_t>(i / 4 * 4 + kByte);
  return result;
}
template <int kByte>
constexpr Table kEachByte = each_byte<kByte>();

// Byte kByte of each lane as a number, with kRaised 2^24 times it.
template <int kByte, bool kRaised>
HWY_INLINE Vf number(Vu levels_of) {
  if constexpr (!kRaised) return widen<kByte>(levels_of);
  if constexpr (kByte == 0)
    return hn::ConvertTo(Df(), hn::BitCast(Di(), hn::ShiftLeft<24>(levels_of)));
  if constexpr (kByte == 3)
    return hn::ConvertTo(Df(), hn::BitCast(Di(), hn::And(levels_of, hn::Set(Du(), 0xFF000000u))));
  const Vb top = hn::TableLookupBytes(hn::BitCast(Db(), levels_of), load_table(kTopByte<kByte>));
  return hn::ConvertTo(Df(), hn::BitCast(Di(), top));
}

// Codes of two bits of group kGroup, four in each byte from the lowest bits on: indices 0 to 3 in
// byte 0 and 4 to 7 in byte 1; bytes 2 and 3 begin with indices 2 and 6.
template <size_t kGroup>
HWY_INLINE Vu two_bit_group(const std::byte* from) {
  const Vu word = load_words(from + kWordBytes * (kGroup / 2));
  const Vu high = hn::Set(Du(), 0xFFFF0000u);
  if constexpr (kGroup % 2 == 0) {
    return hn::Or(hn::AndNot(high, word), hn::And(high, hn::ShiftLeft<12>(word)));
  } else {
    return hn::Or(hn::ShiftRight<16>(word), hn::And(high, hn::ShiftRight<4>(word)));
  }
}

// 4 in each byte whose sign bit of q3 is set, in the places of two_bit_group().
template <size_t kGroup, size_t kHalf>
HWY_INLINE Vu sign_codes(const std::byte* from) {
  constexpr uint32_t kBits = 0x40041001u << kHalf;  // of indices 0, 4, 2 and 6, or each one's next
  const Vb all = hn::TableLookupBytes(hn::BitCast(Db(), load_words(from + kQ3SignBytes)),
                                      load_table(kEachByte<kGroup>));
  const Vb own = hn::BitCast(Db(), hn::Set(Du(), kBits));
  const Vb set = hn::VecFromMask(Db(), hn::Eq(hn::And(all, own), own));
  return hn::BitCast(Du(), hn::And(set, hn::Set(Db(), uint8_t{4})));
}

// Levels of four of the eight indices of group kGroup, as bytes; index_of() says which.
template <ValueKind kind, size_t kGroup, size_t kHalf>
HWY_INLINE Vu half_levels(const std::byte* from) {
  constexpr int kHalfBits = static_cast<int>(kHalf) * stream_bits(kind);
  if constexpr (kind == ValueKind::q8) {
    return load_words(from + kWordBytes * (2 * kGroup + kHalf));
  } else if constexpr (kind == ValueKind::q4) {
    const Vu codes = hn::ShiftRight<kHalfBits>(load_words(from + kWordBytes * kGroup));
    return meaning<kind>(hn::And(codes, hn::Set(Du(), every_byte(0x0F))));
  } else {
    Vu codes = hn::And(hn::ShiftRight<kHalfBits>(two_bit_group<kGroup>(from)),
                       hn::Set(Du(), every_byte(0x03)));
    if constexpr (kind == ValueKind::q3) codes = hn::Or(codes, sign_codes<kGroup, kHalf>(from));
    return meaning<kind>(codes);
  }
}
constexpr size_t index_of(ValueKind kind, size_t half, size_t byte) {
  if (kind == ValueKind::q8) return 4 * half + byte;
  if (kind == ValueKind::q4) return half + 2 * byte;
  return half + byte % 2 * 4 + byte / 2 * 2;
}

#if HWY_ARCH_X86
constexpr bool permutes(ValueKind kind) { return kind == ValueKind::q2; }
// What the two lowest bits of each lane mean.
HWY_INLINE Vf permuted_level(Vu codes) {
  constexpr float kOne = kLevels2[0];
  constexpr float kTwo = kLevels2[1];
  alignas(32) static constexpr float kLevels[8] = {kOne, kTwo, -kOne, -kTwo,
                                                   kOne, kTwo, -kOne, -kTwo};
  return Vf{_mm256_permutevar_ps(hn::Load(Df(), kLevels).raw, codes.raw)};
}
#else
constexpr bool permutes(ValueKind) { return false; }
HWY_INLINE Vf permuted_level(Vu) { return hn::Zero(Df()); }  // no kind permutes here
#endif
// Levels of these kinds are never bytes.
constexpr bool direct(ValueKind kind) { return kind == ValueKind::q1 || permutes(kind); }

// Vectors of a group: index i of the lanes worked on is vector i.
constexpr size_t kIndices = kGroupElements / 8;

// sum + level * scale, a level times a scale is exact, hence one rounding.
template <ValueKind kind, bool kRaised, size_t kGroup>
HWY_INLINE void add_group(const std::byte* from, Vf scale, Vf (&sum)[kIndices]) {
  const auto add_index = [&]<size_t i>(Vu word) HWY_ATTR {
    constexpr int kBit = static_cast<int>((kIndices * kGroup + i) * bits(kind) % 32);
    if constexpr (kind == ValueKind::q1) {
      const Vu sign = hn::And(hn::ShiftLeft<31 - kBit>(word), hn::Set(Du(), 0x80000000u));
      sum[i] = hn::Add(sum[i], hn::Xor(scale, hn::BitCast(Df(), sign)));
    } else {
      sum[i] = hn::MulAdd(permuted_level(hn::ShiftRight<kBit>(word)), scale, sum[i]);
    }
  };
  const auto add_byte = [&]<size_t half, int t>(Vu four) HWY_ATTR {
    Vf& to = sum[index_of(kind, half, t)];
    to = hn::MulAdd(number<t, kRaised>(four), scale, to);
  };
  const auto add_half = [&]<size_t half>() HWY_ATTR {
    const Vu four = half_levels<kind, kGroup, half>(from);
    add_byte.template operator()<half, 0>(four);
    add_byte.template operator()<half, 1>(four);
    add_byte.template operator()<half, 2>(four);
    add_byte.template operator()<half, 3>(four);
  };
  if constexpr (direct(kind)) {
    const Vu word = load_words(from + kWordBytes * (kIndices * kGroup * bits(kind) / 32));
    [&]<size_t... i>(std::index_sequence<i...>) HWY_ATTR {
      (add_index.template operator()<i>(word), ...);
    }
    (std::make_index_sequence<kIndices>());
  } else {
    add_half.template operator()<0>();
    add_half.template operator()<1>();
  }
}

// How sums are written. Past the cache needs addresses that are multiples of what is written; where
// `out` begins half a vector off, one is made of the halves of two neighbours.
enum class Way { cached, past, past_halves };

// Where sums begin and end.
struct Ends {
  bool onto = false;  // what stands in `out`, else `start`
  float start = 0;
  float weight = 1;
  Way way = Way::cached;
};

HWY_INLINE void stream_halves(const Vf* v, size_t count, float* out) {
  const hn::Half<Df> half;
  hn::Stream(hn::LowerHalf(half, v[0]), half, out);
  for (size_t i = 1; i < count; ++i)
    hn::Stream(hn::ConcatLowerUpper(Df(), v[i], v[i - 1]), Df(), out + kLanes * i - kLanes / 2);
  hn::Stream(hn::UpperHalf(half, v[count - 1]), half, out + kLanes * count - kLanes / 2);
}

constexpr size_t kSourcesMost = 8;
struct Quads {
  const CodedValues* sources;
  size_t count;
  size_t codes = 0;  // how far the quad's are from the sources', at the first lane worked on
  float scale[kSourcesMost][4] = {};
};

template <ValueKind kind, bool kRaised, size_t kGroup>
HWY_INLINE void read_group(const Quads& quads, const Ends& ends, float* out) {
  Vf sum[kIndices];
  for (size_t i = 0; i < kIndices; ++i)
    sum[i] = ends.onto ? hn::LoadU(Df(), out + 8 * i) : hn::Set(Df(), ends.start);
  for (size_t s = 0; s < quads.count; ++s) {
    add_group<kind, kRaised, kGroup>(quads.sources[s].codes + quads.codes,
                                     hn::Set(Df(), quads.scale[s][kGroup]), sum);
  }
  const Vf weight = hn::Set(Df(), ends.weight);
  for (Vf& v : sum) v = hn::Mul(v, weight);
  if (ends.way == Way::past) {
    for (size_t i = 0; i < kIndices; ++i) hn::Stream(sum[i], Df(), out + 8 * i);
  } else if (kLanes == 8 && ends.way == Way::past_halves) {
    stream_halves(sum, kIndices, out);
  } else {
    for (size_t i = 0; i < kIndices; ++i) hn::StoreU(sum[i], Df(), out + 8 * i);
  }
}

// Scales of a quad's groups, kRaised 2^-24 times them.
template <bool kRaised>
HWY_INLINE void quad_scales(uint32_t base, const uint8_t* codes, float* scale) {
  const hn::CappedTag<uint32_t, 4> d;
  const hn::Rebind<uint8_t, decltype(d)> bytes;
  const auto code = hn::PromoteTo(d, hn::LoadU(bytes, codes));
  const auto value =
      hn::ShiftLeft<20>(hn::Add(code, hn::Set(d, kRaised ? base - kRaisedBits : base)));
  const auto sent = hn::Ne(code, hn::Zero(d));
  hn::StoreU(hn::IfThenElseZero(sent, value), d, reinterpret_cast<uint32_t*>(scale));
}

template <ValueKind kind, bool kRaised>
HWY_NOINLINE void read_quads(const CodedValues* sources, size_t count, size_t quads,
                             const Ends& ends, float* out) {
  constexpr size_t kBytes = kWordBytes * bits(kind);
  Quads at{.sources = sources, .count = count};
  for (size_t q = 0; q < quads; ++q, out += kQuadElements) {
    for (size_t s = 0; s < count; ++s) {
      quad_scales<kRaised>(sources[s].base, sources[s].scales + 4 * q, at.scale[s]);
      if (sources[s].ahead == nullptr) continue;
      for (size_t i = 0; i < kBytes; i += 64)
        __builtin_prefetch(sources[s].ahead + kBytes * q + i, 0, 3);
    }
    for (size_t lane = 0; lane < 8; lane += kLanes) {
      at.codes = kBytes * q + 4 * lane;
      read_group<kind, kRaised, 0>(at, ends, out + lane);
      read_group<kind, kRaised, 1>(at, ends, out + kGroupElements + lane);
      read_group<kind, kRaised, 2>(at, ends, out + 2 * kGroupElements + lane);
      read_group<kind, kRaised, 3>(at, ends, out + 3 * kGroupElements + lane);
    }
  }
}

template <ValueKind kind>
void read_quads_of(const CodedValues* sources, size_t count, size_t quads, const Ends& ends,
                   float* out) {
  const bool raised =
      std::all_of(sources, sources + count, [](const auto& s) { return s.base >= kRaisedBase; });
  const auto chosen = raised ? read_quads<kind, !direct(kind)> : read_quads<kind, false>;
  chosen(sources, count, quads, ends, out);
}

// Eight codes of kBits bits in a row, a byte each.
template <unsigned kBits>
constexpr uint64_t spread(uint64_t codes) {
  constexpr auto low = [](unsigned width) { return (uint64_t{1} << width) - 1; };
  constexpr uint64_t kByte = low(kBits) | low(kBits) << 8;
  constexpr uint64_t kFour = kByte | kByte << 16;
  codes = (codes | codes << (32 - 4 * kBits)) & (low(4 * kBits) | low(4 * kBits) << 32);
  codes = (codes | codes << (16 - 2 * kBits)) &
          ((low(2 * kBits) | low(2 * kBits) << 16) * ((uint64_t{1} << 32) | 1));
  return (codes | codes << (8 - kBits)) & (kFour | kFour << 32);
}

// What stands behind the last quad: codes one after the other.
template <ValueKind kind>
HWY_NOINLINE void read_rest(const CodedValues& source, size_t n, float* out) {
  alignas(32) uint8_t codes[kQuadElements];
  if constexpr (kind == ValueKind::q8) {
    std::memcpy(codes, source.codes, n);
  } else {
    constexpr size_t kBytes = bits(kind);  // of eight codes
    uint8_t packed[kQuadElements / 8 * kBytes + 8];
    std::memcpy(packed, source.codes, rest_bytes(kind, n));
    for (size_t i = 0; i < n; i += 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, packed + i / 8 * kBytes, 8);
      eight = spread<bits(kind)>(eight & ((uint64_t{1} << (8 * kBytes)) - 1));
      std::memcpy(codes + i, &eight, 8);
    }
  }
  for (size_t i = 0; i < n; i += hn::Lanes(Db())) {
    hn::StoreU(hn::BitCast(Db(), meaning<kind>(hn::BitCast(Du(), hn::LoadU(Db(), codes + i)))),
               Db(), codes + i);
  }
  for (size_t i = 0; i < n; i += kLanes) {
    const uint8_t code = source.scales[i / kGroupElements];
    const Vf scale = hn::Set(Df(), code == 0 ? 0.0f : scale_value(source.base + code));
    const hn::Rebind<int8_t, Df> bytes;
    const Vi level = hn::PromoteTo(Di(), hn::LoadU(bytes, reinterpret_cast<int8_t*>(codes) + i));
    hn::StoreU(hn::Mul(hn::ConvertTo(Df(), level), scale), Df(), out + i);
  }
}

template <ValueKind kind>
void decode_of(const CodedValues& source, size_t n, float* out) {
  const size_t quads = n / kQuadElements;
  const size_t whole = quads * kQuadElements;
  read_quads_of<kind>(&source, 1, quads, {.start = -0.0f}, out);  // -0 + x is x, if x is -0 too
  if (n == whole) return;
  read_rest<kind>({.base = source.base,
                   .scales = source.scales + whole / kGroupElements,
                   .codes = source.codes + whole * bits(kind) / 8},
                  n - whole, out + whole);
}

void read_quads_of_kind(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,
                        const Ends& ends, float* out) {
  const auto chosen = kind == ValueKind::q8   ? read_quads_of<ValueKind::q8>
                      : kind == ValueKind::q4 ? read_quads_of<ValueKind::q4>
                      : kind == ValueKind::q3 ? read_quads_of<ValueKind::q3>
                      : kind == ValueKind::q2 ? read_quads_of<ValueKind::q2>
                                              : read_quads_of<ValueKind::q1>;
  chosen(sources, count, quads, ends, out);
}

}  // namespace

void add_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads, float* sum) {
  for (size_t done = 0; done < count; done += kSourcesMost) {
    read_quads_of_kind(kind, sources + done, std::min(count - done, kSourcesMost), quads,
                       {.onto = true}, sum);
  }
}

void mean_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,
                float weight, float* out) {
  SCANT_CHECK(count <= kSourcesMost);
  constexpr size_t kVectorBytes = kLanes * sizeof(float);
  const size_t off = reinterpret_cast<uintptr_t>(out) % kVectorBytes;
  const Way way = off == 0                                 ? Way::past
                  : kLanes == 8 && off == kVectorBytes / 2 ? Way::past_halves
                                                           : Way::cached;
  read_quads_of_kind(kind, sources, count, quads, {.weight = weight, .way = way}, out);
}

void decode(ValueKind kind, const CodedValues& source, size_t n, float* out) {
  const auto chosen = kind == ValueKind::q8   ? decode_of<ValueKind::q8>
                      : kind == ValueKind::q4 ? decode_of<ValueKind::q4>
                      : kind == ValueKind::q3 ? decode_of<ValueKind::q3>
                      : kind == ValueKind::q2 ? decode_of<ValueKind::q2>
                                              : decode_of<ValueKind::q1>;
  chosen(source, n, out);
}

}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // an instruction set with kernels
