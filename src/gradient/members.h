// Who takes part in a round, as a value: docs/exchange.md, "Members". A round keeps the value that
// it began with; the next one may have other members, other owners, other weights. Plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "gradient/layout.h"
#include "scant/base/types.h"

namespace scant::gradient {

struct Members {
  uint64_t epoch = 1;            // rises with every change
  std::vector<Rank> stations{};  // of the exchange; a member's place here is its rank in the round
  Rank self = kNoRank;           // the place of this station; kNoRank: it does not take part

  [[nodiscard]] int size() const { return static_cast<int>(stations.size()); }
  // Of epoch and stations: what the members compare. Never 0.
  [[nodiscard]] uint64_t hash() const;
  friend bool operator==(const Members&, const Members&) = default;
};

// Stations 0 to size - 1 of epoch 1.
[[nodiscard]] Members everyone(int size, Rank self);

// Who adds a slice up, and what each member's gradient counts in its average.
struct SliceDuty {
  Rank owner = 0;    // a place
  float weight = 1;  // of every member's record: 1 / P for a mean
  friend bool operator==(const SliceDuty&, const SliceDuty&) = default;
};

// By slice of the layout. With as many members as the layout was cut for these are its own owners;
// with fewer or more, slices go to whom has the fewest elements. All members compute the same.
[[nodiscard]] std::vector<SliceDuty> duties_for(const Layout& layout, int members);

}  // namespace scant::gradient
