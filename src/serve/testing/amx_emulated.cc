#include "serve/testing/amx_emulated.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/cpu.h"
#include "codec/quantise/levels.h"
#include "codec/tile/sparse.h"
#include "serve/file/rows.h"
#include "serve/kernels/arithmetic.h"
#include "serve/kernels/lanes/plan.h"
#include "serve/kernels/lanes/region.h"
#include "serve/kernels/x86/tile_shapes.h"
#include "serve/testing/tile_registers.h"

#define SCANT_HAS_VNNI 1
#define SCANT_HAS_AVX512 1

SCANT_BEGIN_INSTRUCTIONS(SCANT_AVX512VNNI);
namespace scant::serve::testing::amx_emulated {
namespace {

#include "serve/kernels/lanes/loops-inl.h"
// After it:
#include "serve/kernels/x86/vectors-inl.h"
// After it:
#include "serve/kernels/x86/lanes_avx512-inl.h"
// After it:
#include "serve/kernels/lanes/turn-inl.h"
// After it:
#include "serve/kernels/x86/lines_vbmi2-inl.h"
// After it:
#include "serve/kernels/lanes/expand-inl.h"
// After it:
#include "serve/testing/tiles_emulated-inl.h"

}  // namespace

#include "serve/kernels/x86/amx-inl.h"

}  // namespace scant::serve::testing::amx_emulated
SCANT_END_INSTRUCTIONS;

namespace scant::serve::testing {

const KernelTarget* amx_emulated_target() {
  static constexpr KernelTarget kTarget{.name = "amx_emulated",
                                        .step = "avx512",
                                        .form = amx_emulated::form,
                                        .fill = amx_emulated::fill,
                                        .scratch_bytes = amx_emulated::scratch_bytes,
                                        .multiply = amx_emulated::multiply,
                                        .begin = begin_nothing,
                                        .end = amx_emulated::end};
  return base::cpu_has_avx512vnni() ? &kTarget : nullptr;
}

}  // namespace scant::serve::testing
