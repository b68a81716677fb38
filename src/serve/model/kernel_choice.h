// Which kernels a decoder uses: those of products, and others that need no more of the CPU. Results
// depend on the choice only where weights are bf16 (docs/serve.md, "Products"). Pure functions.
#pragma once

#include <string_view>
#include <vector>

#include "codec/kernels/kernels.h"
#include "scant/base/result.h"

namespace scant::serve {

struct KernelTarget;
struct StepKernels;

struct KernelChoice {
  const KernelTarget* products = nullptr;
  const StepKernels* step = nullptr;
  const codec::Kernels* rows = nullptr;  // of an embedding
};

[[nodiscard]] KernelChoice best_kernels();
// An empty name is the best. ErrorCode::invalid_argument: this CPU has none of this name; the
// message has those that it has.
[[nodiscard]] Result<KernelChoice> kernels_named(std::string_view name);
// All that it has, the best first.
[[nodiscard]] std::vector<std::string_view> kernel_names();

}  // namespace scant::serve
