// Positions of a block's entries in the fewest bytes: bitmap, deltas of 8 bits, 16-bit positions or
// deltas of a fixed number of bits, whichever is smallest (docs/record.md, "Positions").
#pragma once

#include <span>
#include <vector>

#include "codec/record/record.h"

namespace scant::codec {

struct PositionChoice {
  uint8_t kind = 0;  // as in BlockHeader::positions
  uint32_t bytes = 0;
};

// `positions` ascend strictly and lie below `elements` <= 65536.
[[nodiscard]] PositionChoice choose_positions(std::span<const uint16_t> positions,
                                              uint32_t elements);
// Appends exactly choice.bytes bytes.
void append_positions(std::span<const uint16_t> positions, uint32_t elements, PositionChoice choice,
                      std::vector<std::byte>& out);
// Whether the bytes are exactly `entries` ascending positions below `elements`, written as the
// grammar says. Reads nothing past `bytes`, whatever they are.
[[nodiscard]] bool check_positions(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries);
// Writes `entries` positions to `out` (room for that many); false, and `out` is worth nothing,
// where check_positions is false. Reads nothing past `bytes` and writes nothing past `entries`,
// whatever the bytes are.
[[nodiscard]] bool read_positions(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries,
                                  uint16_t* out);

}  // namespace scant::codec
