// Products on AMX: tiles of up to 16 rows of 64 bytes, and the instructions that multiply them. The
// kernel must let the process use them first, see base::cpu_has_amx().
#pragma once

#include "serve/kernels/targets.h"

namespace scant::serve::amx {

[[nodiscard]] Form form(TensorKind kind, size_t tokens);
[[nodiscard]] size_t scratch_bytes(const Tensor& weights, size_t tokens);
void fill(const Operand& operand, size_t panel);
void multiply(const Part& part);
void end();  // releases the tiles of this thread

}  // namespace scant::serve::amx
