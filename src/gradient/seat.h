// Who this rank is in a round: its place among the members, and what it owns. Plain values.
#pragma once

#include <vector>

#include "gradient/members.h"
#include "scant/base/result.h"

namespace scant::gradient {

struct Seat {
  Members members;
  std::vector<SliceDuty> duties;  // by slice

  [[nodiscard]] int ranks() const { return members.size(); }
  [[nodiscard]] Rank rank() const { return members.self; }
  [[nodiscard]] Rank station() const { return members.stations[static_cast<size_t>(rank())]; }
  [[nodiscard]] bool owns(uint32_t slice) const { return duties[slice].owner == rank(); }
  // How often what counts once in the average stands in one member's gradient: P for a mean of P.
  [[nodiscard]] float times(uint32_t slice) const;
  friend bool operator==(const Seat&, const Seat&) = default;
};

// Without duties, those of duties_for(). An error names what is wrong with members or duties.
[[nodiscard]] Result<Seat> seat_for(const Layout& layout, Members members,
                                    std::vector<SliceDuty> duties);

}  // namespace scant::gradient
