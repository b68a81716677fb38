#include "codec/record/block_writer.h"

#include <algorithm>
#include <cstring>

namespace scant::codec {

void write_values(ValueKind kind, Rounding rounding, uint32_t magnitude_max, float* values,
                  size_t n, std::byte* payload, BlockHeader& header, const GroupMagnitudes* groups,
                  Ahead ahead) {
  header.values = kind;
  header.scale_base = 0;
  if (kind == ValueKind::f32) {
    if (n > 0) std::memcpy(payload, values, n * sizeof(float));
    std::fill_n(values, n, 0.0f);
    return;
  }
  if (!quantised(kind)) {
    kernels().narrow(kind, values, n, payload);
    return;
  }
  const uint32_t base = scale_base(kind, magnitude_max);
  header.scale_base = static_cast<uint16_t>(base);
  auto* scales = reinterpret_cast<uint8_t*>(payload);
  std::byte* codes = payload + scale_count(kind, n);
  const size_t quads = n / kQuadElements;
  kernels().quantise(kind, rounding, values, quads, base, groups, scales, codes, ahead);
  const size_t whole = quads * kQuadElements;
  kernels().quantise_rest(kind, rounding, whole, values + whole, n - whole, base,
                          scales + whole / kGroupElements, codes + whole * bits(kind) / 8);
}

uint64_t count_nonfinite(const float* values, size_t n) {
  uint64_t count = 0;
  for (size_t i = 0; i < n; ++i) count += is_finite(values[i]) ? 0u : 1u;
  return count;
}

}  // namespace scant::codec
