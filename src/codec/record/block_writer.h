// Turns one block's values into a payload and leaves what the payload does not say: shared by dense
// and sparse steps. A worker's; no state beyond its arguments.
#pragma once

#include <span>
#include <vector>

#include "codec/kernels/kernels.h"
#include "codec/record/record.h"

namespace scant::codec {

// Writes `n` values of the kind to `payload` (value_bytes(kind, n) of them). The values become what
// is left; NaN and infinities are kept by f32, bf16 and f16 only, and leave 0. `magnitude_max`:
// of the values, as Kernels::accumulate gives it, and so are `groups` (may be null). Sets
// header.values and header.scale_base.
void write_values(ValueKind kind, Rounding rounding, uint32_t magnitude_max, float* values,
                  size_t n, std::byte* payload, BlockHeader& header,
                  const GroupMagnitudes* groups = nullptr, Ahead ahead = {});

[[nodiscard]] uint64_t count_nonfinite(const float* values, size_t n);

}  // namespace scant::codec
