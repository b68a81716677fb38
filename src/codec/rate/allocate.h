// Who gets how many bytes: of each tensor's curve of energy kept against bytes one point, so that
// all together keep as much energy as a budget allows. Arithmetic alone, any thread.
//
// Steps along the upper convex hulls of the curves are taken in the order of energy gained per
// byte. Where a step does not fit, its curve tries cheaper points, until nothing fits. Had the
// first step that did not fit been taken in part, the energy would be that of the linear
// relaxation, which no choice exceeds. So the choice is at most that one step's gain short of the
// best, and never gets worse with a larger budget.
#pragma once

#include <span>
#include <vector>

#include "codec/rate/probe.h"
#include "scant/base/result.h"

namespace scant::codec {

struct Allocation {
  std::vector<size_t> choice;  // of each curve, an index of its points
  double bytes = 0;
  double energy = 0;
  double energy_bound = 0;  // no choice within the budget keeps more
};

// ErrorCode::invalid_argument: a curve without points, bytes or energy that are negative or not
// finite, or a budget below the cheapest points of all curves, which the message then names. For n
// curves of m points: O(n m (m + log n)) time.
[[nodiscard]] Result<Allocation> allocate(std::span<const Curve> curves, double budget_bytes);

}  // namespace scant::codec
