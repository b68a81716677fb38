// Everything that one instruction set compiles, in its order: included within the set's namespace,
// behind its lanes.
// clang-format off
#include "serve/kernels/lanes/turn-inl.h"
#if SCANT_HAS_VNNI
#include "serve/kernels/x86/lines_vbmi2-inl.h"
#else
#include "serve/kernels/lanes/lines-inl.h"
#endif
#include "serve/kernels/lanes/expand-inl.h"
#include "serve/kernels/lanes/store-inl.h"
#include "serve/kernels/lanes/codes-inl.h"
#include "serve/kernels/lanes/few-inl.h"
#include "serve/kernels/lanes/pair_sums-inl.h"
#include "serve/kernels/lanes/pairs-inl.h"
#include "serve/kernels/lanes/floats-inl.h"
#include "serve/kernels/lanes/fill-inl.h"
// clang-format on

// NOLINTNEXTLINE(misc-definitions-in-headers): each instruction set includes it once
void multiply(const Part& part) {
  switch (part.operand->form) {
    case Form::plain:
      if (part.weights->kind == TensorKind::f16) return multiply_floats<true>(part);
      return multiply_floats<false>(part);
    case Form::rounded:
      return multiply_pairs(part);
    default:
      if (part.operand->tokens <= kTokensFew) return multiply_few(part);
      return multiply_codes(part, add_panel,
                            part.operand->tokens > kPanelTokens ? kColumnsMany : kColumnsFew);
  }
}
