// How ranks that go on with a training find out who they are: each tells the others what it was in
// the rounds before, and all come to the same members. docs/exchange.md, "Members". Plain values,
// any thread.
#pragma once

#include <cstdint>
#include <span>

#include "gradient/members.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::gradient {

inline constexpr uint64_t kArrivalVersion = 1;

// What one rank says of itself.
struct Arrival {
  uint64_t version = kArrivalVersion;
  Rank station = kNoRank;     // that it has been; kNoRank: a newcomer
  Rank stations_used = 0;     // numbers below this were given to somebody, as far as it knows
  uint64_t epoch = 0;         // of the members that it was one of; a newcomer: 0
  uint64_t steps = 0;         // that it has begun; a newcomer: 0
  uint64_t layout_ranks = 0;  // that its layout was cut for
  friend bool operator==(const Arrival&, const Arrival&) = default;
};

inline constexpr size_t kArrivalBytes = 48;
void write_arrival(const Arrival& arrival, MutableBytes out);
[[nodiscard]] Result<Arrival> read_arrival(Bytes bytes);

// What follows for all of them.
struct Meeting {
  Members members;         // by place; self: this rank's
  Rank stations_used = 0;  // likewise, of those above
  uint64_t next_step = 1;  // that all begin with
};
// Who stays keeps its station; newcomers get new ones, in the order of their places. Every rank
// comes to the same meeting, or to the same error, which names who cannot go on.
[[nodiscard]] Result<Meeting> meet(std::span<const Arrival> by_place, Rank self);

}  // namespace scant::gradient
