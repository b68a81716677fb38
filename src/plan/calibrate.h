// What the codec's work costs on this machine, now: short trials of every kind. Takes about 50 ms;
// any thread, and nothing else should run on its core.
#pragma once

#include <functional>

#include "plan/predict.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::plan {

// `now`: the clock that times the trials. ErrorCode::resource where memory for them is short.
[[nodiscard]] Result<WorkRates> calibrate(const std::function<Time()>& now);

}  // namespace scant::plan
