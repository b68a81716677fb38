// Products of bf16 on AVX512BF16, in the order of VDPBF16PS; all others are AVX512VNNI's.
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

SCANT_BEGIN_INSTRUCTIONS(SCANT_AVX512VNNI ",avx512bf16");
namespace scant::serve::avx512bf16 {

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
#include "serve/kernels/lanes/store-inl.h"
// After it:
#include "serve/kernels/x86/pair_sums_bf16-inl.h"
// After it:
#include "serve/kernels/lanes/pairs-inl.h"
// After it:
#include "serve/kernels/x86/sparse_rows_bf16-inl.h"

Form form(TensorKind kind, size_t tokens) {
  return of_pairs(kind) ? Form::left16 : lanes_form(kind, tokens);
}

size_t scratch_bytes(const Tensor& weights, size_t tokens) {
  return weights.kind == TensorKind::sparse_bf16 ? sparse_plan(weights, tokens).bytes
                                                 : lanes_scratch_bytes(weights, tokens);
}

void multiply(const Part& part) {
  if (part.operand->form != Form::left16) return avx512vnni::multiply(part);
  if (part.weights->kind == TensorKind::sparse_bf16) return multiply_sparse(part);
  multiply_pairs(part);
}

}  // namespace scant::serve::avx512bf16
SCANT_END_INSTRUCTIONS;
