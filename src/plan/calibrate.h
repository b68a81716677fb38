// What the codec's work costs on this machine, now: short trials of every kind. Takes about 50 ms;
// any thread, and nothing else should run on its core.
#pragma once

#include "plan/predict.h"

namespace scant::plan {

[[nodiscard]] WorkRates calibrate();

}  // namespace scant::plan
