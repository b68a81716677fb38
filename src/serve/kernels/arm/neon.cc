// Products on NEON.
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
#define SCANT_HAS_DOT 0

namespace scant::serve::neon {

#include "serve/kernels/lanes/loops-inl.h"
// After it:
#include "serve/kernels/arm/lanes_neon-inl.h"
// After it:
#include "serve/kernels/lanes/all-inl.h"

}  // namespace scant::serve::neon
