// Products on AVX2.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "codec/quantise/levels.h"
#include "codec/tile/sparse.h"
#include "serve/file/rows.h"
#include "serve/kernels/arithmetic.h"
#include "serve/kernels/lanes/plan.h"
#include "serve/kernels/lanes/region.h"

#define SCANT_HAS_VNNI 0
#define SCANT_HAS_AVX512 0

SCANT_BEGIN_INSTRUCTIONS(SCANT_AVX2);
namespace scant::serve::avx2 {

#include "serve/kernels/lanes/loops-inl.h"
// After it:
#include "serve/kernels/x86/vectors-inl.h"
// After it:
#include "serve/kernels/x86/lanes_avx2-inl.h"
// After it:
#include "serve/kernels/lanes/all-inl.h"

}  // namespace scant::serve::avx2
SCANT_END_INSTRUCTIONS;
