// What the micro-benchmarks work on.
#pragma once

#include <cstdint>

#include "base/rng.h"

namespace scant::bench {

// Nearly normal: sums of uniforms.
template <typename List>
List random_floats(size_t n, uint64_t stream = 0) {
  base::Rng rng(1, stream);
  List values(n);
  for (float& value : values) {
    value = static_cast<float>(rng.uniform() + rng.uniform() + rng.uniform() - 1.5);
  }
  return values;
}

}  // namespace scant::bench
