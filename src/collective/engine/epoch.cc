// Groups and epochs: the membership protocol's frames, and what changes when a new epoch begins
// (docs/engine.md).
#include <algorithm>

#include "base/check.h"
#include "collective/engine/engine_impl.h"

namespace scant::collective {

Result<void> Engine::Impl::add_group(GroupId id, const std::vector<Rank>& stations) {
  if (groups.contains(id)) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank,
                 "group " + std::to_string(id) + " exists already"};
  }
  auto group = std::make_unique<Group>();
  group->id = id;
  group->stations = stations;
  group->rank_of.assign(peers.size(), kNoRank);
  group->model = initial_model;
  group->history.resize(kHistoryRecords);
  for (size_t i = 0; i < stations.size(); ++i) {
    Rank& rank = group->rank_of[static_cast<size_t>(stations[i])];
    if (rank != kNoRank) {
      return Error{ErrorCode::invalid_argument, 0, kNoRank,
                   "group: member " + rank_name(stations[i]) + " is named twice"};
    }
    rank = static_cast<Rank>(i);
    const Error* error = down(stations[i]);
    if (error == nullptr) continue;
    if (error->code == ErrorCode::closed) {
      group->some_closed = true;
    } else if (!group->lost) {
      group->lost = *error;
    }
  }
  group->rank = group->rank_of[static_cast<size_t>(self)];
  if (group->rank == kNoRank) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank, "group: this rank is not a member"};
  }
  groups.emplace(id, std::move(group));
  return {};
}

Result<void> Engine::Impl::release_group(GroupId id) {
  const Group* group = find_group(id);
  if (group == nullptr || id == kWorldGroup) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank,
                 "group " + std::to_string(id) + " cannot be released"};
  }
  const Error error = released_by_this_rank();
  for (Operation* op : by_age()) {
    if (op->group == group) fail(*op, error, Notify::group);
  }
  tell_members(*group, error);
  released.emplace(id, group->next_sequence);
  groups.erase(id);
  for (Early& heard : early.take_group(id)) {
    for (const HeldFrame& frame : heard.frames) refuse_released(frame.station, frame.header);
    release(heard);
  }
  return {};
}

Error Engine::Impl::released_by_this_rank() const {
  return {ErrorCode::closed, 0, self, rank_name(self) + " released the group"};
}

// Who still begins collectives of the group learns that this rank never will.
void Engine::Impl::refuse_released(Rank station, const net::FrameHeader& header) {
  const auto known = released.find(header.group);
  if (known == released.end() || (header.flags & kFlagPointToPoint) != 0) return;
  if (header.operation < known->second) return;
  HistoryRecord never;
  never.sequence = header.operation;
  never.call = header.call;
  never.parts_hash = header.tag;
  cancel_late(station, never, header.group, released_by_this_rank());
}

void Engine::Impl::begin_shrink(Time deadline, ShrinkDone done) {
  if (membership.shrinking()) {
    shrink_outcomes.emplace_back(
        std::move(done), Error{ErrorCode::invalid_argument, 0, kNoRank, "shrink runs already"});
    return;
  }
  Error error{ErrorCode::closed, 0, kNoRank, "the ranks are forming a new epoch"};
  const Group& world = *find_group(kWorldGroup);
  if (world.lost) error = *world.lost;
  for (Operation* op : by_age()) fail(*op, error, Notify::group);
  shrink_done = std::move(done);
  shrink_deadline = deadline;
  std::vector<bool> live(peers.size());
  for (size_t i = 0; i < peers.size(); ++i) {
    live[i] = is_member(static_cast<Rank>(i)) && down(static_cast<Rank>(i)) == nullptr;
  }
  membership.begin(live);
  send_proposal();
  check_membership();
}

void Engine::Impl::send_proposal() {
  const std::vector<std::byte> payload = encode_proposal(membership.proposal());
  net::FrameHeader header;
  header.type = net::FrameType::propose;
  header.epoch = epoch_now();
  for (size_t i = 0; i < peers.size(); ++i) {
    if (membership.proposal().live[i]) queue_control(static_cast<Rank>(i), header, payload);
  }
}

void Engine::Impl::on_proposal(Rank station, Bytes payload) {
  const Result<Proposal> proposal = decode_proposal(payload, peers.size());
  if (!proposal) {
    counters.stale.add();
    return;
  }
  if (membership.on_proposal(station, proposal.value())) send_proposal();
  if (proposal.value().epoch > epoch_now() && !membership.shrinking()) {
    on_peer_shrinks(station, proposal.value());
  }
  check_membership();
}

// Whoever proposes has given up all operations of this epoch: what needs it here would wait in
// vain, and the proposal tells who is lost.
void Engine::Impl::on_peer_shrinks(Rank station, const Proposal& proposal) {
  for (auto& [id, group] : groups) {
    if (group->rank_of[static_cast<size_t>(station)] == kNoRank || group->lost) continue;
    if (group->told_lost) {
      group->lost = group->told_lost;
      continue;
    }
    group->lost =
        Error{ErrorCode::closed, 0, station, rank_name(station) + " has begun to form a new epoch"};
    for (const Rank member : group->stations) {
      if (proposal.live[static_cast<size_t>(member)]) continue;
      group->lost = Error{ErrorCode::peer_lost, 0, member,
                          rank_name(member) + " is lost, as " + rank_name(station) + " tells"};
      break;
    }
  }
  for (Operation* op : by_age()) {
    if (op->group != nullptr && op->group->lost) fail_by_loss(*op, station, *op->group->lost);
  }
}

void Engine::Impl::check_membership() {
  switch (membership.outcome()) {
    case Membership::Outcome::undecided:
      return;
    case Membership::Outcome::agreed:
      return enter_epoch();
    case Membership::Outcome::expelled:
      membership.abandon();
      return end_shrink(Error{ErrorCode::peer_lost, 0, rank_of[static_cast<size_t>(self)],
                              "shrink: the other survivors consider this rank lost"});
  }
}

void Engine::Impl::end_shrink(Result<std::vector<Rank>> outcome) {
  shrink_deadline = kNever;
  shrink_outcomes.emplace_back(std::exchange(shrink_done, nullptr), std::move(outcome));
}

void Engine::Impl::clear_early() {
  for (Early& heard : early.take_all()) release(heard);
}

void Engine::Impl::enter_epoch() {
  const std::vector<bool> live = membership.proposal().live;
  membership.enter();
  std::vector<Rank> survivors;
  std::vector<Rank> stations;
  for (size_t rank = 0; rank < station_of.size(); ++rank) {
    const Rank station = station_of[rank];
    rank_of[static_cast<size_t>(station)] = kNoRank;
    if (!live[static_cast<size_t>(station)]) {
      forgotten.push_back(station);
      continue;
    }
    rank_of[static_cast<size_t>(station)] = static_cast<Rank>(stations.size());
    survivors.push_back(static_cast<Rank>(rank));
    stations.push_back(station);
  }
  station_of = stations;
  // Operations submitted since begin_shrink belong to the old epoch.
  for (Operation* op : by_age()) {
    fail(*op, Error{ErrorCode::closed, 0, kNoRank, "the ranks formed a new epoch"}, Notify::nobody);
  }
  clear_early();
  groups.clear();
  released.clear();
  SCANT_CHECK(add_group(kWorldGroup, station_of).ok());
  end_shrink(std::move(survivors));
  std::vector<HeldFrame> held = std::exchange(future, {});
  for (HeldFrame& frame : held) {
    const Rank station = frame.station;
    const net::FrameHeader header = frame.header;
    if (frame.lost) {
      refuse_for_memory(station, header,
                        Error{ErrorCode::resource, 0, kNoRank, "no memory for a payload"});
      continue;
    }
    deliver(station, header, std::move(frame.payload));
  }
}

}  // namespace scant::collective
