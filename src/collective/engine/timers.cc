// Deadlines and probes of operations, and the public face of the engine.
#include <algorithm>

#include "collective/engine/engine_impl.h"

namespace scant::collective {

void Engine::Impl::arm(Operation& op, Time at, bool probe) {
  if (at == kNever) return;
  if (timers.size() > 64 + 4 * in_flight.size()) {
    std::erase_if(timers, [](const Timer& timer) { return !live(timer); });
    std::make_heap(timers.begin(), timers.end(), std::greater<>());
  }
  timers.push_back(Timer{at, op.age, &op, probe});
  std::push_heap(timers.begin(), timers.end(), std::greater<>());
}

void Engine::Impl::on_timer() {
  while (!timers.empty() && (timers.front().at <= now || !live(timers.front()))) {
    const Timer timer = timers.front();
    std::pop_heap(timers.begin(), timers.end(), std::greater<>());
    timers.pop_back();
    if (!live(timer)) continue;
    if (timer.probe) {
      ask_awaited(*timer.op);
    } else {
      expire(*timer.op);
    }
  }
  if (membership.shrinking() && shrink_deadline <= now) {
    std::string names;
    Rank culprit = kNoRank;
    for (const Rank station : membership.missing()) {
      names += (names.empty() ? "" : ", ") + rank_name(station);
      if (culprit == kNoRank) culprit = rank_of[static_cast<size_t>(station)];
    }
    membership.abandon();
    end_shrink(Error{ErrorCode::timeout, 0, culprit,
                     "shrink: not all survivors agreed in time; awaited: " + names});
  }
}

// Both frames carry the descriptor, so that a peer which called something else finds out.
void Engine::Impl::ask_awaited(Operation& op) {
  counters.probes.add();
  for (uint32_t i = 0; i < op.plan->peers.size(); ++i) {
    Channel& channel = op.channels[i];
    if (channel.receives_left > 0) send_ready(op, channel);
    if (channel.sends_left == 0 || channel.granted || channel.requested) continue;
    channel.requested = true;
    counters.request.add();
    queue_control(channel.station,
                  header_for(op, net::FrameType::request, op.plan->peers[i].rank, true));
  }
}

Engine::Engine(const EngineOptions& options, CostModel model)
    : impl_(std::make_unique<Impl>(options, std::move(model))) {}

Engine::~Engine() = default;

Result<void> Engine::add_group(GroupId group, const std::vector<Rank>& members) {
  Impl::Scope scope(*impl_);
  std::vector<Rank> stations;
  for (const Rank member : members) {
    if (member < 0 || member >= size()) {
      return Error{ErrorCode::invalid_argument, 0, kNoRank,
                   "group: member " + std::to_string(member) + " lies outside 0 to " +
                       std::to_string(size() - 1)};
    }
    stations.push_back(impl_->station_of[static_cast<size_t>(member)]);
  }
  return impl_->add_group(group, stations);
}

Result<void> Engine::release_group(GroupId group) {
  Impl::Scope scope(*impl_);
  return impl_->release_group(group);
}

void Engine::submit(Time now, Call call, Done done) {
  Impl::Scope scope(*impl_);
  impl_->now = now;
  impl_->submit(std::move(call), std::move(done));
}

MutableBytes Engine::on_header(Rank peer, const net::FrameHeader& header) {
  Impl::Scope scope(*impl_);
  return impl_->on_header(peer, header);
}

bool Engine::take(Rank peer, const net::FrameHeader& header, Bytes payload) {
  Impl::Scope scope(*impl_);
  return impl_->take(peer, header, payload);
}

void Engine::on_frame(Rank peer, const net::FrameHeader& header, MutableBytes payload) {
  Impl::Scope scope(*impl_);
  impl_->on_frame(peer, header, payload);
}

void Engine::on_sent(uint64_t token) {
  Impl::Scope scope(*impl_);
  impl_->on_sent(token);
}

void Engine::on_peer_down(Rank peer, const Error& error) {
  Impl::Scope scope(*impl_);
  impl_->on_peer_down(peer, error);
}

void Engine::set_now(Time now) { impl_->now = now; }

void Engine::on_timer(Time now) {
  Impl::Scope scope(*impl_);
  impl_->now = now;
  impl_->on_timer();
}

Time Engine::next_deadline() const {
  auto& timers = impl_->timers;
  while (!timers.empty() && !Impl::live(timers.front())) {
    std::pop_heap(timers.begin(), timers.end(), std::greater<>());
    timers.pop_back();
  }
  const Time first = timers.empty() ? kNever : timers.front().at;
  return impl_->membership.shrinking() ? std::min(first, impl_->shrink_deadline) : first;
}

const std::vector<Rank>& Engine::pending_peers() const { return impl_->pending; }

std::optional<OutFrame> Engine::poll_transmit(Rank peer) {
  Impl::Scope scope(*impl_);
  return impl_->poll_transmit(peer);
}

void Engine::begin_shrink(Time now, Time deadline, ShrinkDone done) {
  Impl::Scope scope(*impl_);
  impl_->now = now;
  impl_->begin_shrink(deadline, std::move(done));
}

std::vector<Rank> Engine::take_forgotten() { return std::exchange(impl_->forgotten, {}); }

void Engine::fail_all(const Error& error) {
  Impl::Scope scope(*impl_);
  for (Operation* op : impl_->by_age()) impl_->fail(*op, error, Notify::group);
}

void Engine::tell_all(const Error& error) {
  Impl::Scope scope(*impl_);
  impl_->tell_all(error);
}

void Engine::on_transport_closed(const Error& error) {
  Impl::Scope scope(*impl_);
  impl_->on_transport_closed(error);
}

size_t Engine::operations_in_flight() const { return impl_->in_flight.size(); }
uint32_t Engine::epoch() const { return impl_->epoch_now(); }
Rank Engine::rank() const { return impl_->rank_of[static_cast<size_t>(impl_->self)]; }
int Engine::size() const { return static_cast<int>(impl_->station_of.size()); }
Rank Engine::rank_of(Rank station) const { return impl_->rank_of.at(static_cast<size_t>(station)); }
size_t Engine::buffers_out() const { return impl_->pool.out(); }
size_t Engine::early_operations() const { return impl_->early.size(); }

}  // namespace scant::collective
