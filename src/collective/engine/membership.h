// Agreement of the survivors on the next epoch: flood (epoch, live set) until every member of the
// live set has sent the same. A pure state machine; events and proof sketch: docs/engine.md,
// Membership. Owner: the engine's thread.
#pragma once

#include <optional>
#include <vector>

#include "collective/engine/control.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::collective {

class Membership {
 public:
  Membership(Rank self, size_t stations, uint32_t epoch);

  [[nodiscard]] bool shrinking() const { return shrinking_; }
  [[nodiscard]] uint32_t epoch() const { return epoch_; }
  [[nodiscard]] const Proposal& proposal() const { return own_; }
  // Members of the live set that have not sent the own proposal.
  [[nodiscard]] std::vector<Rank> missing() const;

  // Each returns true when the own proposal changed and must be sent to every other member of its
  // live set.
  bool begin(const std::vector<bool>& live);
  bool on_proposal(Rank from, const Proposal& proposal);
  bool on_down(Rank station);

  enum class Outcome : uint8_t { undecided, agreed, expelled };
  [[nodiscard]] Outcome outcome() const;
  void enter();    // agreed: epoch() becomes the proposal's
  void abandon();  // deadline: the old epoch stays

 private:
  bool adopt(const Proposal& theirs);

  Rank self_;
  uint32_t epoch_;
  bool shrinking_ = false;
  Proposal own_;
  std::vector<std::optional<Proposal>> last_;  // by station: its newest
};

}  // namespace scant::collective
