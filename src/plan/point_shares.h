// Which share of a model's elements a plan sends at which point, for the run log. Pure functions.
#pragma once

#include <map>
#include <string>

#include "gradient/fusion_plan.h"

namespace scant::plan {

// "plain", "q4", "1% q4 by row" -> share of the elements; of the first leg.
[[nodiscard]] std::map<std::string, double> point_shares(const gradient::FusionPlan& plan,
                                                         const gradient::Layout& layout);

}  // namespace scant::plan
