// How fast this machine reads weights: what decoding cannot exceed. Any thread.
#pragma once

#include <cstddef>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::serve {

// Bytes a second, of so many threads that read `weights` once they are in memory. At most 512 MiB
// are read, twice.
[[nodiscard]] Result<double> reading_speed(Bytes weights, size_t threads);

}  // namespace scant::serve
