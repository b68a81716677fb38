// The kernels of AMX on tiles in software, for CPUs that lack AMX. They are the functions of
// serve/kernels/x86/amx-inl.h; only tiles_emulated-inl.h stands for the instructions.
#pragma once

#include <algorithm>
#include <vector>

#include "serve/kernels/targets.h"

namespace scant::serve::testing {

// Null where the CPU lacks the rest of what the kernels use: AVX-512 with VNNI, VBMI and VBMI2.
#if defined(__x86_64__)
[[nodiscard]] const KernelTarget* amx_emulated_target();
#else
[[nodiscard]] inline const KernelTarget* amx_emulated_target() { return nullptr; }
#endif

// All that this CPU runs, in hardware and emulated.
[[nodiscard]] inline std::vector<KernelTarget> tested_targets() {
  std::vector<KernelTarget> targets(kernel_targets().begin(), kernel_targets().end());
  if (const KernelTarget* const emulated = amx_emulated_target()) targets.push_back(*emulated);
  return targets;
}

}  // namespace scant::serve::testing
