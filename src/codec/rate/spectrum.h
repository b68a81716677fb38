// How much of a matrix its strongest directions hold: what a rank would keep, from a sample of at
// most a million elements. One owner thread calls; nothing of the encoders changes.
#pragma once

#include <span>
#include <vector>

#include "codec/rank/factors.h"
#include "codec/workspace.h"
#include "scant/base/result.h"

namespace scant::codec {

inline constexpr uint32_t kSpectrumRank = 32;  // directions that are looked for

struct Spectrum {
  double energy = 0;  // of the sample, as a sum of squares
  // Of so many directions, from 0 on: the energy that the strongest hold. Never falls.
  std::vector<double> held{};
  // The share that `rank` directions hold; beyond what was looked for, the last one's.
  [[nodiscard]] double share(uint32_t rank) const;
};

// Of elements `range` of a tensor: slices as those of Factors. Two power iterations from random
// directions. What is not finite counts as zero.
[[nodiscard]] Result<Spectrum> spectrum(Shape shape, Range range,
                                        std::span<const MatrixSlice> slices, Workspace& workspace);

}  // namespace scant::codec
