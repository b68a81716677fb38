// How much work a job of a round was, in the units of the planner's WorkRates, so that virtual time
// can charge it. Plain values, any thread.
#pragma once

#include <array>
#include <cstdint>

#include "codec/point.h"

namespace scant::gradient {

struct Effort {
  struct OfKind {
    uint64_t dense = 0;    // elements at density 1
    uint64_t entries = 0;  // below
    friend bool operator==(const OfKind&, const OfKind&) = default;
  };
  using ByKind = std::array<OfKind, codec::kValueKindCount>;
  ByKind encoded{};
  ByKind decoded{};      // added up, or decoded alone
  uint64_t scanned = 0;  // elements looked at, below density 1
  uint64_t cleared = 0;  // elements of sums of such records
  uint64_t records = 0;
  uint64_t products = 0;  // elements of matrices times directions
  uint64_t bases = 0;     // rows times pairs of directions
  friend bool operator==(const Effort&, const Effort&) = default;
};

}  // namespace scant::gradient
