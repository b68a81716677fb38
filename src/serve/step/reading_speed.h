// How fast this machine reads weights: what decoding cannot exceed. Any thread.
#pragma once

#include <cstddef>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::serve {

// Bytes a second, of so many threads that read `weights` once they are in memory, in the fastest of
// several ways. At most 512 MiB are read, nine times.
[[nodiscard]] Result<double> reading_speed(Bytes weights, size_t threads);

}  // namespace scant::serve
