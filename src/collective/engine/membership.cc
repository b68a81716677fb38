#include "collective/engine/membership.h"

#include <algorithm>

namespace scant::collective {
namespace {

size_t count(const std::vector<bool>& set) {
  return static_cast<size_t>(std::count(set.begin(), set.end(), true));
}

}  // namespace

Membership::Membership(Rank self, size_t stations, uint32_t epoch)
    : self_(self), epoch_(epoch), last_(stations) {}

std::vector<Rank> Membership::missing() const {
  std::vector<Rank> ranks;
  for (size_t i = 0; i < own_.live.size(); ++i) {
    if (!own_.live[i] || static_cast<Rank>(i) == self_) continue;
    if (!last_[i] || !(*last_[i] == own_)) ranks.push_back(static_cast<Rank>(i));
  }
  return ranks;
}

// True when epoch or live set changed.
bool Membership::adopt(const Proposal& theirs) {
  bool changed = false;
  if (theirs.epoch > own_.epoch) {
    own_.epoch = theirs.epoch;
    changed = true;
  }
  for (size_t i = 0; i < own_.live.size(); ++i) {
    if (own_.live[i] && !theirs.live[i]) {
      own_.live[i] = false;
      changed = true;
    }
  }
  return changed;
}

bool Membership::begin(const std::vector<bool>& live) {
  shrinking_ = true;
  own_ = Proposal{epoch_ + 1, live};
  own_.live[static_cast<size_t>(self_)] = true;
  for (size_t i = 0; i < last_.size(); ++i) {
    if (last_[i] && live[i] && last_[i]->epoch > epoch_) adopt(*last_[i]);
  }
  return true;
}

bool Membership::on_proposal(Rank from, const Proposal& proposal) {
  std::optional<Proposal>& last = last_[static_cast<size_t>(from)];
  const bool newer = !last || proposal.epoch > last->epoch ||
                     (proposal.epoch == last->epoch && count(proposal.live) < count(last->live));
  if (!newer || proposal.epoch <= epoch_) return false;
  last = proposal;
  if (!shrinking_ || !own_.live[static_cast<size_t>(from)]) return false;
  return adopt(proposal);
}

bool Membership::on_down(Rank station) {
  const auto index = static_cast<size_t>(station);
  if (!shrinking_ || !own_.live[index]) return false;
  own_.live[index] = false;
  return true;
}

Membership::Outcome Membership::outcome() const {
  if (!shrinking_) return Outcome::undecided;
  if (!own_.live[static_cast<size_t>(self_)]) return Outcome::expelled;
  return missing().empty() ? Outcome::agreed : Outcome::undecided;
}

void Membership::enter() {
  epoch_ = own_.epoch;
  shrinking_ = false;
}

void Membership::abandon() { shrinking_ = false; }

}  // namespace scant::collective
