// The implementations of products: one for each instruction set, each of the bits of its reference.
// Functions may be called on any thread.
#pragma once

#include <span>

#include "base/worker_pool.h"
#include "serve/file/tensor_kind.h"
#include "serve/kernels/multiply.h"
#include "serve/kernels/operand.h"

namespace scant::serve {

// Strips of one matrix, to be multiplied with all tokens. The last strip may have fewer rows.
struct Part {
  const Tensor* weights = nullptr;
  uint64_t strip_first = 0;
  uint64_t strips = 0;
  const Operand* operand = nullptr;
  float* out = nullptr;  // of the product: token * stride + row
  size_t stride = 0;
  Bytes ahead{};                 // what this worker reads after these strips
  std::byte* scratch = nullptr;  // of this worker, begins with a cache line
};

struct KernelTarget;
extern const KernelTarget kReferenceTarget;
extern const KernelTarget kDotReferenceTarget;  // sums of bf16 in the order of VDPBF16PS

struct KernelTarget {
  const char* name = nullptr;
  const char* step = "plain";  // of step_kernel_targets(): those that need no more of the CPU
  Form (*form)(TensorKind kind, size_t tokens) = nullptr;
  // Fills one panel of an operand that has its shape.
  void (*fill)(const Operand& operand, size_t panel) = nullptr;
  size_t (*scratch_bytes)(const Tensor& weights, size_t tokens) = nullptr;
  void (*multiply)(const Part& part) = nullptr;
  // Of each worker, before its first and after its last part of a call.
  void (*begin)(size_t tokens) = nullptr;
  void (*end)() = nullptr;
  const KernelTarget* reference = &kReferenceTarget;  // whose bits it returns
};

// Those that this CPU runs, the best first; the last one is the reference.
[[nodiscard]] std::span<const KernelTarget> kernel_targets();

}  // namespace scant::serve
