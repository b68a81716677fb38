// The kernels of a step in vectors, compiled once for each instruction set (Highway's
// foreach_target, headers alone), and the choice among them at run time.
#include "serve/model/step_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "serve/model/step_simd.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <algorithm>
#include <cmath>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "base/cpu.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

#include "serve/model/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace scant::serve::HWY_NAMESPACE {
namespace {
#include "serve/model/step-inl.h"
}  // namespace
extern const StepKernels kStepKernels;
constinit const StepKernels kStepKernels = step_kernels(HWY_TARGET == HWY_AVX3   ? "avx512"
                                                        : HWY_TARGET == HWY_AVX2 ? "avx2"
                                                                                 : "neon");
}  // namespace scant::serve::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif

#if HWY_ONCE
namespace scant::serve {
namespace {

struct Targets {
  StepKernels list[3];
  size_t count = 0;
  void add(const StepKernels& kernels) { list[count++] = kernels; }
};

Targets find_targets() {
  Targets found;
#if defined(__x86_64__)
  if (base::cpu_has_avx512()) found.add(N_AVX3::kStepKernels);
  if (base::cpu_has_avx2()) found.add(N_AVX2::kStepKernels);
#elif defined(__aarch64__)
  found.add(N_NEON::kStepKernels);
#endif
  found.add(kPlainStepKernels);
  return found;
}

}  // namespace

std::span<const StepKernels> step_kernel_targets() {
  static const Targets found = find_targets();
  return {found.list, found.count};
}

}  // namespace scant::serve
#endif
