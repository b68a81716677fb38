// Everything that one instruction set compiles, in its order: included within the set's namespace,
// behind its lanes.
// clang-format off
#include "serve/kernels/x86/expand-inl.h"
#include "serve/kernels/x86/codes-inl.h"
#include "serve/kernels/x86/few-inl.h"
#include "serve/kernels/x86/pairs-inl.h"
#include "serve/kernels/x86/floats-inl.h"
#include "serve/kernels/x86/fill-inl.h"
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
