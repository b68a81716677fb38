#include "gradient/seat.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/fault.h"

namespace scant::gradient {
namespace {

Error invalid(std::string message) { return base::invalid("members: " + std::move(message)); }

}  // namespace

// 1 / weight; of the weights 1 / P exactly P, which the division may miss by a bit.
float Seat::times(uint32_t slice) const {
  const float weight = duties[slice].weight;
  const float whole = std::round(1.0f / weight);
  return 1.0f / whole == weight ? whole : 1.0f / weight;
}

Result<Seat> seat_for(const Layout& layout, Members members, std::vector<SliceDuty> duties) {
  if (members.stations.empty()) return invalid("there are none");
  if (members.epoch == 0) return invalid("epochs are counted from 1");
  if (members.self < 0 || members.self >= members.size()) {
    return invalid("this station is none of the " + std::to_string(members.size()) +
                   ": only members take part in a round");
  }
  std::vector<Rank> sorted = members.stations;
  std::ranges::sort(sorted);
  if (std::ranges::adjacent_find(sorted) != sorted.end() || sorted.front() < 0) {
    return invalid("stations must be different numbers from 0 on");
  }
  if (duties.empty()) duties = duties_for(layout, members.size());
  if (duties.size() != layout.slices().size()) {
    return invalid(std::to_string(duties.size()) + " duties, the layout has " +
                   std::to_string(layout.slices().size()) + " slices");
  }
  for (size_t i = 0; i < duties.size(); ++i) {
    const SliceDuty& duty = duties[i];
    const bool owned = duty.owner >= 0 && duty.owner < members.size();
    if (!owned || !std::isfinite(1.0f / duty.weight) || !(duty.weight > 0)) {
      return invalid("the duty of slice " + std::to_string(i) +
                     " needs an owner among the members and a positive weight");
    }
  }
  return Seat{std::move(members), std::move(duties)};
}

}  // namespace scant::gradient
