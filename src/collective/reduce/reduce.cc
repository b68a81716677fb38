// Checks of arguments, the floating-point environment, and the choice of implementation, made once.
#include "collective/reduce/reduce.h"

#include "base/check.h"
#include "collective/reduce/float_environment.h"
#include "collective/reduce/reduce_simd.h"

namespace scant::collective {
namespace {

constexpr int kDivisorMax = 1 << 24;  // every integer up to it is exact in f32

const ReduceTarget& fastest() {
  static const ReduceTarget& chosen = reduce_targets().front();
  return chosen;
}

void check_combine(DType dtype, ReduceOp op, size_t bytes) {
  SCANT_CHECK(reduce_defined(dtype, op), name(op));
  SCANT_CHECK(bytes % size_bytes(dtype) == 0, "part of an element");
}

void check_divide(DType dtype, size_t bytes, int divisor) {
  SCANT_CHECK(reduce_defined(dtype, ReduceOp::average), name(dtype));
  SCANT_CHECK(bytes % size_bytes(dtype) == 0, "part of an element");
  SCANT_CHECK(divisor >= 1 && divisor <= kDivisorMax);
}

}  // namespace

bool reduce_defined(DType dtype, ReduceOp op) {
  switch (dtype) {
    case DType::f32:
    case DType::f64:
    case DType::bf16:
    case DType::f16:
      return op != ReduceOp::bit_and && op != ReduceOp::bit_or && op != ReduceOp::bit_xor;
    case DType::i8:
    case DType::i32:
    case DType::i64:
    case DType::u8:
      return true;
    case DType::boolean:
      return op != ReduceOp::average;
  }
  return false;
}

void reduce(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
            std::byte* destination, size_t bytes) {
  check_combine(dtype, op, bytes);
  const FloatEnvironment environment;
  fastest().combine(dtype, op, a, b, destination, bytes);
}

void reduce_reference(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
                      std::byte* destination, size_t bytes) {
  check_combine(dtype, op, bytes);
  const FloatEnvironment environment;
  combine_scalar(dtype, op, a, b, destination, bytes);
}

void scale(DType dtype, std::byte* data, size_t bytes, int divisor) {
  check_divide(dtype, bytes, divisor);
  const FloatEnvironment environment;
  fastest().divide(dtype, data, bytes, divisor);
}

void scale_reference(DType dtype, std::byte* data, size_t bytes, int divisor) {
  check_divide(dtype, bytes, divisor);
  const FloatEnvironment environment;
  divide_scalar(dtype, data, bytes, divisor);
}

const char* reduce_implementation() { return fastest().name; }

}  // namespace scant::collective
