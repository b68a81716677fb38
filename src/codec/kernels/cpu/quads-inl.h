// How a quad's codes lie in words of 32 bits, for the kernels that write them and those that read
// them (cpu/quantise.cc, cpu/decode.cc). Included once for each instruction set.
#if defined(SCANT_CODEC_KERNELS_QUADS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SCANT_CODEC_KERNELS_QUADS_INL_H
#undef SCANT_CODEC_KERNELS_QUADS_INL_H
#else
#define SCANT_CODEC_KERNELS_QUADS_INL_H
#endif

#include "codec/kernels/cpu/scales-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {

// Bits of a code in its kind's first stream.
constexpr int stream_bits(ValueKind kind) {
  return kind == ValueKind::q3 ? 2 : static_cast<int>(bits(kind));
}
constexpr size_t kWordBytes = 32;    // word k of all eight lanes
constexpr size_t kQ3SignBytes = 64;  // where the second stream of q3 begins

// A stream of kBits-bit codes takes its words from "strands": word k holds indices 4 * kStrands * k
// on, and strand r of it every kStrands-th index from r on, four, each in its byte at bit kBits *
// r.
template <int kBits>
constexpr size_t kStrands = 8 / static_cast<size_t>(kBits);

constexpr uint32_t every_byte(uint32_t byte) { return byte * 0x01010101u; }

// Four bytes of a 32-bit lane, signed, one after the other.
template <int kByte>
HWY_INLINE Vf widen(Vu four) {
  const Vi v = hn::BitCast(Di(), four);
  return hn::ConvertTo(Df(), hn::ShiftRight<24>(hn::ShiftLeft<24 - 8 * kByte>(v)));
}

// Codes to levels, signed bytes.
template <ValueKind kind>
HWY_INLINE Vu meaning(Vu codes) {
  if constexpr (kind == ValueKind::q8) return codes;
  return hn::BitCast(Du(),
                     hn::TableLookupBytes(load_table(kSigned<kind>), hn::BitCast(Db(), codes)));
}

}  // namespace
}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // included for this target
