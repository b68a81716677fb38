// Vector kernels of the quantised kinds, for whole quads. Compiled once for each instruction set
// (Highway's foreach_target, headers alone). A strand of a quad at a time: magnitudes as bytes,
// their levels by table, the code's place in its word by shifts, so that lanes are never crossed.
#include "codec/kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/kernels/cpu/quantise.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <cstring>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
#include <utility>

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

#include "codec/kernels/cpu/quads-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {

// pack_bytes() leaves value t of lane j of a 128-bit block in byte 4t + j; this brings the four of
// a lane together.
constexpr Table kGather = {{0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15}};

// One strand of a quad: where its four vectors are and which groups they belong to.
template <int kBits>
struct Strand {
  size_t first;  // index of the first vector
  HWY_INLINE size_t at(size_t t) const { return 8 * (first + kStrands<kBits> * t); }
  HWY_INLINE size_t group(size_t t) const { return at(t) / kGroupElements; }
};

struct Quad {
  float* work;           // of lane 0 of this half of the quad's lanes
  const float* inverse;  // of its four groups
  const float* scale;
  const uint32_t* words;  // draws: 32 for each of the four groups
};

// Nearest codes of a strand, four in each 32-bit lane.
template <ValueKind kind, int kBits>
HWY_INLINE Vu nearest_codes(const Quad& quad, Strand<kBits> strand, const Vf* v) {
  const auto signs = [&](size_t a, size_t b) HWY_ATTR {
    return hn::ReorderDemote2To(Dh(), hn::BitCast(Di(), v[a]), hn::BitCast(Di(), v[b]));
  };
  constexpr int kSign = static_cast<int>(bits(kind)) - 1;
  const auto sign = hn::BitCast(Duh(), pack_signed(signs(0, 1), signs(2, 3)));
  Vb code = hn::And(hn::BitCast(Db(), hn::ShiftRight<7 - kSign>(sign)),
                    hn::Set(Db(), static_cast<uint8_t>(1u << kSign)));
  if constexpr (kind != ValueKind::q1) {
    const auto in_units = [&](size_t t) HWY_ATTR {
      const Vf inverse = hn::Set(Df(), quad.inverse[strand.group(t)]);
      return truncated(hn::Mul(hn::Abs(v[t]), inverse));
    };
    const Vh lower = hn::ReorderDemote2To(Dh(), in_units(0), in_units(1));
    const Vh upper = hn::ReorderDemote2To(Dh(), in_units(2), in_units(3));
    code = hn::Or(code, nearest_levels<kind>(pack_bytes(lower, upper)));
  }
  return hn::BitCast(Du(), hn::TableLookupBytes(code, load_table(kGather)));
}

// q8: levels are codes.
template <bool kStochastic, int kBits>
HWY_INLINE Vu byte_codes(const Quad& quad, Strand<kBits> strand, const Vf* v, const Vf* unit) {
  const Vf limit = hn::Set(Df(), 127.0f);
  Vu codes = hn::Zero(Du());
  for (size_t t = 0; t < 4; ++t) {
    const Vf x = hn::Mul(v[t], hn::Set(Df(), quad.inverse[strand.group(t)]));
    const Vf level = kStochastic ? hn::Floor(hn::Add(x, unit[t])) : x;
    const Vf clamped = hn::Max(hn::Min(level, limit), hn::Neg(limit));
    const Vu byte = hn::And(hn::BitCast(Du(), nearest_int(clamped)), hn::Set(Du(), 0xFFu));
    codes = hn::Or(codes, hn::ShiftLeftSame(byte, static_cast<int>(8 * t)));
  }
  return codes;
}

template <ValueKind kind, int kBits>
HWY_INLINE Vu stochastic_codes(const Quad& quad, Strand<kBits> strand, const Vf* v,
                               const Vf* unit) {
  constexpr auto kTable = levels(kind);
  const auto level = [&](size_t m)
                         HWY_ATTR { return hn::Set(Df(), static_cast<float>(kTable[m])); };
  Vu codes = hn::Zero(Du());
  for (size_t t = 0; t < 4; ++t) {
    const Vf x = hn::Mul(v[t], hn::Set(Df(), quad.inverse[strand.group(t)]));
    const Vf size = hn::Abs(x);
    const Vf two = hn::Set(Df(), 2.0f);
    const Vf lowest = hn::Mul(hn::Sub(hn::Mul(two, unit[t]), hn::Set(Df(), 1.0f)), level(0));
    Vu code = hn::And(hn::BitCast(Du(), hn::VecFromMask(Df(), hn::Lt(x, lowest))),
                      hn::Set(Du(), 1u << (bits(kind) - 1)));
    for (size_t m = 1; m < kTable.size(); ++m) {
      const Vf gap = hn::Sub(level(m), level(m - 1));
      const Vf threshold = hn::Add(level(m - 1), hn::Mul(unit[t], gap));
      code = hn::Sub(code, hn::BitCast(Du(), hn::VecFromMask(Df(), hn::Ge(size, threshold))));
    }
    codes = hn::Or(codes, hn::ShiftLeftSame(code, static_cast<int>(8 * t)));
  }
  return codes;
}

HWY_INLINE Vf unit_at(const uint32_t* words, size_t at) {
  const size_t within = at % kGroupElements;
  const Vu word = hn::LoadU(Du(), words + at / kGroupElements * 32 + within % 32);
  return unit_draws(within < 32 ? draws<false>(word) : draws<true>(word));
}

// A level times a scale is exact: eight bits times four. Hence one rounding gives the same as two.
// work -= decoded
template <int kByte, int kBits>
HWY_INLINE void subtract(const Quad& quad, Strand<kBits> strand, Vf v, Vu levels_of) {
  const Vf scale = hn::Set(Df(), quad.scale[strand.group(kByte)]);
  hn::StoreU(hn::NegMulAdd(widen<kByte>(levels_of), scale, v), Df(), quad.work + strand.at(kByte));
}

// Codes of one strand; its vectors lose what the codes mean.
template <ValueKind kind, bool kStochastic, int kBits>
HWY_INLINE Vu strand_codes(const Quad& quad, Strand<kBits> strand) {
  Vf v[4];
  Vf unit[4];
  for (size_t t = 0; t < 4; ++t) {
    v[t] = hn::LoadU(Df(), quad.work + strand.at(t));
    unit[t] = kStochastic ? unit_at(quad.words, strand.at(t)) : v[t];
  }
  Vu codes;
  if constexpr (kind == ValueKind::q8) {
    codes = byte_codes<kStochastic>(quad, strand, v, unit);
  } else if constexpr (kStochastic) {
    codes = stochastic_codes<kind>(quad, strand, v, unit);
  } else {
    codes = nearest_codes<kind>(quad, strand, v);
  }
  const Vu means = meaning<kind>(codes);
  subtract<0>(quad, strand, v[0], means);
  subtract<1>(quad, strand, v[1], means);
  subtract<2>(quad, strand, v[2], means);
  subtract<3>(quad, strand, v[3], means);
  return codes;
}

// q3's signs: four bits in each byte, to sixteen in a row.
HWY_INLINE Vu close_ranks(Vu v) {
  v = hn::And(hn::Or(v, hn::ShiftRight<4>(v)), hn::Set(Du(), 0x00FF00FFu));
  return hn::And(hn::Or(v, hn::ShiftRight<8>(v)), hn::Set(Du(), 0xFFFFu));
}
HWY_INLINE void store_words(Vu words, std::byte* to) {
  hn::StoreU(hn::BitCast(Db(), words), Db(), reinterpret_cast<uint8_t*>(to));
}
template <ValueKind kind, bool kStochastic, size_t... kStrand>
HWY_INLINE void write_quad(const Quad& quad, std::byte* to, std::index_sequence<kStrand...>) {
  constexpr int kBits = stream_bits(kind);
  Vu signs = hn::Zero(Du());
  for (size_t k = 0; k < static_cast<size_t>(kBits); ++k) {
    Vu word = hn::Zero(Du());
    Vu word_signs = hn::Zero(Du());
    const auto add = [&]<size_t r>() HWY_ATTR {
      const Strand<kBits> strand{4 * kStrands<kBits> * k + r};
      Vu codes = strand_codes<kind, kStochastic>(quad, strand);
      if constexpr (kind == ValueKind::q3) {
        const Vu sign = hn::And(hn::ShiftRight<2>(codes), hn::Set(Du(), every_byte(1)));
        word_signs = hn::Or(word_signs, hn::ShiftLeft<static_cast<int>(r)>(sign));
        codes = hn::And(codes, hn::Set(Du(), every_byte(3)));
      }
      word = hn::Or(word, hn::ShiftLeft<kBits* static_cast<int>(r)>(codes));
    };
    (add.template operator()<kStrand>(), ...);
    store_words(word, to + kWordBytes * k);
    if constexpr (kind == ValueKind::q3) {
      signs = hn::Or(signs, hn::ShiftLeftSame(close_ranks(word_signs), static_cast<int>(16 * k)));
    }
  }
  if constexpr (kind == ValueKind::q3) store_words(signs, to + kQ3SignBytes);
}

// q1's nearest codes are signs, each in its vector's bit; all that is left comes from the values.
HWY_INLINE void write_signs(const Quad& quad, std::byte* to) {
  const Vu sign_bit = hn::Set(Du(), 0x80000000u);
  const Vf level = hn::Set(Df(), static_cast<float>(levels(ValueKind::q1).front()));
  Vu word = hn::Zero(Du());
  for (size_t group = 0; group < kQuadGroups; ++group) {
    const Vf size = hn::Mul(level, hn::Set(Df(), quad.scale[group]));
    Vu eight = hn::Zero(Du());  // of as many vectors, in the upper byte
    for (size_t r = 0; r < 8; ++r) {
      float* const at = quad.work + group * kGroupElements + r * 8;
      const Vf v = hn::LoadU(Df(), at);
      const Vu sign = hn::And(hn::BitCast(Du(), v), sign_bit);
      eight = hn::Or(hn::ShiftRight<1>(eight), sign);
      hn::StoreU(hn::Sub(v, hn::BitCast(Df(), hn::Or(sign, hn::BitCast(Du(), size)))), Df(), at);
    }
    word = hn::Or(hn::ShiftRight<8>(word), eight);
  }
  store_words(word, to);
}

template <ValueKind kind>
using StrandIndices = std::make_index_sequence<kStrands<stream_bits(kind)>>;

template <ValueKind kind, bool kStochastic>
HWY_NOINLINE void quantise_quads(DrawKey key, float* work, size_t quads, uint32_t base,
                                 const GroupMagnitudes* known, uint8_t* scales, std::byte* codes,
                                 Ahead ahead) {
  Groups groups = {};
  for (size_t q = 0; q < quads; ++q) {
    const size_t in_chunk = q % kChunkQuads;
    float* const quad_work = work + q * kQuadElements;
    if (in_chunk == 0) {
      const size_t count = kQuadGroups * std::min(kChunkQuads, quads - q);
      uint8_t chunk_codes[kChunkGroups];
      if (known != nullptr) {
        std::memcpy(groups.mean, known->mean + kQuadGroups * q, count * sizeof(float));
        std::memcpy(groups.largest, known->largest + kQuadGroups * q, count * sizeof(float));
      } else {
        survey(quad_work, count, groups);
      }
      find_scales<kind, kStochastic>(quad_work, count, base, groups, chunk_codes);
      std::memcpy(scales + kQuadGroups * q, chunk_codes, count);
    }
    fetch(ahead, (quads + q) * (kQuadElements / 2), (quads + q + 1) * (kQuadElements / 2));
    uint32_t words[kStochastic ? kQuadElements / 2 : 1];
    if constexpr (kStochastic) {
      for (size_t i = 0; i < kQuadElements / 2; i += kLanes) {
        const auto counter = static_cast<uint32_t>(q * kQuadElements / 2 + i);
        hn::StoreU(draw_words(key, counter), Du(), words + i);
      }
    }
    for (size_t lane = 0; lane < 8; lane += kLanes) {
      const Quad quad = {quad_work + lane, groups.inverse + kQuadGroups * in_chunk,
                         groups.scale + kQuadGroups * in_chunk, words + (kStochastic ? lane : 0)};
      std::byte* const to = codes + kWordBytes * bits(kind) * q + 4 * lane;
      if constexpr (kind == ValueKind::q1 && !kStochastic) {
        write_signs(quad, to);
      } else {
        write_quad<kind, kStochastic>(quad, to, StrandIndices<kind>());
      }
    }
  }
}

template <ValueKind kind>
void quantise_kind(Rounding rounding, float* work, size_t quads, uint32_t base,
                   const GroupMagnitudes* groups, uint8_t* scales, std::byte* codes, Ahead ahead) {
  const auto chosen =
      rounding.stochastic ? quantise_quads<kind, true> : quantise_quads<kind, false>;
  chosen(rounding.key, work, quads, base, groups, scales, codes, ahead);
}

// The mean and the largest magnitude of up to 64 values with zeros behind them.
HWY_INLINE void survey_part(const float* work, size_t n, float& mean, float& largest) {
  const Vf share = hn::Set(Df(), 1.0f / static_cast<float>(n));
  Vf sums[kSumVectors];
  for (Vf& sum : sums) sum = hn::Zero(Df());
  Vf most = hn::Zero(Df());
  for (size_t j = 0; j < kGroupVectors; ++j) {
    const Vf v = hn::Abs(hn::LoadU(Df(), work + j * kLanes));
    sums[j % kSumVectors] = hn::Add(sums[j % kSumVectors], hn::Mul(v, share));
    most = hn::Max(most, v);
  }
  float lanes[kSumLanes];
  for (size_t j = 0; j < kSumVectors; ++j) hn::StoreU(sums[j], Df(), lanes + j * kLanes);
  mean = fold(lanes);
  largest = hn::GetLane(hn::MaxOfLanes(Df(), most));
}

// Eight codes of kBits bits, a byte each, brought together.
template <unsigned kBits>
constexpr uint64_t gather(uint64_t codes) {
  constexpr auto low = [](unsigned width) { return (uint64_t{1} << width) - 1; };
  constexpr uint64_t kTwo = low(2 * kBits) | low(2 * kBits) << 16;
  codes = (codes | codes >> (8 - kBits)) & (kTwo | kTwo << 32);
  codes = (codes | codes >> (16 - 2 * kBits)) & (low(4 * kBits) | low(4 * kBits) << 32);
  return (codes | codes >> (32 - 4 * kBits)) & low(8 * kBits);
}

// A byte for each value, to a stream of codes; `codes` may be changed behind n.
template <ValueKind kind>
HWY_INLINE void pack_rest(uint8_t* codes, size_t n, std::byte* to) {
  if constexpr (kind == ValueKind::q8) {
    std::memcpy(to, codes, n);
  } else {
    constexpr size_t kBytes = bits(kind);  // of eight codes
    std::memset(codes + n, 0, 8);
    uint8_t packed[kQuadElements / 8 * kBytes + 8];
    for (size_t i = 0; i < n; i += 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, codes + i, 8);
      eight = gather<bits(kind)>(eight);
      std::memcpy(packed + i / 8 * kBytes, &eight, 8);
    }
    std::memcpy(to, packed, rest_bytes(kind, n));
  }
}

// Strands of four vectors in a row, codes a byte each.
template <ValueKind kind, bool kStochastic>
HWY_NOINLINE void quantise_rest_of(DrawKey key, size_t first, float* work, size_t n, uint32_t base,
                                   uint8_t* scales, std::byte* to) {
  alignas(32) float padded[kQuadElements] = {};
  std::memcpy(padded, work, n * sizeof(float));
  Groups groups = {};
  const size_t count = (n + kGroupElements - 1) / kGroupElements;
  for (size_t g = 0; g < count; ++g) {
    const size_t at = g * kGroupElements;
    survey_part(padded + at, std::min(kGroupElements, n - at), groups.mean[g], groups.largest[g]);
  }
  uint8_t chunk_codes[kChunkGroups];
  find_scales<kind, kStochastic>(padded, count, base, groups, chunk_codes,
                                 count * kGroupElements - n);
  std::memcpy(scales, chunk_codes, count);
  uint32_t words[kStochastic ? kQuadElements / 2 : 1];
  for (size_t i = 0; kStochastic && i < kQuadElements / 2; i += kLanes)
    hn::StoreU(draw_words(key, static_cast<uint32_t>(first / 2 + i)), Du(), words + i);
  uint8_t codes[kQuadElements + 8];
  for (size_t lane = 0; lane < 8; lane += kLanes) {
    const Quad quad = {padded + lane, groups.inverse, groups.scale,
                       words + (kStochastic ? lane : 0)};
    for (size_t i = 0; i < n; i += 32) {
      const Vu four = strand_codes<kind, kStochastic>(quad, Strand<8>{i / 8});
      uint8_t bytes[4 * kLanes];  // kGather is its own inverse: four lanes of a vector together
      hn::StoreU(hn::TableLookupBytes(hn::BitCast(Db(), four), load_table(kGather)), Db(), bytes);
      for (size_t part = 0; part < kLanes; ++part)
        std::memcpy(codes + i + 8 * (part % 4) + lane + part / 4 * 4, bytes + 4 * part, 4);
    }
  }
  std::memcpy(work, padded, n * sizeof(float));
  pack_rest<kind>(codes, n, to);
}

template <ValueKind kind>
void quantise_rest_kind(Rounding rounding, size_t first, float* work, size_t n, uint32_t base,
                        uint8_t* scales, std::byte* codes) {
  const auto chosen =
      rounding.stochastic ? quantise_rest_of<kind, true> : quantise_rest_of<kind, false>;
  chosen(rounding.key, first, work, n, base, scales, codes);
}

}  // namespace

void quantise(ValueKind kind, Rounding rounding, float* work, size_t quads, uint32_t base,
              const GroupMagnitudes* groups, uint8_t* scales, std::byte* codes, Ahead ahead) {
  const auto chosen = kind == ValueKind::q8   ? quantise_kind<ValueKind::q8>
                      : kind == ValueKind::q4 ? quantise_kind<ValueKind::q4>
                      : kind == ValueKind::q3 ? quantise_kind<ValueKind::q3>
                      : kind == ValueKind::q2 ? quantise_kind<ValueKind::q2>
                                              : quantise_kind<ValueKind::q1>;
  chosen(rounding, work, quads, base, groups, scales, codes, ahead);
}

void quantise_rest(ValueKind kind, Rounding rounding, size_t first, float* work, size_t n,
                   uint32_t base, uint8_t* scales, std::byte* codes) {
  if (n == 0) return;
  const auto chosen = kind == ValueKind::q8   ? quantise_rest_kind<ValueKind::q8>
                      : kind == ValueKind::q4 ? quantise_rest_kind<ValueKind::q4>
                      : kind == ValueKind::q3 ? quantise_rest_kind<ValueKind::q3>
                      : kind == ValueKind::q2 ? quantise_rest_kind<ValueKind::q2>
                                              : quantise_rest_kind<ValueKind::q1>;
  chosen(rounding, first, work, n, base, scales, codes);
}

}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // an instruction set with kernels
