// Elementwise combination of two arrays: the arithmetic of every reduction. SIMD with run-time dispatch, bit-equal to
// reduce_reference for every dtype and operator on every CPU (no fused multiply-add, round to nearest even).
// bf16 and f16 are widened to f32, combined, and rounded once. NaN: the left operand's quiet payload wins.
#pragma once

#include "scant/types.h"

namespace scant::sync {

[[nodiscard]] bool reduce_defined(DType dtype, ReduceOp op);
// destination[i] = a[i] op b[i]; `destination` may be `a` or `b`. `average` adds here; scale() finishes it.
void reduce(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b, std::byte* destination, size_t bytes);
void reduce_reference(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b, std::byte* destination,
                      size_t bytes);
// data[i] /= divisor in the dtype's arithmetic (floats: multiply by the rounded reciprocal when divisor is a power of
// two, else divide; integers truncate).
void scale(DType dtype, std::byte* data, size_t bytes, int divisor);
void scale_reference(DType dtype, std::byte* data, size_t bytes, int divisor);

}  // namespace scant::sync
