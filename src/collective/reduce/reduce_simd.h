// The implementations behind reduce.h, one for each kind of CPU this build knows. Internal:
// reduce.cc takes the first; tests hold every one that runs here equal to the reference.
#pragma once

#include <span>

#include "scant/base/types.h"

namespace scant::collective {

// Both functions expect arguments that reduce.h allows and the default floating-point environment.
struct ReduceTarget {
  const char* name;  // "avx512", "avx2", "neon", "scalar"
  void (*combine)(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
                  std::byte* destination, size_t bytes);
  void (*divide)(DType dtype, std::byte* data, size_t bytes, int divisor);
};

// What this CPU can run, fastest first; the last is "scalar", the reference itself.
[[nodiscard]] std::span<const ReduceTarget> reduce_targets();

// reduce_reference.cc without the checks of arguments.
void combine_scalar(DType dtype, ReduceOp op, const std::byte* a, const std::byte* b,
                    std::byte* destination, size_t bytes);
void divide_scalar(DType dtype, std::byte* data, size_t bytes, int divisor);

}  // namespace scant::collective
