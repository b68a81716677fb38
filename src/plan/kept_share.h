// What a part keeps at a point, and which points with factors are worth a look. Pure functions; any
// thread. docs/planner.md, "Names" and "Choice".
#pragma once

#include "codec/rate/probe.h"
#include "gradient/fusion_plan.h"

namespace scant::plan {

// The share of a part's energy that both legs keep; what the second leg loses is lost of the
// average. `curve` has an energy above 0.
[[nodiscard]] double kept_share(const codec::Curve& curve, const gradient::PartPlan& points,
                                gradient::Path path);

// The curve with points that have factors, where these keep more for their bytes than what stands
// on the curve already. `curve` is that of this part.
[[nodiscard]] codec::Curve with_factors(codec::Curve curve, uint32_t part,
                                        const gradient::Layout& layout);

}  // namespace scant::plan
