// SIMD kernels for reduce.h, compiled once for each instruction set (Highway's foreach_target).
// Every kernel sees vectors of bytes and works within its lanes, so the loop, its tail and
// unaligned arrays are written once, for all dtypes. The choice at run time is our own: Highway's
// would need libhwy, which Debian ships as a shared library only, and a wheel must be
// self-contained. Highway is therefore used as headers alone.
#include "collective/reduce/reduce_simd.h"

#include <cstdint>
#include <cstring>

#include "base/cpu.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "collective/reduce/reduce_simd.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

HWY_BEFORE_NAMESPACE();
namespace scant::collective::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D8 = hn::ScalableTag<uint8_t>;
using V8 = hn::Vec<D8>;
using Df32 = hn::Repartition<float, D8>;
using Du32 = hn::Repartition<uint32_t, D8>;
using Di32 = hn::Repartition<int32_t, D8>;

HWY_INLINE V8 load(const std::byte* from) {
  return hn::LoadU(D8(), reinterpret_cast<const uint8_t*>(from));
}

HWY_INLINE void store(V8 vector, std::byte* to) {
  hn::StoreU(vector, D8(), reinterpret_cast<uint8_t*>(to));
}

// to = kernel(a, b). All loads of a step come before its stores, so `to` may be `a` or `b`.
template <class Kernel>
HWY_NOINLINE void for_each(const Kernel kernel, const std::byte* a, const std::byte* b,
                           std::byte* to, size_t bytes) {
  constexpr size_t kStep = hn::MaxLanes(D8());
  size_t i = 0;
  for (; i + 4 * kStep <= bytes; i += 4 * kStep) {
    const V8 r0 = kernel(load(a + i), load(b + i));
    const V8 r1 = kernel(load(a + i + kStep), load(b + i + kStep));
    const V8 r2 = kernel(load(a + i + 2 * kStep), load(b + i + 2 * kStep));
    const V8 r3 = kernel(load(a + i + 3 * kStep), load(b + i + 3 * kStep));
    store(r0, to + i);
    store(r1, to + i + kStep);
    store(r2, to + i + 2 * kStep);
    store(r3, to + i + 3 * kStep);
  }
  for (; i + kStep <= bytes; i += kStep) store(kernel(load(a + i), load(b + i)), to + i);
  if (i < bytes) {
    std::byte left[kStep] = {};
    std::byte right[kStep] = {};
    std::memcpy(left, a + i, bytes - i);
    std::memcpy(right, b + i, bytes - i);
    store(kernel(load(left), load(right)), left);
    std::memcpy(to + i, left, bytes - i);
  }
}

// Floats. Hardware chooses NaN payloads in its own way, so a vector that holds a NaN, which is
// rare, is mended: the left operand made quiet, else the right one, else the canonical NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V mend_nan(D d, V a, V b, V result, hn::Mask<D> nan) {
  if (HWY_LIKELY(hn::AllFalse(d, nan))) return result;
  using Bits = hwy::MakeUnsigned<hn::TFromD<D>>;
  const hn::RebindToUnsigned<D> du;
  const V quiet = hn::BitCast(d, hn::Set(du, Bits{1} << (sizeof(Bits) == 4 ? 22 : 51)));
  const V made =
      hn::BitCast(d, hn::Set(du, sizeof(Bits) == 4 ? static_cast<Bits>(0x7FC00000u)
                                                   : static_cast<Bits>(0x7FF8000000000000u)));
  const V right = hn::IfThenElse(hn::IsNaN(b), hn::Or(b, quiet), made);
  const V fixed = hn::IfThenElse(hn::IsNaN(a), hn::Or(a, quiet), right);
  return hn::IfThenElse(nan, fixed, result);
}

struct Sum {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V a, V b) const {
    const V result = hn::Add(a, b);
    return mend_nan(d, a, b, result, hn::IsNaN(result));
  }
};

struct Product {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V a, V b) const {
    const V result = hn::Mul(a, b);
    return mend_nan(d, a, b, result, hn::IsNaN(result));
  }
};

// Equal operands have equal bits, zeros of two signs excepted: "or" keeps a minus, "and" drops it.
struct Min {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V a, V b) const {
    const V result = hn::IfThenElse(hn::Eq(a, b), hn::Or(a, b), hn::Min(a, b));
    return mend_nan(d, a, b, result, hn::Or(hn::IsNaN(a), hn::IsNaN(b)));
  }
};

struct Max {
  template <class D, class V>
  HWY_INLINE V operator()(D d, V a, V b) const {
    const V result = hn::IfThenElse(hn::Eq(a, b), hn::And(a, b), hn::Max(a, b));
    return mend_nan(d, a, b, result, hn::Or(hn::IsNaN(a), hn::IsNaN(b)));
  }
};

// x / divisor; the right operand is not used. Multiplying by 2^-k rounds exactly as dividing by 2^k
// does.
struct Divide {
  explicit Divide(int by)
      : divisor(by), reciprocal((by & (by - 1)) == 0 ? 1.0 / static_cast<double>(by) : 0.0) {}
  template <class D, class V>
  HWY_INLINE V operator()(D d, V a, V) const {
    using F = hn::TFromD<D>;
    const V result = reciprocal != 0.0 ? hn::Mul(a, hn::Set(d, static_cast<F>(reciprocal)))
                                       : hn::Div(a, hn::Set(d, static_cast<F>(divisor)));
    return mend_nan(d, a, a, result, hn::IsNaN(result));
  }
  int divisor;
  double reciprocal;  // 0: the divisor is not a power of two
};

template <typename F, class Op>
struct Float {
  Op op;
  HWY_INLINE V8 operator()(V8 a, V8 b) const {
    const hn::Repartition<F, D8> d;
    return hn::BitCast(D8(), op(d, hn::BitCast(d, a), hn::BitCast(d, b)));
  }
};

// Two bf16 in each 32-bit lane: the upper one is an f32 once the lower is masked off, the lower one
// once it is shifted up.
template <class Op>
struct Bf16 {
  Op op;
  // Nearest even in the upper 16 bits. A quiet NaN made by mend_nan has zeros below and stays
  // itself.
  static HWY_INLINE hn::Vec<Du32> round(hn::Vec<Df32> wide) {
    const auto bits = hn::BitCast(Du32(), wide);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(Du32(), 1u));
    return hn::Add(bits, hn::Add(odd, hn::Set(Du32(), 0x7FFFu)));
  }
  HWY_INLINE V8 operator()(V8 a8, V8 b8) const {
    const Df32 d;
    const Du32 du;
    const auto upper_bits = hn::Set(du, 0xFFFF0000u);
    const auto a = hn::BitCast(du, a8);
    const auto b = hn::BitCast(du, b8);
    const auto upper =
        op(d, hn::BitCast(d, hn::And(a, upper_bits)), hn::BitCast(d, hn::And(b, upper_bits)));
    const auto lower =
        op(d, hn::BitCast(d, hn::ShiftLeft<16>(a)), hn::BitCast(d, hn::ShiftLeft<16>(b)));
    return hn::BitCast(D8(),
                       hn::Or(hn::And(round(upper), upper_bits), hn::ShiftRight<16>(round(lower))));
  }
};

// The hardware's conversions are exact up, and round to nearest even down.
template <class Op>
struct F16 {
  Op op;
  using D16 = hn::Repartition<uint16_t, D8>;
  using HalfBits = hn::Half<D16>;
  using Half = hn::Rebind<hwy::float16_t, HalfBits>;
  static HWY_INLINE hn::Vec<Df32> widen(hn::Vec<HalfBits> bits) {
    return hn::PromoteTo(Df32(), hn::BitCast(Half(), bits));
  }
  static HWY_INLINE hn::Vec<HalfBits> narrow(hn::Vec<Df32> wide) {
    return hn::BitCast(HalfBits(), hn::DemoteTo(Half(), wide));
  }
  HWY_INLINE V8 operator()(V8 a8, V8 b8) const {
    const D16 d16;
    const HalfBits half;
    const auto a = hn::BitCast(d16, a8);
    const auto b = hn::BitCast(d16, b8);
    const auto lower = op(Df32(), widen(hn::LowerHalf(half, a)), widen(hn::LowerHalf(half, b)));
    const auto upper = op(Df32(), widen(hn::UpperHalf(half, a)), widen(hn::UpperHalf(half, b)));
    return hn::BitCast(D8(), hn::Combine(d16, narrow(upper), narrow(lower)));
  }
};

// Integers. Vectors without sign wrap.
template <typename T>
struct IntegerSum {
  HWY_INLINE V8 operator()(V8 a, V8 b) const {
    const hn::Repartition<T, D8> d;
    return hn::BitCast(D8(), hn::Add(hn::BitCast(d, a), hn::BitCast(d, b)));
  }
};

template <typename T>
struct IntegerProduct {
  HWY_INLINE V8 operator()(V8 a, V8 b) const {
    const hn::Repartition<T, D8> d;
    return hn::BitCast(D8(), hn::Mul(hn::BitCast(d, a), hn::BitCast(d, b)));
  }
};

template <>
struct IntegerProduct<uint8_t> {  // there is no 8-bit multiplication: the two bytes of each 16-bit
                                  // lane in turn
  HWY_INLINE V8 operator()(V8 a8, V8 b8) const {
    const hn::Repartition<uint16_t, D8> d;
    const auto a = hn::BitCast(d, a8);
    const auto b = hn::BitCast(d, b8);
    const auto lower = hn::And(hn::Mul(a, b), hn::Set(d, uint16_t{0xFF}));
    const auto upper = hn::ShiftLeft<8>(hn::Mul(hn::ShiftRight<8>(a), hn::ShiftRight<8>(b)));
    return hn::BitCast(D8(), hn::Or(upper, lower));
  }
};

template <typename T>
struct IntegerMin {
  HWY_INLINE V8 operator()(V8 a, V8 b) const {
    const hn::Repartition<T, D8> d;
    return hn::BitCast(D8(), hn::Min(hn::BitCast(d, a), hn::BitCast(d, b)));
  }
};

template <typename T>
struct IntegerMax {
  HWY_INLINE V8 operator()(V8 a, V8 b) const {
    const hn::Repartition<T, D8> d;
    return hn::BitCast(D8(), hn::Max(hn::BitCast(d, a), hn::BitCast(d, b)));
  }
};

struct BitAnd {
  HWY_INLINE V8 operator()(V8 a, V8 b) const { return hn::And(a, b); }
};
struct BitOr {
  HWY_INLINE V8 operator()(V8 a, V8 b) const { return hn::Or(a, b); }
};
struct BitXor {
  HWY_INLINE V8 operator()(V8 a, V8 b) const { return hn::Xor(a, b); }
};

// Booleans: a true byte becomes 1 first; after that they are bits.
template <class Bitwise>
struct Boolean {
  Bitwise op;
  static HWY_INLINE V8 truth(V8 v) { return hn::Min(v, hn::Set(D8(), uint8_t{1})); }
  HWY_INLINE V8 operator()(V8 a, V8 b) const { return op(truth(a), truth(b)); }
};

// Truncating division through floats is exact: with |x| < 2^p, x / d lies at least 1/d from the
// integer above it, more than a rounding to p bits can move it. p is 24 for bytes in f32 and 53 for
// i32 in f64.
template <bool kSigned>
struct DivideBytes {
  float divisor;
  template <int kShift>
  HWY_INLINE hn::Vec<Du32> quarter(
      hn::Vec<Du32> v) const {  // the byte at bit kShift, divided, in its place
    const auto top = hn::ShiftLeft<24 - kShift>(v);
    const auto x = kSigned ? hn::ShiftRight<24>(hn::BitCast(Di32(), top))
                           : hn::BitCast(Di32(), hn::ShiftRight<24>(top));
    const auto quotient = hn::Div(hn::ConvertTo(Df32(), x), hn::Set(Df32(), divisor));
    const auto truncated = hn::BitCast(Du32(), hn::ConvertTo(Di32(), quotient));
    return hn::ShiftLeft<kShift>(hn::And(truncated, hn::Set(Du32(), 0xFFu)));
  }
  HWY_INLINE V8 operator()(V8 a, V8) const {
    const auto v = hn::BitCast(Du32(), a);
    return hn::BitCast(
        D8(), hn::Or(hn::Or(quarter<0>(v), quarter<8>(v)), hn::Or(quarter<16>(v), quarter<24>(v))));
  }
};

struct DivideI32 {
  double divisor;
  HWY_INLINE V8 operator()(V8 a, V8) const {
    const Di32 d;
    const hn::Half<Di32> half;
    const hn::Repartition<double, D8> wide;
    const auto v = hn::BitCast(d, a);
    const auto by = hn::Set(wide, divisor);
    const auto lower = hn::Div(hn::PromoteTo(wide, hn::LowerHalf(half, v)), by);
    const auto upper = hn::Div(hn::PromoteTo(wide, hn::UpperHalf(half, v)), by);
    return hn::BitCast(D8(), hn::Combine(d, hn::DemoteTo(half, upper), hn::DemoteTo(half, lower)));
  }
};

template <template <class> class Widened>
void combine_halves(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                    size_t bytes) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::average:
      return for_each(Widened<Sum>{}, a, b, to, bytes);
    case ReduceOp::product:
      return for_each(Widened<Product>{}, a, b, to, bytes);
    case ReduceOp::min:
      return for_each(Widened<Min>{}, a, b, to, bytes);
    case ReduceOp::max:
      return for_each(Widened<Max>{}, a, b, to, bytes);
    default:
      return combine_scalar(DType::f32, op, a, b, to, bytes);  // aborts: not defined
  }
}

template <class Op>
using Float32 = Float<float, Op>;
template <class Op>
using Float64 = Float<double, Op>;

template <typename T>
void combine_integers(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                      size_t bytes) {
  using Unsigned = hwy::MakeUnsigned<T>;
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::average:
      return for_each(IntegerSum<Unsigned>{}, a, b, to, bytes);
    case ReduceOp::product:
      return for_each(IntegerProduct<Unsigned>{}, a, b, to, bytes);
    case ReduceOp::min:
      return for_each(IntegerMin<T>{}, a, b, to, bytes);
    case ReduceOp::max:
      return for_each(IntegerMax<T>{}, a, b, to, bytes);
    case ReduceOp::bit_and:
      return for_each(BitAnd{}, a, b, to, bytes);
    case ReduceOp::bit_or:
      return for_each(BitOr{}, a, b, to, bytes);
    case ReduceOp::bit_xor:
      return for_each(BitXor{}, a, b, to, bytes);
  }
}

void combine_booleans(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                      size_t bytes) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::max:
    case ReduceOp::bit_or:
      return for_each(Boolean<BitOr>{}, a, b, to, bytes);
    case ReduceOp::product:
    case ReduceOp::min:
    case ReduceOp::bit_and:
      return for_each(Boolean<BitAnd>{}, a, b, to, bytes);
    case ReduceOp::bit_xor:
      return for_each(Boolean<BitXor>{}, a, b, to, bytes);
    case ReduceOp::average:
      return combine_scalar(DType::boolean, op, a, b, to, bytes);  // aborts
  }
}

}  // namespace

void combine(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
             size_t bytes) {
  switch (dtype) {
    case DType::f32:
      return combine_halves<Float32>(op, a, b, to, bytes);
    case DType::f64:
      return combine_halves<Float64>(op, a, b, to, bytes);
    case DType::bf16:
      return combine_halves<Bf16>(op, a, b, to, bytes);
    case DType::f16:
      return combine_halves<F16>(op, a, b, to, bytes);
    case DType::i8:
      return combine_integers<int8_t>(op, a, b, to, bytes);
    case DType::i32:
      return combine_integers<int32_t>(op, a, b, to, bytes);
    case DType::i64:
      return combine_integers<int64_t>(op, a, b, to, bytes);
    case DType::u8:
      return combine_integers<uint8_t>(op, a, b, to, bytes);
    case DType::boolean:
      return combine_booleans(op, a, b, to, bytes);
  }
}

void divide(DType dtype, std::byte* data, size_t bytes, int divisor) {
  const auto single = static_cast<float>(divisor);
  switch (dtype) {
    case DType::f32:
      return for_each(Float32<Divide>{Divide(divisor)}, data, data, data, bytes);
    case DType::f64:
      return for_each(Float64<Divide>{Divide(divisor)}, data, data, data, bytes);
    case DType::bf16:
      return for_each(Bf16<Divide>{Divide(divisor)}, data, data, data, bytes);
    case DType::f16:
      return for_each(F16<Divide>{Divide(divisor)}, data, data, data, bytes);
    case DType::i8:
      return for_each(DivideBytes<true>{single}, data, data, data, bytes);
    case DType::u8:
      return for_each(DivideBytes<false>{single}, data, data, data, bytes);
    case DType::i32:
      return for_each(DivideI32{static_cast<double>(divisor)}, data, data, data, bytes);
    case DType::i64:      // no vector division of this width exists
    case DType::boolean:  // aborts: not defined
      return divide_scalar(dtype, data, bytes, divisor);
  }
}

}  // namespace scant::collective::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // an instruction set with kernels

#if HWY_ONCE

namespace scant::collective {
namespace {

struct Targets {
  ReduceTarget list[3];
  size_t count = 0;
  void add(ReduceTarget target) { list[count++] = target; }
};

Targets find_targets() {
  Targets found;
#if HWY_ARCH_X86
  if (base::cpu_has_avx512()) found.add({"avx512", N_AVX3::combine, N_AVX3::divide});
  if (base::cpu_has_avx2()) found.add({"avx2", N_AVX2::combine, N_AVX2::divide});
#elif HWY_ARCH_ARM_A64
  found.add({"neon", N_NEON::combine, N_NEON::divide});
#endif
  found.add({"scalar", combine_scalar, divide_scalar});
  return found;
}

}  // namespace

std::span<const ReduceTarget> reduce_targets() {
  static const Targets found = find_targets();
  return {found.list, found.count};
}

}  // namespace scant::collective

#endif  // HWY_ONCE
