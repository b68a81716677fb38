// The sending half of the engine: which frame goes to a peer next, under the rules of credit
// (docs/engine.md).
#include <algorithm>

#include "base/check.h"
#include "collective/engine/engine_impl.h"

namespace scant::collective {

using net::FrameHeader;
using net::FrameType;

FrameHeader Engine::Impl::header_for(const Operation& op, FrameType type, Rank group_rank,
                                     bool about_my_send) const {
  FrameHeader header;
  header.type = type;
  header.epoch = epoch_now();
  header.group = op.key.group;
  header.operation = op.key.sequence;
  header.tag = op.parts_hash;
  if (op.point_to_point()) {
    header.tag = op.key.tag;
    header.flags = kFlagPointToPoint;
    if (!op.key.sending) header.flags |= kFlagToSender;
  }
  header.call = descriptor_for(op, group_rank, about_my_send);
  return header;
}

void Engine::Impl::mark_pending(Rank station) {
  Peer& to = peer(station);
  if (to.down || to.pending_index != SIZE_MAX) return;
  to.pending_index = pending.size();
  pending.push_back(station);
}

void Engine::Impl::unmark_pending(Rank station) {
  Peer& to = peer(station);
  if (to.pending_index == SIZE_MAX) return;
  pending[to.pending_index] = pending.back();
  peer(pending.back()).pending_index = to.pending_index;
  pending.pop_back();
  to.pending_index = SIZE_MAX;
}

void Engine::Impl::queue_control(Rank station, FrameHeader header, std::vector<std::byte> payload) {
  if (station == self || down(station) != nullptr) return;
  header.length = static_cast<uint32_t>(payload.size());
  peer(station).control.push_back(OutControl{header, std::move(payload)});
  mark_pending(station);
}

void Engine::Impl::send_ready(Operation& op, Channel& channel) {
  if (channel.ready_sent) return;
  channel.ready_sent = true;
  counters.ready.add();
  queue_control(channel.station,
                header_for(op, FrameType::ready, op.plan->peers[channel.peer_index].rank, false));
}

namespace {

// Both lists are sorted by it; their last is taken first.
bool sends_after(const Channel* x, const Channel* y) {
  const int mine = x->op->call.priority;
  const int other = y->op->call.priority;
  return mine != other ? mine < other : x->op->age > y->op->age;
}

}  // namespace

void Engine::Impl::list(Channel& channel, Channel::Listing where) {
  Peer& to = peer(channel.station);
  if (to.down) return;
  channel.listing = where;
  std::vector<Channel*>& into = where == Channel::Listing::runnable ? to.runnable : to.blocked;
  const auto at = std::lower_bound(into.begin(), into.end(), &channel, sends_after);
  into.insert(at, &channel);
  if (where == Channel::Listing::runnable) mark_pending(channel.station);
}

void Engine::Impl::unlist(Channel& channel) {
  if (channel.listing == Channel::Listing::none) return;
  Peer& to = peer(channel.station);
  std::vector<Channel*>& from =
      channel.listing == Channel::Listing::runnable ? to.runnable : to.blocked;
  const auto at = std::find(from.rbegin(), from.rend(), &channel);
  SCANT_CHECK(at != from.rend(), "a listed channel is not in its list");
  from.erase(std::next(at).base());
  channel.listing = Channel::Listing::none;
}

// The window opened: whatever it stopped may try again.
void Engine::Impl::unblock(Rank station) {
  Peer& to = peer(station);
  if (to.blocked.empty()) return;
  for (Channel* channel : to.blocked) channel->listing = Channel::Listing::runnable;
  to.runnable.insert(to.runnable.end(), to.blocked.begin(), to.blocked.end());
  to.blocked.clear();
  std::sort(to.runnable.begin(), to.runnable.end(), sends_after);
  mark_pending(station);
}

uint64_t Engine::Impl::hold_sent(Sent entry) {
  if (free_sent.empty()) {
    free_sent.push_back(static_cast<uint32_t>(sent.size()));
    sent.emplace_back();
  }
  const uint32_t index = free_sent.back();
  free_sent.pop_back();
  sent[index] = std::move(entry);
  return uint64_t{index} + 1;
}

OutFrame Engine::Impl::data_frame(Channel& channel, bool eager) {
  Operation& op = *channel.op;
  const uint32_t index = channel.front();
  const Step& step = op.plan->steps[index];
  OutFrame frame;
  frame.header = header_for(op, FrameType::data, step.peer, true);
  frame.header.slot = step.slot;
  const uint64_t bytes = op.bytes_of(step);
  frame.header.length = static_cast<uint32_t>(bytes);
  if (bytes > 0) frame.payload = {op.address(step.a), bytes};
  if (op.ends_part(step)) frame.header.flags |= kFlagLast;
  if (eager) {
    frame.header.flags |= kFlagEager;
    channel.eager_sent += bytes;
    peer(channel.station).credit.sent(charge_of(frame.header.length));
    counters.eager.add();
  }
  op.steps[index] = StepState::busy;
  ++op.sends_busy;
  frame.token = hold_sent(Sent{&op, index, {}});
  channel.pop();
  if (channel.empty()) unlist(channel);
  return frame;
}

std::optional<OutFrame> Engine::Impl::next_data(Rank station) {
  Peer& to = peer(station);
  while (!to.runnable.empty()) {
    Channel& channel = *to.runnable.back();
    if (channel.granted) return data_frame(channel, false);
    const uint64_t bytes = channel.op->bytes_of(channel.op->plan->steps[channel.front()]);
    if (channel.eager_sent + bytes > options.eager_bytes) {
      unlist(channel);  // more than the peer takes unasked: its `ready` is on the way
      continue;
    }
    if (to.credit.fits(charge_of(static_cast<uint32_t>(bytes)))) return data_frame(channel, true);
    unlist(channel);
    list(channel, Channel::Listing::blocked);
    if (channel.requested) continue;
    channel.requested = true;
    counters.request.add();
    OutFrame frame;
    frame.header = header_for(*channel.op, FrameType::request,
                              channel.op->plan->peers[channel.peer_index].rank, true);
    return frame;
  }
  return std::nullopt;
}

std::optional<OutFrame> Engine::Impl::poll_transmit(Rank station) {
  Peer& to = peer(station);
  std::optional<OutFrame> frame;
  if (to.down) return frame;
  if (!to.control.empty()) {
    OutControl control = std::move(to.control[to.control_head]);
    if (++to.control_head == to.control.size()) {
      to.control.clear();
      to.control_head = 0;
    }
    frame.emplace();
    frame->header = control.header;
    if (!control.payload.empty()) {
      frame->token = hold_sent(Sent{nullptr, 0, std::move(control.payload)});
      frame->payload = sent[frame->token - 1].payload;
    }
  } else {
    frame = next_data(station);
  }
  if (!frame && to.credit.should_tell()) {
    frame.emplace();
    frame->header.type = FrameType::credit;
    frame->header.epoch = epoch_now();
    counters.credit.add();
  }
  if (!frame) {
    unmark_pending(station);
    return frame;
  }
  frame->header.credit = to.credit.tell();
  return frame;
}

void Engine::Impl::on_sent(uint64_t token) {
  if (token == 0) return;
  SCANT_CHECK(token <= sent.size(), "the transport returns a token it never got");
  Sent entry = std::move(sent[token - 1]);
  sent[token - 1] = Sent{};
  free_sent.push_back(static_cast<uint32_t>(token - 1));
  if (entry.op == nullptr) return;
  Operation& op = *entry.op;
  --op.sends_busy;
  if (op.state == OpState::running) {
    --op.channels[op.plan->peer_of_step[entry.step]].sends_left;
    complete(op, entry.step);
  } else if (op.sends_busy + op.receives_busy == 0) {
    end(op);
  }
}

}  // namespace scant::collective
