// CRC32C (Castagnoli), hardware where the CPU has it (chosen once at run time), a table elsewhere.
#pragma once

#include <cstdint>

#include "scant/types.h"

namespace scant::base {

// Extend `crc` (0 to start) by `data`: crc32c(b, crc32c(a)) == crc32c(a then b).
[[nodiscard]] uint32_t crc32c(Bytes data, uint32_t crc = 0);
[[nodiscard]] uint32_t crc32c_reference(Bytes data, uint32_t crc = 0);
[[nodiscard]] const char* crc32c_implementation();  // "vpclmul", "sse4.2", "armv8", "table"

}  // namespace scant::base
