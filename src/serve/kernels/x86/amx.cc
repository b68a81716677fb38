#include "serve/kernels/x86/amx.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "codec/quantise/levels.h"
#include "codec/tile/sparse.h"
#include "serve/file/rows.h"
#include "serve/kernels/arithmetic.h"
#include "serve/kernels/lanes/plan.h"
#include "serve/kernels/lanes/region.h"
#include "serve/kernels/x86/tile_shapes.h"

#define SCANT_HAS_VNNI 1
#define SCANT_HAS_AVX512 1

SCANT_BEGIN_INSTRUCTIONS(SCANT_AVX512VNNI ",amx-tile,amx-int8,amx-bf16");
namespace scant::serve::amx {
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
#include "serve/kernels/x86/tiles_amx-inl.h"

}  // namespace

#include "serve/kernels/x86/amx-inl.h"

}  // namespace scant::serve::amx
SCANT_END_INSTRUCTIONS;
