// One row's values as codes, by the codec's own kernels: what tiles and sparse strips share. Codes
// lie a byte each.
#pragma once

#include "codec/kernels/kernels.h"

namespace scant::codec {

// As many columns as the kernels take without interleaving their codes: three groups.
inline constexpr size_t kRowChunk = 3 * kGroupElements;

// Quantises n values, at most a chunk; a byte of `scales` for each 64, a byte of `codes` for each.
// `values` becomes what is left.
void row_to_codes(ValueKind kind, float* values, size_t n, uint16_t base, uint8_t* scales,
                  uint8_t* codes);
void row_from_codes(ValueKind kind, const uint8_t* scales, const uint8_t* codes, size_t n,
                    uint16_t base, float* values, const Kernels& by = kernels());

}  // namespace scant::codec
