// Products on AVX512VNNI.
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

#define SCANT_HAS_VNNI 1
#define SCANT_HAS_AVX512 1

SCANT_BEGIN_INSTRUCTIONS(SCANT_AVX512VNNI);
namespace scant::serve::avx512vnni {

#include "serve/kernels/lanes/loops-inl.h"
// After it:
#include "serve/kernels/x86/vectors-inl.h"
// After it:
#include "serve/kernels/x86/lanes_avx512-inl.h"
// After it:
#include "serve/kernels/lanes/all-inl.h"

}  // namespace scant::serve::avx512vnni
SCANT_END_INSTRUCTIONS;
