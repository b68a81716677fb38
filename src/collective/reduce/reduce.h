// Elementwise combination of two arrays: the arithmetic of every reduction. SIMD with run-time
// dispatch, bit-equal to reduce_reference for every dtype and operator on every CPU and in every
// floating-point mode of the calling thread:
// - floats round to nearest even, without fused multiply-add, flush-to-zero or signed-zero
// shortcuts; bf16 and f16 are
//   widened to f32, combined, and rounded once;
// - a NaN operand gives a NaN for every operator, min and max included, as in torch: the left
// operand's payload wins,
//   made quiet; a NaN that no operand brought (inf - inf, 0 * inf) is the positive quiet NaN
//   without payload;
// - min and max order -0.0 below +0.0 (IEEE 754-2019 minimum and maximum), so they do not depend on
// operand order;
// - integers wrap in two's complement; a boolean is true for any nonzero byte, and results are 0
// or 1. Any thread may call; pointers need no alignment.
#pragma once

#include "scant/base/types.h"

namespace scant::collective {

// False for average of booleans and for bit_* of floats: those have no meaning, and reduce() aborts
// on them.
[[nodiscard]] bool reduce_defined(DType dtype, ReduceOp op);
// destination[i] = a[i] op b[i]; `destination` may be `a` or `b` but overlap them in no other way.
// `bytes` is a multiple of the dtype's size. `average` adds here; scale() finishes it.
void reduce(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
            std::byte* destination, size_t bytes);
void reduce_reference(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
                      std::byte* destination, size_t bytes);
// data[i] /= divisor, for the dtypes that have `average`; 1 <= divisor <= 2^24. Floats divide with
// one rounding in their own arithmetic (bf16, f16: in f32, then once more to the dtype); integers
// truncate towards zero.
void scale(DType dtype, std::byte* data, size_t bytes, int divisor);
void scale_reference(DType dtype, std::byte* data, size_t bytes, int divisor);
// "avx512", "avx2", "neon" or "scalar": what reduce() and scale() run on this CPU.
[[nodiscard]] const char* reduce_implementation();

}  // namespace scant::collective
