// CRC32C (Castagnoli), hardware where the CPU has it (chosen once at run time), a table elsewhere.
#pragma once

#include <cstdint>
#include <span>

#include "scant/base/types.h"

namespace scant::base {

// Extend `crc` (0 to start) by `data`: crc32c(b, crc32c(a)) == crc32c(a then b).
[[nodiscard]] uint32_t crc32c(Bytes data, uint32_t crc = 0);
[[nodiscard]] uint32_t crc32c_reference(Bytes data, uint32_t crc = 0);
[[nodiscard]] const char* crc32c_implementation();  // the name of what crc32c() runs

// What this CPU can run, fastest first: "vpclmul", "pclmul", "sse4.2"; "pmull", "armv8"; "table".
struct Crc32cImplementation {
  const char* name;
  uint32_t (*update)(const std::byte* data, size_t size, uint32_t inverted);  // takes, gives ~crc
};
[[nodiscard]] std::span<const Crc32cImplementation> crc32c_implementations();

}  // namespace scant::base
