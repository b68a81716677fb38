// Flush what was queued, wait, read, write, keep peers alive and judge the silent ones.
#include "net/tcp/tcp_transport.h"

#include <algorithm>
#include <sys/socket.h>
#include <utility>

#include "base/check.h"
#include "net/net_counters.h"
#include "net/peer_text.h"

namespace scant::net {
namespace {

constexpr size_t kReadBudget = size_t{2}
                               << 20;  // of one connection in one round, so that nobody starves
constexpr size_t kUnlimited = SIZE_MAX;

}  // namespace

const base::Clock& TcpTransport::monotonic_clock() {
  static const base::MonotonicClock clock;
  return clock;
}

Result<std::unique_ptr<Transport>> TcpTransport::create(Store& store,
                                                        const CommunicatorOptions& options,
                                                        const base::Clock& clock) {
  auto loop = base::EventLoop::create(clock);
  if (!loop) return loop.error();
  auto established = bootstrap_tcp(store, options);
  if (!established) return established.error();
  auto made = make(options, std::move(established).value(), std::move(loop).value(), clock);
  if (!made) return made.error();
  return std::unique_ptr<Transport>(std::move(made).value());
}

Result<std::unique_ptr<TcpTransport>> TcpTransport::over(const CommunicatorOptions& options,
                                                         Established established,
                                                         const base::Clock& clock) {
  auto loop = base::EventLoop::create(clock);
  if (!loop) return loop.error();
  return make(options, std::move(established), std::move(loop).value(), clock);
}

Result<std::unique_ptr<TcpTransport>> TcpTransport::make(const CommunicatorOptions& options,
                                                         Established established,
                                                         std::unique_ptr<base::EventLoop> loop,
                                                         const base::Clock& clock) {
  std::unique_ptr<TcpTransport> made(
      new TcpTransport(options, established.job, established.peers.size(), std::move(loop), clock));
  for (size_t r = 0; r < established.peers.size(); ++r) {
    Result<void> added = made->add_peer(static_cast<Rank>(r), std::move(established.peers[r]),
                                        options.connect_timeout);
    if (!added) return added.error();
  }
  return made;
}

TcpTransport::TcpTransport(const CommunicatorOptions& options, uint32_t job, size_t size,
                           std::unique_ptr<base::EventLoop> loop, const base::Clock& clock)
    : clock_(&clock),
      rank_(options.rank),
      job_(job),
      peer_timeout_(options.peer_timeout),
      rate_limit_(options.rate_limit_bytes_per_second),
      loop_(std::move(loop)),
      peers_(size) {
  rate_filled_ = last_tick_ = next_tick_ = now();
}

Result<void> TcpTransport::add_peer(Rank rank, Established::Peer from, Duration connect_timeout) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  peer.info = {rank, from.record.host, from.record.pid, from.address, true, Duration::zero()};
  peer.liveness =
      Liveness(peer_timeout_, std::max<Duration>(connect_timeout, peer_timeout_), now());
  for (Established::Lane& lane : from.lanes) {
    // What a rate limit bounds must pass through the socket, where it is counted.
    auto made = Connection::create(std::move(lane.fd), lane.family, job_, rate_limit_ == 0);
    if (!made) return made.error();
    peer.lanes.push_back(std::move(made).value());
    const auto watched = loop_->watch(peer.lanes.back()->fd(), {.readable = true},
                                      [this, rank, index = peer.lanes.size() - 1](
                                          base::Readiness ready) { on_ready(rank, index, ready); });
    if (!watched) return watched.error();
    peer.lanes.back()->watch = watched.value();
  }
  peer.up = !peer.lanes.empty();
  if (!peer.up) return {};
  // The first word: everyone is connected here. An error is found again by the first poll.
  peer.lanes.front()->enqueue(FrameHeader{}, {}, 0);
  static_cast<void>(peer.lanes.front()->flush(kUnlimited, sent_));
  return {};
}

TcpTransport::~TcpTransport() = default;

void TcpTransport::update_watch(const Connection& connection) {
  if (!connection.watch) return;  // its peer will send nothing more
  loop_->change(*connection.watch, {.readable = true, .writable = connection.blocked()});
}

void TcpTransport::unwatch(Connection& connection) {
  if (!connection.watch) return;
  loop_->unwatch(*connection.watch);
  connection.watch.reset();
}

Connection& TcpTransport::lane_for(Peer& peer) {
  Connection* best = peer.lanes.front().get();
  for (const auto& lane : peer.lanes) {
    if (lane->queued_bytes() < best->queued_bytes()) best = lane.get();
  }
  return *best;
}

bool TcpTransport::can_send(Rank rank) const {
  const Peer& peer = peers_[static_cast<size_t>(rank)];
  if (!peer.up) return true;  // dropped at once
  for (const auto& lane : peer.lanes) {
    if (!lane->full()) return true;
  }
  return false;
}

void TcpTransport::send(Rank rank, const FrameHeader& header, Bytes payload, uint64_t token) {
  SCANT_CHECK(rank != rank_ && rank >= 0 && rank < size(), "send to a rank that is no peer");
  Peer& peer = peers_[static_cast<size_t>(rank)];
  if (!peer.up) {
    if (token != 0) sent_.push_back(token);
    return;
  }
  lane_for(peer).enqueue(header, payload, token);
  if (!peer.dirty) {
    peer.dirty = true;
    dirty_.push_back(rank);
  }
}

size_t TcpTransport::send_budget() {
  if (rate_limit_ == 0) return kUnlimited;
  const Time at = now();
  const auto rate = static_cast<double>(rate_limit_);
  const double burst = std::max(16384.0, rate / 200);  // 5 ms of sending
  rate_tokens_ = std::min(
      burst, rate_tokens_ + rate * std::chrono::duration<double>(at - rate_filled_).count());
  rate_filled_ = at;
  return rate_tokens_ > 0 ? static_cast<size_t>(rate_tokens_) + 1 : 0;
}

void TcpTransport::flush_peer(Rank rank, TransportSink& sink) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  for (size_t i = 0; peer.up && i < peer.lanes.size(); ++i) {
    Connection& lane = *peer.lanes[i];
    if (lane.blocked() || lane.queued_bytes() == 0) continue;
    const size_t budget = send_budget();
    if (budget == 0) break;
    const auto written = lane.flush(budget, sent_);
    if (!written) return peer_failed(rank, written.error(), sink);
    if (rate_limit_ != 0) rate_tokens_ -= static_cast<double>(written.value());
    if (written.value() > 0) peer.liveness.on_sent(now());
    update_watch(lane);
  }
}

// True when a peer that was full takes frames again.
bool TcpTransport::flush_dirty(TransportSink& sink) {
  if (dirty_.empty()) return false;
  bool opened = false;
  std::vector<Rank> work;
  work.swap(dirty_);
  for (const Rank rank : work) peers_[static_cast<size_t>(rank)].dirty = false;
  for (const Rank rank : work) {
    const bool was_full = !can_send(rank);
    flush_peer(rank, sink);
    opened = opened || (was_full && can_send(rank));
    Peer& peer = peers_[static_cast<size_t>(rank)];
    bool waits = false;  // for budget, not for the socket: epoll will not tell
    for (const auto& lane : peer.lanes)
      waits = waits || (lane->queued_bytes() > 0 && !lane->blocked());
    if (peer.up && waits && !peer.dirty) {
      peer.dirty = true;
      dirty_.push_back(rank);
    }
  }
  return opened;
}

bool TcpTransport::deliver_sent(TransportSink& sink) {
  if (sent_.empty()) return false;
  std::vector<uint64_t> tokens;
  tokens.swap(sent_);
  for (const uint64_t token : tokens) sink.on_sent(token);
  return true;
}

void TcpTransport::poll(Time deadline, TransportSink& sink) {
  SCANT_CHECK(!polling_, "poll() from within the sink");
  // An allocation that fails in it ends the poll, too.
  struct Polling {
    explicit Polling(TcpTransport& transport, TransportSink& sink) : of(transport) {
      of.polling_ = true;
      of.sink_ = &sink;
    }
    ~Polling() {
      of.polling_ = false;
      of.sink_ = nullptr;
    }
    Polling(const Polling&) = delete;
    Polling& operator=(const Polling&) = delete;
    TcpTransport& of;
  };
  const Polling polling(*this, sink);
  handled_ = false;
  for (;;) {
    handled_ = flush_dirty(sink) || handled_;
    handled_ = deliver_sent(sink) || handled_;
    Time until = std::min(deadline, next_tick_);
    if (!dirty_.empty() && rate_limit_ != 0)
      until = std::min<Time>(until, now() + std::chrono::milliseconds(1));
    const base::EventLoop::Turn turn = loop_->turn(handled_ ? Time::min() : until);
    handled_ = handled_ || turn.woken;
    // Last: why they left may have come from others.
    for (const Rank rank : std::exchange(left_, {})) {
      const Peer& peer = peers_[static_cast<size_t>(rank)];
      if (peer.up) peer_down(rank, peer_left(peer.info), sink);
    }
    if (now() >= next_tick_) handled_ = tick(sink) || handled_;
    handled_ = deliver_sent(sink) || handled_;
    if (handled_ || now() >= deadline) break;
  }
}

void TcpTransport::on_ready(Rank rank, size_t lane, base::Readiness ready) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  if (ready.writable) peer.lanes[lane]->set_unblocked();
  if (sink_ == nullptr) return;  // drain_goodbyes() reads and writes
  if (ready.writable) {
    flush_peer(rank, *sink_);
    handled_ = true;
  }
  if (peer.up && (ready.readable || ready.failed)) {
    handled_ = read_peer(rank, lane, *sink_) || handled_;
  }
}

// True when a frame was delivered or the peer went down.
bool TcpTransport::read_peer(Rank rank, size_t index, TransportSink& sink) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  Connection& lane = *peer.lanes[index];
  const auto progress = lane.read(rank, sink, kReadBudget);
  if (!progress) {
    peer_failed(rank, progress.error(), sink);
    return true;
  }
  if (progress.value().bytes > 0) peer.liveness.on_heard(now());
  const auto goodbye = [](const auto& each) { return each->said_goodbye(); };
  if (std::all_of(peer.lanes.begin(), peer.lanes.end(), goodbye)) {
    left_.push_back(rank);
    return true;
  }
  if (progress.value().ended) {
    if (!lane.said_goodbye()) {
      peer_failed(rank, Error{ErrorCode::peer_lost, 0, rank, "it closed without goodbye"}, sink);
      return true;
    }
    unwatch(lane);
  }
  return progress.value().frames > 0;
}

// One connection failed, so the peer is lost; what is whole on the others is delivered first.
void TcpTransport::peer_failed(Rank rank, const Error& cause, TransportSink& sink) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  for (const auto& lane : peer.lanes) {
    // A connection that failed already gives its error again, or nothing.
    if (lane->corrupt()) continue;
    const auto rest = lane->read(rank, sink, kUnlimited);
    if (rest && rest.value().bytes > 0) peer.liveness.on_heard(now());
  }
  const auto goodbye = [](const auto& lane) { return lane->said_goodbye(); };
  const bool left = std::all_of(peer.lanes.begin(), peer.lanes.end(), goodbye);
  peer_down(
      rank,
      left ? peer_left(peer.info) : peer_lost(peer.info, cause, peer.liveness.silent_for(now())),
      sink);
}

// Heartbeats and judgement; runs at least ten times in a peer_timeout.
bool TcpTransport::tick(TransportSink& sink) {
  const Time at = now();
  const bool stalled = at - last_tick_ > peer_timeout_ / 2;
  last_tick_ = at;
  next_tick_ = at + peer_timeout_ / 10;
  bool handled = false;
  for (size_t r = 0; r < peers_.size(); ++r) {
    Peer& peer = peers_[r];
    if (!peer.up) continue;
    const auto rank = static_cast<Rank>(r);
    // A peer that sends slowly is heard before it is judged.
    for (size_t i = 0; peer.up && i < peer.lanes.size(); ++i) {
      if (peer.lanes[i]->wakes_late()) handled = read_peer(rank, i, sink) || handled;
    }
    if (!peer.up) continue;
    if (stalled) peer.liveness.forgive(at);
    if (peer.liveness.lost(at)) {
      peer_failed(rank, Error{ErrorCode::peer_lost, 0, rank, "nothing was heard from it"}, sink);
      handled = true;
      continue;
    }
    const bool idle = std::all_of(peer.lanes.begin(), peer.lanes.end(),
                                  [](const auto& lane) { return lane->queued_bytes() == 0; });
    if (idle && peer.liveness.heartbeat_due(at)) {
      send(rank, FrameHeader{}, {}, 0);
      heartbeats_counter().add();
    }
  }
  flush_dirty(sink);
  return handled;
}

void TcpTransport::close_lanes(Peer& peer) {
  for (const auto& lane : peer.lanes) {
    lane->drop_queue(sent_);
    unwatch(*lane);
  }
  peer.lanes.clear();
  peer.up = false;
  peer.info.alive = false;
}

void TcpTransport::peer_down(Rank rank, const Error& error, TransportSink& sink) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  SCANT_CHECK(peer.up);
  if (error.code != ErrorCode::closed) lost_counter().add();
  close_lanes(peer);
  // Memory of frames in the queue is free before the owner hears of the loss.
  deliver_sent(sink);
  sink.on_peer_down(rank, error);
}

void TcpTransport::wake() { loop_->wake(); }

void TcpTransport::forget(Rank rank) {
  SCANT_CHECK(!polling_, "forget() from within the sink");
  Peer& peer = peers_[static_cast<size_t>(rank)];
  if (peer.up) close_lanes(peer);
}

std::vector<PeerInfo> TcpTransport::peers() const {
  std::vector<PeerInfo> all;
  for (const Peer& peer : peers_) {
    all.push_back(peer.info);
    if (all.back().rank != rank_) all.back().silent_for = peer.liveness.silent_for(now());
  }
  return all;
}

void TcpTransport::close(Time deadline) {
  SCANT_CHECK(!polling_, "close() from within the sink");
  for (size_t r = 0; r < peers_.size(); ++r) {
    FrameHeader goodbye;
    goodbye.type = FrameType::goodbye;
    for (const auto& lane : peers_[r].lanes) lane->enqueue(goodbye, {}, 0);
  }
  drain_goodbyes(deadline);
  for (Peer& peer : peers_) close_lanes(peer);
  sent_.clear();
}

// Flushes and reads until every peer has ended its side. Closing a socket that holds unread bytes
// would reset the connection and could destroy what the peer has not read yet.
void TcpTransport::drain_goodbyes(Time deadline) {
  class Discard final : public TransportSink {
   public:
    MutableBytes on_header(Rank, const FrameHeader&) override { return {}; }
    void on_frame(Rank, const FrameHeader&, MutableBytes) override {}
    void on_sent(uint64_t) override {}
    void on_peer_down(Rank, const Error&) override {}
  } discard;
  const Duration judge_every = std::clamp<Duration>(
      peer_timeout_ / 10, std::chrono::milliseconds(1), std::chrono::seconds(1));
  for (;;) {
    bool open = false;
    for (size_t r = 0; r < peers_.size(); ++r) {
      Peer& peer = peers_[r];
      for (size_t i = 0; peer.up && i < peer.lanes.size(); ++i) {
        Connection& lane = *peer.lanes[i];
        const auto written = lane.flush(kUnlimited, sent_);
        if (written && lane.queued_bytes() == 0) shutdown(lane.fd(), SHUT_WR);
        const auto progress = lane.read(static_cast<Rank>(r), discard, kReadBudget);
        if (progress && progress.value().bytes > 0) peer.liveness.on_heard(now());
        // The owner may have heard of a loss from others before this rank judged it itself.
        if (!written || !progress || progress.value().ended || peer.liveness.lost(now())) {
          close_lanes(peer);
          break;
        }
        update_watch(lane);
        open = true;
      }
    }
    const Time at = now();
    if (!open || at >= deadline) return;
    loop_->turn(std::min<Time>(deadline, at + judge_every));
  }
}

}  // namespace scant::net
