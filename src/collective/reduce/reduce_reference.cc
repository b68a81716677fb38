// The plain meaning of reduce.h, one element at a time: what the SIMD kernels are tested against,
// and what runs on a CPU that has none of their instruction sets.
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "collective/reduce/reduce.h"
#include "collective/reduce/reduce_simd.h"

namespace scant::collective {
namespace {

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
void store(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

// Floats. NaN is recognised from its bits, and operands that are NaN never reach the hardware's own
// payload rules, which differ between x86 and Arm.
template <typename F>
using BitsOf = std::conditional_t<sizeof(F) == 4, uint32_t, uint64_t>;
template <typename F>
constexpr int kMantissaBits = sizeof(F) == 4 ? 23 : 52;
template <typename F>
constexpr auto kQuietBit = static_cast<BitsOf<F>>(BitsOf<F>{1} << (kMantissaBits<F> - 1));
template <typename F>
constexpr auto kInfinity =
    static_cast<BitsOf<F>>(static_cast<BitsOf<F>>(~BitsOf<F>{0} << (kMantissaBits<F> + 1)) >> 1);

template <typename F>
BitsOf<F> bits(F value) {
  return std::bit_cast<BitsOf<F>>(value);
}

template <typename F>
bool is_nan(F value) {
  return static_cast<BitsOf<F>>(bits(value) << 1) > static_cast<BitsOf<F>>(kInfinity<F> << 1);
}

template <typename F>
F quiet(F nan) {
  return std::bit_cast<F>(bits(nan) | kQuietBit<F>);
}

template <typename F>
F arithmetic(ReduceOp op, F a, F b) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::average:
      return a + b;
    case ReduceOp::product:
      return a * b;
    case ReduceOp::min:
      return a < b || (a == b && std::signbit(a)) ? a : b;
    case ReduceOp::max:
      return a > b || (a == b && !std::signbit(a)) ? a : b;
    default:
      break;
  }
  base::check_failed(__FILE__, __LINE__, "reduce_defined(dtype, op)", name(op));
}

template <typename F>
F combine_floats(ReduceOp op, F a, F b) {
  if (is_nan(a)) return quiet(a);
  if (is_nan(b)) return quiet(b);
  const F result = arithmetic(op, a, b);
  return is_nan(result) ? std::bit_cast<F>(kInfinity<F> | kQuietBit<F>) : result;
}

template <typename F>
F divide_float(F value, int divisor) {
  return is_nan(value) ? quiet(value) : value / static_cast<F>(divisor);
}

// Nearest even of value / 2^shift, for value < 2^31.
uint32_t shift_right_to_even(uint32_t value, int shift) {
  if (shift > 31) return 0;
  const uint32_t floor = value >> shift;
  const uint32_t rest = value - (floor << shift);
  const uint32_t half = uint32_t{1} << (shift - 1);
  return floor + (rest > half || (rest == half && (floor & 1u) != 0) ? 1u : 0u);
}

struct Bf16 {  // the upper half of an f32
  static float widen(uint16_t half) { return std::bit_cast<float>(uint32_t{half} << 16); }
  static uint16_t narrow(float value) {
    const uint32_t all = bits(value);
    if (is_nan(value)) return static_cast<uint16_t>(bits(quiet(value)) >> 16);
    // A carry out of the mantissa moves to the next exponent, and past the largest one to infinity.
    const uint32_t magnitude = shift_right_to_even(all & 0x7FFFFFFFu, 16);
    return static_cast<uint16_t>((all >> 31 << 15) | magnitude);
  }
};

struct F16 {  // IEEE binary16: 5 bits of exponent, 10 of mantissa
  static float widen(uint16_t half) {
    const uint32_t sign = uint32_t{half} >> 15 << 31;
    const uint32_t exponent = (half >> 10) & 0x1Fu;
    const uint32_t mantissa = half & 0x3FFu;
    if (exponent == 0) {  // zero and subnormals: a multiple of 2^-24
      return std::bit_cast<float>(sign | bits(static_cast<float>(mantissa) * 0x1p-24f));
    }
    const uint32_t wide_exponent = exponent == 0x1Fu ? 0xFFu : exponent + (127 - 15);
    return std::bit_cast<float>(sign | (wide_exponent << 23) | (mantissa << 13));
  }
  static uint16_t narrow(float value) {
    const uint32_t all = bits(value);
    const uint32_t sign = all >> 31 << 15;
    const uint32_t magnitude = all & 0x7FFFFFFFu;
    if (is_nan(value)) return static_cast<uint16_t>(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    const auto exponent = static_cast<int>(magnitude >> 23);
    if (exponent >= 127 + 16) return static_cast<uint16_t>(sign | 0x7C00u);
    if (exponent <=
        127 - 15) {  // below 2^-14: a multiple of 2^-24, value = mantissa * 2^(exponent - 150)
      const uint32_t mantissa = exponent == 0 ? 0 : (magnitude & 0x7FFFFFu) | 0x800000u;
      return static_cast<uint16_t>(sign | shift_right_to_even(mantissa, 126 - exponent));
    }
    const uint32_t rebiased = magnitude - (uint32_t{127 - 15} << 23);
    return static_cast<uint16_t>(sign | shift_right_to_even(rebiased, 13));
  }
};

template <typename F>
void combine_float_array(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                         size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(F)) {
    store(to + i, combine_floats(op, load<F>(a + i), load<F>(b + i)));
  }
}

template <typename Half>
void combine_half_array(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                        size_t bytes) {
  for (size_t i = 0; i < bytes; i += 2) {
    const float left = Half::widen(load<uint16_t>(a + i));
    const float right = Half::widen(load<uint16_t>(b + i));
    store(to + i, Half::narrow(combine_floats(op, left, right)));
  }
}

// Integers. Sums and products are taken without sign and at least 32 bits wide, where overflow is
// defined.
template <typename T>
T combine_integers(ReduceOp op, T a, T b) {
  using Unsigned = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  const auto left = static_cast<Unsigned>(static_cast<std::make_unsigned_t<T>>(a));
  const auto right = static_cast<Unsigned>(static_cast<std::make_unsigned_t<T>>(b));
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::average:
      return static_cast<T>(left + right);
    case ReduceOp::product:
      return static_cast<T>(left * right);
    case ReduceOp::min:
      return a < b ? a : b;
    case ReduceOp::max:
      return a > b ? a : b;
    case ReduceOp::bit_and:
      return static_cast<T>(left & right);
    case ReduceOp::bit_or:
      return static_cast<T>(left | right);
    case ReduceOp::bit_xor:
      return static_cast<T>(left ^ right);
  }
  return a;
}

template <typename T>
void combine_integer_array(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                           size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(T)) {
    store(to + i, combine_integers(op, load<T>(a + i), load<T>(b + i)));
  }
}

bool combine_booleans(ReduceOp op, bool a, bool b) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::max:
    case ReduceOp::bit_or:
      return a || b;
    case ReduceOp::product:
    case ReduceOp::min:
    case ReduceOp::bit_and:
      return a && b;
    case ReduceOp::bit_xor:
      return a != b;
    case ReduceOp::average:
      break;
  }
  base::check_failed(__FILE__, __LINE__, "reduce_defined(dtype, op)", name(op));
}

void combine_boolean_array(ReduceOp op, const std::byte* a, const std::byte* b, std::byte* to,
                           size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    to[i] = std::byte{combine_booleans(op, a[i] != std::byte{0}, b[i] != std::byte{0})};
  }
}

template <typename F>
void divide_float_array(std::byte* data, size_t bytes, int divisor) {
  for (size_t i = 0; i < bytes; i += sizeof(F))
    store(data + i, divide_float(load<F>(data + i), divisor));
}

template <typename Half>
void divide_half_array(std::byte* data, size_t bytes, int divisor) {
  for (size_t i = 0; i < bytes; i += 2) {
    store(data + i, Half::narrow(divide_float(Half::widen(load<uint16_t>(data + i)), divisor)));
  }
}

template <typename T>
void divide_integer_array(std::byte* data, size_t bytes, int divisor) {
  for (size_t i = 0; i < bytes; i += sizeof(T)) {
    store(data + i, static_cast<T>(int64_t{load<T>(data + i)} / divisor));
  }
}

}  // namespace

void combine_scalar(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
                    std::byte* destination, size_t bytes) {
  switch (dtype) {
    case DType::f32:
      return combine_float_array<float>(op, a, b, destination, bytes);
    case DType::f64:
      return combine_float_array<double>(op, a, b, destination, bytes);
    case DType::bf16:
      return combine_half_array<Bf16>(op, a, b, destination, bytes);
    case DType::f16:
      return combine_half_array<F16>(op, a, b, destination, bytes);
    case DType::i8:
      return combine_integer_array<int8_t>(op, a, b, destination, bytes);
    case DType::i32:
      return combine_integer_array<int32_t>(op, a, b, destination, bytes);
    case DType::i64:
      return combine_integer_array<int64_t>(op, a, b, destination, bytes);
    case DType::u8:
      return combine_integer_array<uint8_t>(op, a, b, destination, bytes);
    case DType::boolean:
      return combine_boolean_array(op, a, b, destination, bytes);
  }
}

void divide_scalar(DType dtype, std::byte* data, size_t bytes, int divisor) {
  switch (dtype) {
    case DType::f32:
      return divide_float_array<float>(data, bytes, divisor);
    case DType::f64:
      return divide_float_array<double>(data, bytes, divisor);
    case DType::bf16:
      return divide_half_array<Bf16>(data, bytes, divisor);
    case DType::f16:
      return divide_half_array<F16>(data, bytes, divisor);
    case DType::i8:
      return divide_integer_array<int8_t>(data, bytes, divisor);
    case DType::i32:
      return divide_integer_array<int32_t>(data, bytes, divisor);
    case DType::i64:
      return divide_integer_array<int64_t>(data, bytes, divisor);
    case DType::u8:
      return divide_integer_array<uint8_t>(data, bytes, divisor);
    case DType::boolean:
      break;
  }
  base::check_failed(__FILE__, __LINE__, "reduce_defined(dtype, average)", name(dtype));
}

}  // namespace scant::collective
