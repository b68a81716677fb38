// The receiving half of the engine: where a payload goes when its header comes, and what a whole
// frame does.
#include <cstring>

#include "base/check.h"
#include "collective/engine/engine_impl.h"
#include "collective/reduce/reduce.h"

namespace scant::collective {
namespace {

using net::FrameHeader;
using net::FrameType;

OpKey key_of(Rank station, const FrameHeader& header) {
  OpKey key;
  key.group = header.group;
  key.sequence = header.operation;
  if ((header.flags & kFlagPointToPoint) != 0) {
    key.tag = header.tag;
    key.station = station;
    key.sending = (header.flags & kFlagToSender) != 0;
  }
  return key;
}

bool eager(const FrameHeader& header) {
  return header.type == FrameType::data && (header.flags & kFlagEager) != 0;
}

}  // namespace

MutableBytes Engine::Impl::on_header(Rank station, const FrameHeader& header) {
  if (peer(station).credit.returned(header.credit)) unblock(station);
  switch (header.type) {
    case FrameType::data: {
      bool accepted = false;
      return admit_data(station, header, accepted);
    }
    case FrameType::cancel:
    case FrameType::propose:
      if (header.length > kControlPayloadBytesMax) return {};
      return receive_into_pool(station, header);
    default:
      return {};  // the others have no payload
  }
}

// Data for a step that waits for nothing else is used where it lies; the copy that others get is
// the one they would have been received into.
bool Engine::Impl::take(Rank station, const FrameHeader& header, Bytes payload) {
  if (peer(station).credit.returned(header.credit)) unblock(station);
  if (header.type != FrameType::data || header.epoch != epoch_now() || !is_member(station)) {
    return false;
  }
  Operation* op = nullptr;
  if (age_of(key_of(station, header), op) != Age::running || !charge(station, header)) return false;
  HeldFrame frame{station, header, {}};
  const uint32_t step = check_data(*op, station, header);
  if (step == kNoStep) {
    release(frame);
  } else if (op->steps[step] == StepState::ready) {
    consume(*op, step, payload.data(), payload.size());
    release(frame);
    arrived(*op, step, header);
  } else {
    Result<base::Buffer> buffer = pool.take(payload.size());
    if (!buffer) {
      refuse_for_memory(station, header, buffer.error());
      return true;
    }
    frame.payload = std::move(buffer).value();
    std::memcpy(frame.payload.data(), payload.data(), payload.size());
    deliver_data(*op, std::move(frame));
  }
  return true;
}

MutableBytes Engine::Impl::receive_into_pool(Rank station, const FrameHeader& header) {
  if (header.length == 0) return {};
  Result<base::Buffer> buffer = pool.take(header.length);
  if (!buffer) {
    refuse_for_memory(station, header, buffer.error());
    return {};
  }
  Incoming incoming{nullptr, nullptr, 0, std::move(buffer).value()};
  const MutableBytes view = incoming.buffer.view().first(header.length);
  incoming.target = view.data();
  peer(station).incoming.push_back(std::move(incoming));
  return view;
}

Error Engine::Impl::no_memory(const Error& why) const {
  return Error{why.code, why.sys_errno, self, rank_name(self) + ": " + why.message};
}

// A frame that is dropped because there is no memory for it: its operation ends, for all its ranks.
void Engine::Impl::refuse_for_memory(Rank station, const FrameHeader& header, const Error& why) {
  if (header.type == FrameType::propose) {
    counters.stale.add();  // the shrink goes on until its deadline
    return;
  }
  HeldFrame frame{station, header, {}, true};
  if (header.epoch > epoch_now()) {
    future.push_back(std::move(frame));
    return;
  }
  release(frame);
  if (header.epoch < epoch_now() || !is_member(station)) return;
  const OpKey key = key_of(station, header);
  Operation* op = nullptr;
  switch (age_of(key, op)) {
    case Age::running:
      return fail(*op, no_memory(why), Notify::group);
    case Age::waiting:
      for (Operation* deferred : find_group(key.group)->deferred) {
        if (deferred != nullptr && deferred->key == key) {
          return fail(*deferred, no_memory(why), Notify::group);
        }
      }
      return;
    case Age::early:
      if (Early& heard = early.at(key); !heard.cancelled) heard.cancelled = no_memory(why);
      return heard_of(key);
    case Age::late:
      return;
  }
}

// Charges an eager frame to its sender's window; false when the sender is beyond it.
bool Engine::Impl::charge(Rank station, const FrameHeader& header) {
  if (!eager(header)) return true;
  const uint32_t charged = charge_of(header.length);
  if (!peer(station).credit.accepts(charged)) return false;
  peer(station).credit.held(charged);
  return true;
}

void Engine::Impl::discharge(Rank station, uint32_t charged) {
  if (charged == 0) return;
  Credit& credit = peer(station).credit;
  credit.consumed(charged);
  if (credit.should_tell()) mark_pending(station);
}

void Engine::Impl::release(HeldFrame& frame) {
  if (frame.payload.data() != nullptr) pool.give(std::move(frame.payload));
  if (eager(frame.header)) discharge(frame.station, charge_of(frame.header.length));
}

// `accepted`: the frame is to be delivered when it is whole. Otherwise everything about it is
// settled here.
MutableBytes Engine::Impl::admit_data(Rank station, const FrameHeader& header, bool& accepted) {
  HeldFrame frame{station, header, {}};
  const OpKey key = key_of(station, header);
  Operation* op = nullptr;
  const bool charged = charge(station, header);
  if (charged && header.epoch == epoch_now() && is_member(station)) {
    switch (age_of(key, op)) {
      case Age::running: {
        const uint32_t step = check_data(*op, station, header);
        if (step == kNoStep) {
          release(frame);
          return {};
        }
        accepted = true;
        if (header.length == 0 || op->plan->steps[step].kind != Step::Kind::receive ||
            op->steps[step] != StepState::ready) {
          return receive_into_pool(station, header);
        }
        op->steps[step] = StepState::busy;
        ++op->receives_busy;
        std::byte* target = op->address(op->plan->steps[step].destination);
        peer(station).incoming.push_back(Incoming{target, op, step, {}});
        return {target, header.length};
      }
      case Age::late:
        deliver_late(station, header);
        release(frame);
        return {};
      case Age::early:
      case Age::waiting:
        if (!eager(header)) break;  // nobody granted it
        accepted = true;
        return receive_into_pool(station, header);
    }
  } else if (charged && header.epoch > epoch_now() && eager(header)) {
    accepted = true;
    return receive_into_pool(station, header);
  } else if (charged && header.epoch <= epoch_now()) {
    counters.stale.add();
    release(frame);
    return {};
  }
  if (charged) release(frame);
  if (header.epoch != epoch_now()) return {};
  apply_cancel(station, key,
               Error{ErrorCode::corrupt, 0, station,
                     rank_name(station) + " sent more than the credit window of " +
                         with_commas(options.eager_window_bytes) + " bytes allows"});
  return {};
}

void Engine::Impl::on_frame(Rank station, const FrameHeader& header, Bytes payload) {
  Peer& from = peer(station);
  if (header.length == 0) {
    if (from.credit.returned(header.credit)) unblock(station);
    bool accepted = true;
    if (header.type == FrameType::data) {
      accepted = false;
      admit_data(station, header, accepted);
    }
    if (accepted) deliver(station, header, {});
    return;
  }
  size_t at = 0;
  while (at < from.incoming.size() && from.incoming[at].target != payload.data()) ++at;
  SCANT_CHECK(at < from.incoming.size(), "a frame came whole whose header never came");
  Incoming incoming = std::move(from.incoming[at]);
  from.incoming.erase(from.incoming.begin() + static_cast<std::ptrdiff_t>(at));
  if (incoming.op == nullptr) {
    deliver(station, header, std::move(incoming.buffer));
    return;
  }
  Operation& op = *incoming.op;
  --op.receives_busy;
  if (eager(header)) discharge(station, charge_of(header.length));
  if (op.state == OpState::running) {
    arrived(op, incoming.step, header);
  } else if (op.sends_busy + op.receives_busy == 0) {
    end(op);
  }
}

Age Engine::Impl::age_of(const OpKey& key, Operation*& op) {
  op = find_active(key);
  if (op != nullptr) return Age::running;
  const Group* group = find_group(key.group);
  if (group == nullptr) return released.contains(key.group) ? Age::late : Age::early;
  if (key.station != kNoRank) return age_of_message(key);
  if (key.sequence >= group->next_sequence) return Age::early;
  if (key.sequence < group->next_start) return Age::late;
  return group->deferred[key.sequence - group->next_start] != nullptr ? Age::waiting : Age::late;
}

// A whole frame, charged when eager, its payload in a pooled buffer.
void Engine::Impl::deliver(Rank station, const FrameHeader& header, base::Buffer buffer) {
  HeldFrame frame{station, header, std::move(buffer)};
  const Bytes payload = std::as_const(frame.payload).view().first(header.length);
  if (header.type == FrameType::propose) {
    on_proposal(station, payload);
    return release(frame);
  }
  if (header.epoch < epoch_now() || !is_member(station)) {
    counters.stale.add();
    return release(frame);
  }
  if (header.epoch > epoch_now()) {
    if (header.type != FrameType::credit) future.push_back(std::move(frame));
    return;
  }
  const OpKey key = key_of(station, header);
  if (header.type == FrameType::credit) return release(frame);
  if (header.type == FrameType::cancel) {
    deliver_cancel(station, header, payload);
    return release(frame);
  }
  Operation* op = nullptr;
  switch (age_of(key, op)) {
    case Age::running:
      return deliver_to(*op, std::move(frame));
    case Age::late:
      deliver_late(station, header);
      return release(frame);
    case Age::early:
    case Age::waiting:
      unexpected_bytes += header.length;
      if (unexpected_bytes > unexpected_bytes_max) {
        counters.unexpected_max.add(unexpected_bytes - unexpected_bytes_max);
        unexpected_bytes_max = unexpected_bytes;
      }
      early.at(key).frames.push_back(std::move(frame));
      heard_of(key);
      return;
  }
}

void Engine::Impl::deliver_to(Operation& op, HeldFrame frame) {
  switch (frame.header.type) {
    case FrameType::data:
      return deliver_data(op, std::move(frame));
    case FrameType::ready:
      return deliver_ready(op, frame.station, frame.header);
    case FrameType::request:
      return deliver_request(op, frame.station, frame.header);
    default:
      return release(frame);
  }
}

uint32_t Engine::Impl::check_data(Operation& op, Rank station, const FrameHeader& header) {
  const Rank rank = op.group->rank_of[static_cast<size_t>(station)];
  const uint32_t hash = op.point_to_point() ? op.key.tag : op.parts_hash;
  if (rank == kNoRank || !agree(header.call, descriptor_for(op, rank, false)) ||
      header.tag != hash) {
    mismatch(op, station, header, "");
    return kNoStep;
  }
  const uint32_t index = op.plan->find_peer(rank);
  if (index == kNoStep || header.slot >= op.plan->peers[index].receives.size()) {
    mismatch(op, station, header, "; it sends a part that is not expected here");
    return kNoStep;
  }
  const uint32_t step = op.plan->peers[index].receives[header.slot];
  if (const char* wrong = op.objection(op.channels[index], header)) {
    mismatch(op, station, header, wrong);
    return kNoStep;
  }
  if (op.steps[step] != StepState::waiting && op.steps[step] != StepState::ready) {
    mismatch(op, station, header, "; it sends one part twice");
    return kNoStep;
  }
  return step;
}

void Engine::Impl::deliver_data(Operation& op, HeldFrame frame) {
  const uint32_t step = check_data(op, frame.station, frame.header);
  if (step == kNoStep) return release(frame);
  if (op.steps[step] == StepState::ready) {
    consume(op, step, frame.payload.data(), frame.header.length);
    release(frame);
    return arrived(op, step, frame.header);
  }
  // Not in an exchange, whose receives wait for nothing: what is held is a whole step.
  --op.channels[op.plan->peer_of_step[step]].receives_left;
  op.steps[step] = StepState::held;
  const uint32_t charged = eager(frame.header) ? charge_of(frame.header.length) : 0;
  op.held.push_back(HeldPayload{step, frame.station, charged, std::move(frame.payload)});
}

// The payload of a step that was ready lies in its place.
void Engine::Impl::arrived(Operation& op, uint32_t step, const FrameHeader& header) {
  Channel& channel = op.channels[op.plan->peer_of_step[step]];
  --channel.receives_left;
  if (op.is_exchange() && !settle_part(op, channel, header)) return;
  complete(op, step);
}

void Engine::Impl::consume(Operation& op, uint32_t index, const std::byte* payload,
                           uint64_t bytes) {
  const Step& step = op.plan->steps[index];
  if (bytes == 0) return;
  if (step.kind == Step::Kind::receive) {
    std::memcpy(op.address(step.destination), payload, bytes);
  } else if (step.received_first) {
    combine(op, step, payload, op.address(step.a));
  } else {
    combine(op, step, op.address(step.a), payload);
  }
}

void Engine::Impl::combine(Operation& op, const Step& step, const std::byte* left,
                           const std::byte* right) {
  std::byte* destination = op.address(step.destination);
  reduce(op.call.dtype, op.call.reduce, left, right, destination, step.bytes);
  if (step.finish && op.call.reduce == ReduceOp::average) {
    scale(op.call.dtype, destination, step.bytes, op.group->size());
  }
}

void Engine::Impl::deliver_ready(Operation& op, Rank station, const FrameHeader& header) {
  const Rank rank = op.group->rank_of[static_cast<size_t>(station)];
  const uint32_t hash = op.point_to_point() ? op.key.tag : op.parts_hash;
  if (rank == kNoRank || !agree(header.call, descriptor_for(op, rank, true)) ||
      header.tag != hash) {
    return mismatch(op, station, header, "");
  }
  const uint32_t index = op.plan->find_peer(rank);
  if (index == kNoStep || op.plan->peers[index].sends == 0) {
    return mismatch(op, station, header, "; it waits for a part that is not sent from here");
  }
  Channel& channel = op.channels[index];
  channel.granted = true;
  if (channel.empty()) return;
  unlist(channel);
  list(channel, Channel::Listing::runnable);
}

void Engine::Impl::deliver_request(Operation& op, Rank station, const FrameHeader& header) {
  const Rank rank = op.group->rank_of[static_cast<size_t>(station)];
  const uint32_t hash = op.point_to_point() ? op.key.tag : op.parts_hash;
  if (rank == kNoRank || !agree(header.call, descriptor_for(op, rank, false)) ||
      header.tag != hash) {
    return mismatch(op, station, header, "");
  }
  const uint32_t index = op.plan->find_peer(rank);
  if (index == kNoStep || op.plan->peers[index].receives.empty()) {
    return mismatch(op, station, header, "; it has a part that is not expected here");
  }
  send_ready(op, op.channels[index]);
}

void Engine::Impl::deliver_cancel(Rank station, const FrameHeader& header, Bytes payload) {
  Result<Cancel> decoded = decode_cancel(payload);
  Error error = decoded ? decoded.value().error : decoded.error();
  if (!decoded || error.peer < kNoRank || error.peer >= static_cast<Rank>(peers.size())) {
    error.peer = station;
  }
  remember_loss(header.group, error);
  apply_cancel(station, key_of(station, header), std::move(error));
}

// Whatever operation the cancel is about: who told leaves soon, and then this is why.
void Engine::Impl::remember_loss(GroupId group, const Error& error) {
  const bool leaves = error.code == ErrorCode::peer_lost || error.code == ErrorCode::failed;
  if (!leaves || error.peer == self) return;
  Group* told = find_group(group);
  if (told != nullptr && !told->told_lost) told->told_lost = error;
}

void Engine::Impl::apply_cancel(Rank station, const OpKey& key, Error error) {
  Operation* op = nullptr;
  switch (age_of(key, op)) {
    case Age::running:
      return fail(*op, std::move(error), Notify::neighbours, station);
    case Age::waiting:
      for (Operation* deferred : find_group(key.group)->deferred) {
        if (deferred != nullptr && deferred->key == key) {
          return fail(*deferred, std::move(error), Notify::nobody);
        }
      }
      return;
    case Age::early:
      if (Early& heard = early.at(key); !heard.cancelled) heard.cancelled = std::move(error);
      return heard_of(key);
    case Age::late: {
      if (key.station != kNoRank || error.code != ErrorCode::mismatch) return;
      Group* group = find_group(key.group);
      if (group == nullptr) return;  // released
      const HistoryRecord& past = group->history[key.sequence % kHistoryRecords];
      if (past.sequence == key.sequence && !past.error) on_late_mismatch(*group, error);
      return;
    }
  }
}

void Engine::Impl::deliver_late(Rank station, const FrameHeader& header) {
  counters.late.add();
  if ((header.flags & kFlagPointToPoint) != 0) return;
  const Group* group = find_group(header.group);
  if (group == nullptr) return refuse_released(station, header);
  const HistoryRecord& past = group->history[header.operation % kHistoryRecords];
  if (past.sequence != header.operation) return;
  if (past.error) {
    // Whoever asks still waits, so our cancel did not reach it: its schedule differs from ours.
    if (header.type != FrameType::data) cancel_late(station, past, header.group, *past.error);
    return;
  }
  if (header.type != FrameType::data) {
    net::CallDescriptor mine = past.call;
    if (parts_may_differ(static_cast<OpKind>(mine.kind))) mine.bytes = header.call.bytes;
    if (mine == header.call && past.parts_hash == header.tag) return;
  }
  refuse_late(station, header, past);
}

}  // namespace scant::collective
