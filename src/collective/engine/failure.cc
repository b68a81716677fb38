// How operations fail: mismatch, deadline, cancellation and the loss of a peer (docs/engine.md).
#include <algorithm>

#include "collective/engine/engine_impl.h"

namespace scant::collective {
namespace {

std::string duration_text(Duration duration) {
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
  if (ms >= 10000 && ms % 1000 == 0) return with_commas(static_cast<uint64_t>(ms / 1000)) + " s";
  return with_commas(static_cast<uint64_t>(ms)) + " ms";
}

std::string both_calls(const std::string& them, const net::CallDescriptor& theirs,
                       const std::string& me, const net::CallDescriptor& mine) {
  net::CallDescriptor same_but_algorithm = theirs;
  same_but_algorithm.algorithm = mine.algorithm;
  const bool algorithms = theirs != mine && same_but_algorithm == mine;
  std::string text = them + " calls " + describe(theirs, algorithms) + ", " + me + " calls " +
                     describe(mine, algorithms);
  if (theirs.group_size != mine.group_size) {
    text += " (groups of " + std::to_string(theirs.group_size) + " and " +
            std::to_string(mine.group_size) + " ranks)";
  }
  return text;
}

}  // namespace

// Counts as the user does: without what the engine put into the sequence.
std::string Engine::Impl::ordinal_text(const OpKey& key, bool unbound) {
  const std::string group = " of group " + std::to_string(key.group);
  if (unbound) return "with tag " + std::to_string(key.tag) + group;
  if (key.station != kNoRank) {
    return "message " + std::to_string(key.sequence) + " with tag " + std::to_string(key.tag) +
           group;
  }
  const Group* found = find_group(key.group);
  const bool alone = found != nullptr && found->size() == 1;  // nothing to agree on
  const uint32_t ordinal = key.sequence - (alone ? 0 : preludes_before(key.sequence));
  return "operation " + std::to_string(ordinal) + group;
}

std::string Engine::Impl::rank_name(Rank station) const {
  const Rank rank = rank_of[static_cast<size_t>(station)];
  return rank == kNoRank ? "former rank " + std::to_string(station)
                         : "rank " + std::to_string(rank);
}

std::vector<Operation*> Engine::Impl::by_age() const {
  std::vector<Operation*> ops = in_flight;
  std::sort(ops.begin(), ops.end(),
            [](const Operation* x, const Operation* y) { return x->age < y->age; });
  return ops;
}

// error.peer is a station. `except` needs no notice: it sent ours.
void Engine::Impl::fail(Operation& op, Error error, Notify notify, Rank except) {
  if (op.state == OpState::draining || op.state == OpState::ended) return;
  Group* group = op.group;
  const OpState was = op.state;
  if (group != nullptr) {
    notify_failure(op, error, notify, except);
    record(*group, op, error);
    if (error.peer != kNoRank) error.peer = rank_of[static_cast<size_t>(error.peer)];
    if (was == OpState::deferred) {
      std::replace(group->deferred.begin(), group->deferred.end(), &op,
                   static_cast<Operation*>(nullptr));
    }
    if (was == OpState::unbound) {
      auto& line = group->mailboxes[op.call.tag].line;
      line.erase(std::remove(line.begin(), line.end(), &op), line.end());
    }
    if (was == OpState::deferred && !op.point_to_point()) drop_early(op.key);
  }
  drop_work(op);
  op.error = std::move(error);
  op.state = OpState::draining;
  op.group = nullptr;
  if (op.sends_busy + op.receives_busy == 0) end(op);
  if (was == OpState::unbound) match_line(*group, op.call.tag);
}

void Engine::Impl::drop_early(const OpKey& key) {
  if (std::optional<Early> heard = early.take(key)) release(*heard);
}

void Engine::Impl::release(Early& heard) {
  for (HeldFrame& frame : heard.frames) {
    unexpected_bytes -= frame.header.length;
    release(frame);
  }
}

void Engine::Impl::drop_work(Operation& op) {
  if (op.state != OpState::running) return;
  active.erase(op.key);
  for (size_t i = 0; i < op.plan->peers.size(); ++i) unlist(op.channels[i]);
  for (HeldPayload& payload : op.held) {
    if (payload.buffer.data() != nullptr) pool.give(std::move(payload.buffer));
    discharge(payload.station, payload.charge);
  }
  op.held.clear();
}

void Engine::Impl::notify_failure(const Operation& op, const Error& error, Notify notify,
                                  Rank except) {
  if (notify == Notify::nobody) return;
  const std::vector<std::byte> payload = encode_cancel(error);
  const auto tell = [&](Rank station, Rank group_rank) {
    if (station == self || station == except) return;
    counters.cancel.add();
    queue_control(station, header_for(op, net::FrameType::cancel, group_rank, op.key.sending),
                  payload);
  };
  if (op.point_to_point()) {
    if (op.key.station != kNoRank) tell(op.key.station, op.call.root);
  } else if (notify == Notify::group) {
    for (Rank rank = 0; rank < op.group->size(); ++rank) {
      tell(op.group->stations[static_cast<size_t>(rank)], rank);
    }
  } else if (op.plan != nullptr) {
    for (const PeerPlan& peer_plan : op.plan->peers) {
      tell(op.group->stations[static_cast<size_t>(peer_plan.rank)], peer_plan.rank);
    }
  }
}

void Engine::Impl::mismatch(Operation& op, Rank station, const net::FrameHeader& theirs,
                            const char* detail) {
  counters.mismatches.add();
  const bool they_send =
      theirs.type == net::FrameType::data || theirs.type == net::FrameType::request;
  const Rank rank = op.group->rank_of[static_cast<size_t>(station)];
  const net::CallDescriptor mine =
      rank == kNoRank ? op.descriptor : descriptor_for(op, rank, !they_send);
  std::string text = both_calls(rank_name(station), theirs.call, rank_name(self), mine) + ", as " +
                     ordinal_text(op.key);
  if (*detail != '\0') {
    text += detail;
  } else if (agree(theirs.call, mine)) {
    text += "; the sizes of their parts differ";
  }
  fail(op, Error{ErrorCode::mismatch, 0, station, std::move(text)}, Notify::group);
}

// A frame for a collective that ended well here: its sender called something else.
void Engine::Impl::refuse_late(Rank station, const net::FrameHeader& theirs,
                               const HistoryRecord& mine) {
  counters.mismatches.add();
  const OpKey key{theirs.group, theirs.operation, 0, kNoRank, false};
  std::string text = both_calls(rank_name(station), theirs.call, rank_name(self), mine.call) +
                     ", as " + ordinal_text(key);
  if (theirs.call == mine.call) {
    const bool exchange = mine.call.kind == static_cast<uint8_t>(OpKind::exchange);
    text += exchange ? "; it sends data behind the last frame of its part"
                     : "; the sizes of their parts differ";
  }
  const Error error{ErrorCode::mismatch, 0, station, std::move(text)};
  cancel_late(station, mine, theirs.group, error);
  on_late_mismatch(*find_group(theirs.group), error);
}

// Tells one peer how a collective ended here.
void Engine::Impl::cancel_late(Rank station, const HistoryRecord& mine, GroupId group,
                               const Error& error) {
  net::FrameHeader header;
  header.type = net::FrameType::cancel;
  header.epoch = epoch_now();
  header.group = group;
  header.operation = mine.sequence;
  header.tag = mine.parts_hash;
  header.call = mine.call;
  counters.cancel.add();
  queue_control(station, header, encode_cancel(error));
}

void Engine::Impl::tell_all(const Error& error) {
  for (const auto& [id, group] : groups) tell_members(*group, error);
}

// A cancel of the collective that this rank would begin next, and never will.
void Engine::Impl::tell_members(const Group& group, const Error& error) {
  HistoryRecord never;
  never.sequence = group.next_sequence;
  for (const Rank station : group.stations) {
    if (station != self && down(station) == nullptr) cancel_late(station, never, group.id, error);
  }
}

// This rank's part of the operation had succeeded; the next one tells.
void Engine::Impl::on_late_mismatch(Group& group, const Error& error) {
  for (Operation* op : by_age()) {
    if (op->group == &group && !op->point_to_point()) return fail(*op, error, Notify::group);
  }
  if (!group.late_mismatch) group.late_mismatch = error;
}

void Engine::Impl::expire(Operation& op) {
  std::string awaited;
  Rank culprit = kNoRank;
  size_t count = 0;
  // A deferred one waits for whom the engine's own operation before it waits.
  const Operation* waiting = &op;
  if (op.state == OpState::deferred) {
    for (const Operation* other : by_age()) {
      const bool before = other->internal && other->group == op.group;
      if (before && other->state == OpState::running && waiting == &op) waiting = other;
    }
  }
  if (waiting->state == OpState::running) {
    for (size_t i = 0; i < waiting->plan->peers.size(); ++i) {
      const Channel& channel = waiting->channels[i];
      if (channel.receives_left == 0 && channel.sends_left == 0) continue;
      // Who still owes bytes is to blame before who did not take ours.
      if (culprit == kNoRank || (channel.receives_left > 0 && count == 0))
        culprit = channel.station;
      if (channel.receives_left > 0) ++count;
      awaited += (awaited.empty() ? "" : ", ") + rank_name(channel.station);
    }
  } else if (op.state == OpState::unbound) {
    awaited = "a message from any source";
  } else {
    awaited = "the operations before it";
  }
  Error error{ErrorCode::timeout, 0, culprit, ""};
  error.message = describe(op.descriptor, false) + ", " +
                  ordinal_text(op.key, op.state == OpState::unbound) +
                  ", did not complete within " + duration_text(op.deadline - op.begun) +
                  "; awaited: " + awaited;
  fail(op, std::move(error), Notify::group);
}

void Engine::Impl::drop_incoming(Peer& from) {
  std::vector<Incoming> dropped = std::exchange(from.incoming, {});
  for (Incoming& incoming : dropped) {
    if (incoming.op == nullptr) {
      pool.give(std::move(incoming.buffer));
      continue;
    }
    Operation& op = *incoming.op;
    --op.receives_busy;
    if (op.state == OpState::running) {
      op.steps[incoming.step] = StepState::ready;
    } else if (op.sends_busy + op.receives_busy == 0) {
      end(op);
    }
  }
}

void Engine::Impl::on_peer_down(Rank station, const Error& given) {
  Peer& gone = peer(station);
  if (gone.down) return;
  unmark_pending(station);
  drop_incoming(gone);
  gone.control.clear();
  gone.control_head = 0;
  for (std::vector<Channel*>* listed : {&gone.runnable, &gone.blocked}) {
    for (Channel* channel : *listed) channel->listing = Channel::Listing::none;
    listed->clear();
  }
  Error error = given;
  error.peer = station;
  const Rank rank = rank_of[static_cast<size_t>(station)];
  if (rank != kNoRank && rank != station) {
    error.message = "rank " + std::to_string(rank) + " of epoch " + std::to_string(epoch_now()) +
                    ", at first: " + error.message;
  }
  gone.down = error;
  const bool closed = error.code == ErrorCode::closed;
  for (auto& [id, group] : groups) {
    if (group->rank_of[static_cast<size_t>(station)] == kNoRank) continue;
    if (closed) {
      group->some_closed = true;
    } else if (!group->lost) {
      group->lost = error;
    }
  }
  for (Operation* op : by_age()) fail_by_loss(*op, station, error);
  if (membership.on_down(station)) send_proposal();
  check_membership();
}

// A member that leaves an operation in the middle does so because of a loss, if there was one.
const Error& Engine::Impl::cause_of(const Group& group, const Error& error) {
  if (error.code != ErrorCode::closed) return error;
  if (group.lost) return *group.lost;
  return group.told_lost ? *group.told_lost : error;
}

void Engine::Impl::fail_by_loss(Operation& op, Rank station, const Error& error) {
  const bool closed = error.code == ErrorCode::closed;
  if (op.group == nullptr) return;
  const Rank rank = op.group->rank_of[static_cast<size_t>(station)];
  if (rank == kNoRank) return;
  switch (op.state) {
    case OpState::running: {
      const uint32_t index = op.plan->find_peer(rank);
      if (index == kNoStep) return;
      const Channel& channel = op.channels[index];
      if (channel.receives_left > 0 || channel.sends_left > 0) {
        fail(op, cause_of(*op.group, error), Notify::group, station);
      }
      return;
    }
    case OpState::deferred:
      if (!closed) fail(op, error, Notify::group, station);
      return;
    case OpState::unbound: {
      const auto& stations = op.group->stations;
      const bool nobody_left = std::all_of(stations.begin(), stations.end(), [&](Rank other) {
        return other == self || down(other) != nullptr;
      });
      if (op.call.root == kAnySource ? !closed || nobody_left : op.call.root == rank) {
        fail(op, cause_of(*op.group, error), Notify::nobody);
      }
      return;
    }
    case OpState::draining:
    case OpState::ended:
      return;
  }
}

// An operation that begins when one of its peers has left already.
void Engine::Impl::fail_if_unreachable(Operation& op) {
  if (!op.group->some_closed && !op.group->lost) return;
  for (size_t i = 0; i < op.plan->peers.size(); ++i) {
    const Channel& channel = op.channels[i];
    const Error* error = down(channel.station);
    if (error != nullptr && (channel.receives_left > 0 || channel.sends_left > 0)) {
      return fail(op, cause_of(*op.group, *error), Notify::group, channel.station);
    }
  }
}

void Engine::Impl::on_transport_closed(const Error& error) {
  for (auto& from : peers) {
    if (from) drop_incoming(*from);
  }
  for (Operation* op : by_age()) {
    fail(*op, error, Notify::nobody);
    op->sends_busy = 0;
    if (op->state == OpState::draining) end(*op);
  }
  for (Sent& entry : sent) entry = Sent{};
  clear_early();
  if (membership.shrinking()) {
    membership.abandon();
    end_shrink(error);
  }
}

}  // namespace scant::collective
