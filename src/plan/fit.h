// What measurements say of the link and of contention. Pure functions; any thread.
// docs/planner.md, "Profile".
#pragma once

#include <span>

#include "plan/predict.h"
#include "plan/sounding.h"

namespace scant::plan {

// What soundings of all ranks say; where they say nothing, `before`.
[[nodiscard]] LinkRate fit_link(std::span<const SoundingTimes> by_rank, int ranks,
                                const LinkRate& before);

// A period's computing, backward and the rest of a step together, and what went on beside it.
struct ComputeSample {
  double compute_s = 0;
  double work_s = 0;  // before the end of backward
  double bytes = 0;   // sent in a step
};

struct Contention {
  double compute_s = 0;  // undisturbed
  double per_work = 0.5;
  double per_byte = 0;
};

// The last sample counts most.
[[nodiscard]] Contention fit_contention(std::span<const ComputeSample> samples);

}  // namespace scant::plan
