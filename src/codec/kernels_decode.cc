// Vector kernels that read the quantised kinds. Compiled once for each instruction set (Highway's
// foreach_target, headers alone). Several records are added while their sum is in registers. Codes
// of one or two bits are permuted into levels lane by lane; wider ones become bytes first.
#include "codec/kernels_simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/kernels_decode.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <cstring>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <utility>

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

#include "codec/kernels_quads-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {

// q3's signs: sixteen bits in a row to four in each byte.
HWY_INLINE Vu open_ranks(Vu v) {
  v = hn::And(hn::Or(v, hn::ShiftLeft<8>(v)), hn::Set(Du(), 0x00FF00FFu));
  return hn::And(hn::Or(v, hn::ShiftLeft<4>(v)), hn::Set(Du(), 0x0F0F0F0Fu));
}

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

// Byte kByte of each lane as a number, with kRaised 2^24 times it.
template <int kByte, bool kRaised>
HWY_INLINE Vf number(Vu levels_of) {
  if constexpr (!kRaised) return widen<kByte>(levels_of);
  const Vb top = hn::TableLookupBytes(hn::BitCast(Db(), levels_of), load_table(kTopByte<kByte>));
  return hn::ConvertTo(Df(), hn::BitCast(Di(), top));
}

// Where a quad of one record is, from the first lane worked on.
struct CodedQuad {
  const std::byte* from;
  const float* scale;  // of its four groups
};

enum class Target { add, store };

// out or, to store, 0 + level * scale: a level times a scale is exact, hence one rounding.
template <Target target, size_t kSources, typename Number>
HWY_INLINE void put(const CodedQuad* quads, size_t group, float* out, const Number& number_of) {
  if constexpr (target == Target::store) {
    hn::StoreU(hn::Mul(number_of(0), hn::Set(Df(), quads[0].scale[group])), Df(), out);
  } else {
    Vf sum = hn::LoadU(Df(), out);
    for (size_t s = 0; s < kSources; ++s)
      sum = hn::MulAdd(number_of(s), hn::Set(Df(), quads[s].scale[group]), sum);
    hn::StoreU(sum, Df(), out);
  }
}

// Levels as bytes of strand r of word k.
template <ValueKind kind, size_t k, size_t r>
HWY_INLINE Vu strand_levels(const std::byte* from) {
  constexpr int kBits = stream_bits(kind);
  Vu codes = load_words(from + kWordBytes * k);
  if constexpr (kBits < 8) {
    codes = hn::And(hn::ShiftRight<kBits* static_cast<int>(r)>(codes),
                    hn::Set(Du(), every_byte((1u << kBits) - 1)));
  }
  if constexpr (kind == ValueKind::q3) {
    const Vu signs = open_ranks(
        hn::And(hn::ShiftRight<static_cast<int>(16 * k)>(load_words(from + kQ3SignBytes)),
                hn::Set(Du(), 0xFFFFu)));
    const Vu sign =
        hn::And(hn::ShiftRight<static_cast<int>(r)>(signs), hn::Set(Du(), every_byte(1)));
    codes = hn::Or(codes, hn::ShiftLeft<2>(sign));
  }
  return meaning<kind>(codes);
}

template <ValueKind kind, Target target, size_t kSources, bool kRaised, size_t kStrand>
HWY_INLINE void read_strand(const CodedQuad* quads, float* out) {
  constexpr size_t kCount = kStrands<stream_bits(kind)>;
  constexpr size_t k = kStrand / kCount;
  constexpr size_t kFirst = 4 * kCount * k + kStrand % kCount;
  Vu levels_of[kSources];
  for (size_t s = 0; s < kSources; ++s)
    levels_of[s] = strand_levels<kind, k, kStrand % kCount>(quads[s].from);
  const auto byte = [&]<int t>() HWY_ATTR {
    constexpr size_t kAt = 8 * (kFirst + kCount * t);
    put<target, kSources>(quads, kAt / kGroupElements, out + kAt,
                          [&](size_t s) HWY_ATTR { return number<t, kRaised>(levels_of[s]); });
  };
  byte.template operator()<0>();
  byte.template operator()<1>();
  byte.template operator()<2>();
  byte.template operator()<3>();
}

#if HWY_ARCH_X86
constexpr bool permutes(ValueKind kind) { return bits(kind) <= 2; }
#else
constexpr bool permutes(ValueKind) { return false; }
#endif

// What the two lowest bits of a lane mean; of q1 the lowest alone.
template <ValueKind kind>
HWY_INLINE Vf permuted_level(Vu codes) {
#if HWY_ARCH_X86
  constexpr auto kTable = levels(kind);
  alignas(16) constexpr float kLevels[4] = {
      float{kTable[0]}, kind == ValueKind::q2 ? float{kTable.back()} : -float{kTable[0]},
      kind == ValueKind::q2 ? -float{kTable[0]} : float{kTable[0]}, -float{kTable.back()}};
  return Vf{_mm256_permutevar_ps(hn::LoadDup128(Df(), kLevels).raw, codes.raw)};
#else
  return hn::Zero(Df());  // no kind permutes here
#endif
}

template <ValueKind kind, Target target, size_t kSources, size_t kIndex>
HWY_INLINE void read_index(const CodedQuad* quads, float* out) {
  constexpr size_t kBit = kIndex * bits(kind);
  constexpr size_t kAt = 8 * kIndex;
  put<target, kSources>(quads, kAt / kGroupElements, out + kAt, [&](size_t s) HWY_ATTR {
    const Vu word = load_words(quads[s].from + kWordBytes * (kBit / 32));
    return permuted_level<kind>(hn::ShiftRight<static_cast<int>(kBit % 32)>(word));
  });
}

template <ValueKind kind, Target target, size_t kSources, bool kRaised, size_t... kPart>
HWY_INLINE void read_quad(const CodedQuad* quads, float* out, std::index_sequence<kPart...>) {
  if constexpr (permutes(kind)) {
    (read_index<kind, target, kSources, kPart>(quads, out), ...);
  } else {
    (read_strand<kind, target, kSources, kRaised, kPart>(quads, out), ...);
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

template <ValueKind kind, Target target, size_t kSources, bool kRaised>
HWY_NOINLINE void read_quads(const CodedValues* sources, size_t quads, float* out) {
  constexpr size_t kBytes = kWordBytes * bits(kind);
  constexpr size_t kParts =
      permutes(kind) ? 32 : kStrands<stream_bits(kind)> * static_cast<size_t>(stream_bits(kind));
  for (size_t q = 0; q < quads; ++q) {
    alignas(16) float scale[kSources][4];
    for (size_t s = 0; s < kSources; ++s) {
      quad_scales<kRaised>(sources[s].base, sources[s].scales + 4 * q, scale[s]);
      if (sources[s].ahead == nullptr) continue;
      for (size_t i = 0; i < kBytes; i += 64)
        __builtin_prefetch(sources[s].ahead + kBytes * q + i, 0, 3);
    }
    for (size_t lane = 0; lane < 8; lane += kLanes) {
      CodedQuad coded[kSources];
      for (size_t s = 0; s < kSources; ++s)
        coded[s] = {sources[s].codes + kBytes * q + 4 * lane, scale[s]};
      read_quad<kind, target, kSources, kRaised>(coded, out + q * kQuadElements + lane,
                                                 std::make_index_sequence<kParts>());
    }
  }
}

template <ValueKind kind>
void add_quads_of(const CodedValues* sources, size_t count, size_t quads, float* sum) {
  size_t done = 0;
  const bool raised = !permutes(kind) && std::all_of(sources, sources + count, [](const auto& s) {
    return s.base >= kRaisedBase;
  });
  constexpr bool kRaised = !permutes(kind);
  for (; (raised || !kRaised) && done + 4 <= count; done += 4)
    read_quads<kind, Target::add, 4, kRaised>(sources + done, quads, sum);
  for (; (raised || !kRaised) && done + 2 <= count; done += 2)
    read_quads<kind, Target::add, 2, kRaised>(sources + done, quads, sum);
  for (; done < count; ++done) read_quads<kind, Target::add, 1, false>(sources + done, quads, sum);
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
  if (!permutes(kind) && source.base >= kRaisedBase) {
    read_quads<kind, Target::store, 1, !permutes(kind)>(&source, quads, out);
  } else {
    read_quads<kind, Target::store, 1, false>(&source, quads, out);
  }
  if (n == whole) return;
  read_rest<kind>({.base = source.base,
                   .scales = source.scales + whole / kGroupElements,
                   .codes = source.codes + whole * bits(kind) / 8},
                  n - whole, out + whole);
}

}  // namespace

void add_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads, float* sum) {
  const auto chosen = kind == ValueKind::q8   ? add_quads_of<ValueKind::q8>
                      : kind == ValueKind::q4 ? add_quads_of<ValueKind::q4>
                      : kind == ValueKind::q3 ? add_quads_of<ValueKind::q3>
                      : kind == ValueKind::q2 ? add_quads_of<ValueKind::q2>
                                              : add_quads_of<ValueKind::q1>;
  chosen(sources, count, quads, sum);
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
