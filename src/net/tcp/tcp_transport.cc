// The event loop: flush what was queued, wait, read, write, keep peers alive and judge the silent
// ones.
#include "net/tcp/tcp_transport.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <utility>

#include "base/check.h"
#include "net/net_counters.h"
#include "net/peer_text.h"

namespace scant::net {
namespace {

constexpr size_t kReadBudget = size_t{2}
                               << 20;  // of one connection in one round, so that nobody starves
constexpr size_t kUnlimited = SIZE_MAX;
constexpr uint64_t kEventKey = UINT64_MAX;
constexpr int kEventsMax = 64;

uint64_t key_of(Rank peer, size_t lane) { return static_cast<uint64_t>(peer) << 8 | lane; }

}  // namespace

const base::Clock& TcpTransport::monotonic_clock() {
  static const base::MonotonicClock clock;
  return clock;
}

Result<std::unique_ptr<Transport>> TcpTransport::create(Store& store,
                                                        const CommunicatorOptions& options,
                                                        const base::Clock& clock) {
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  Fd event(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!epoll.open() || !event.open()) {
    return Error{ErrorCode::resource, errno, kNoRank, "cannot create an event loop"};
  }
  auto established = bootstrap_tcp(store, options);
  if (!established) return established.error();
  size_t lanes = 0;
  for (const Established::Peer& peer : established.value().peers) lanes += peer.lanes.size();
  std::vector<base::Buffer> buffers;
  for (size_t i = 0; i < lanes; ++i) {
    Result<base::Buffer> buffer = base::Buffer::allocate(Connection::kBufferBytes);
    if (!buffer) return buffer.error();
    buffers.push_back(std::move(buffer).value());
  }
  return std::unique_ptr<Transport>(
      std::make_unique<TcpTransport>(options, std::move(established).value(), std::move(buffers),
                                     std::move(epoll), std::move(event), clock));
}

TcpTransport::TcpTransport(const CommunicatorOptions& options, Established established,
                           std::vector<base::Buffer> buffers, Fd epoll, Fd event,
                           const base::Clock& clock)
    : clock_(&clock),
      rank_(options.rank),
      job_(established.job),
      peer_timeout_(options.peer_timeout),
      rate_limit_(options.rate_limit_bytes_per_second),
      epoll_(std::move(epoll)),
      event_(std::move(event)),
      peers_(established.peers.size()) {
  const Time started = now();
  rate_filled_ = last_tick_ = next_tick_ = started;
  for (size_t r = 0; r < peers_.size(); ++r) {
    Peer& peer = peers_[r];
    Established::Peer& from = established.peers[r];
    peer.info = {static_cast<Rank>(r), from.record.host, from.record.pid, from.address, true,
                 Duration::zero()};
    peer.liveness = Liveness(peer_timeout_,
                             std::max<Duration>(options.connect_timeout, peer_timeout_), started);
    for (Established::Lane& lane : from.lanes) {
      // What a rate limit bounds must pass through the socket, where it is counted.
      peer.lanes.push_back(std::make_unique<Connection>(
          std::move(lane.fd), lane.family, job_, rate_limit_ == 0, std::move(buffers.back())));
      buffers.pop_back();
      watch(*peer.lanes.back(), static_cast<Rank>(r), peer.lanes.size() - 1, true);
    }
    peer.up = !peer.lanes.empty();
    // The first word: everyone is connected here. An error is found again by the first poll.
    if (!peer.up) continue;
    peer.lanes.front()->enqueue(FrameHeader{}, {}, 0);
    static_cast<void>(peer.lanes.front()->flush(kUnlimited, sent_));
  }
  epoll_event interest{};
  interest.events = EPOLLIN;
  interest.data.u64 = kEventKey;
  SCANT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, event_.get(), &interest) == 0);
}

TcpTransport::~TcpTransport() = default;

void TcpTransport::watch(Connection& connection, Rank peer, size_t lane, bool first) {
  const bool output = connection.blocked();
  if (!first && output == connection.watches_output) return;
  epoll_event interest{};
  interest.events = output ? EPOLLIN | EPOLLOUT : EPOLLIN;
  interest.data.u64 = key_of(peer, lane);
  SCANT_CHECK(epoll_ctl(epoll_.get(), first ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, connection.fd(),
                        &interest) == 0);
  connection.watches_output = output;
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
    watch(lane, rank, i, false);
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
  polling_ = true;
  bool handled = false;
  for (;;) {
    handled = flush_dirty(sink) || handled;
    handled = deliver_sent(sink) || handled;
    const Time at = now();
    Time until = std::min(deadline, next_tick_);
    if (!dirty_.empty() && rate_limit_ != 0)
      until = std::min<Time>(until, at + std::chrono::milliseconds(1));
    sleeping_.store(true, std::memory_order_seq_cst);
    const bool woken = wake_pending_.exchange(false, std::memory_order_seq_cst);
    int timeout_ms = 0;
    if (!handled && !woken && until > at) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - at).count();
      timeout_ms = static_cast<int>(std::min<int64_t>(left, 60'000));
    }
    handled = handle_events(timeout_ms, sink) || handled || woken;
    if (now() >= next_tick_) handled = tick(sink) || handled;
    handled = deliver_sent(sink) || handled;
    if (handled || now() >= deadline) break;
  }
  polling_ = false;
}

bool TcpTransport::handle_events(int timeout_ms, TransportSink& sink) {
  std::array<epoll_event, kEventsMax> events;
  const int count = epoll_wait(epoll_.get(), events.data(), kEventsMax, timeout_ms);
  sleeping_.store(false, std::memory_order_relaxed);
  bool handled = false;
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.u64 == kEventKey) {
      uint64_t value = 0;
      static_cast<void>(::read(event_.get(), &value, sizeof(value)));
      wake_pending_.store(false, std::memory_order_seq_cst);
      handled = true;
      continue;
    }
    const auto rank = static_cast<Rank>(event.data.u64 >> 8);
    const auto lane = static_cast<size_t>(event.data.u64 & 0xFF);
    Peer& peer = peers_[static_cast<size_t>(rank)];
    if (!peer.up) continue;
    if ((event.events & EPOLLOUT) != 0) {
      peer.lanes[lane]->set_unblocked();
      flush_peer(rank, sink);
      handled = true;
    }
    if (peer.up && (event.events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) {
      handled = read_peer(rank, lane, sink) || handled;
    }
  }
  // Last: why they left may have come from others.
  for (const Rank rank : std::exchange(left_, {})) {
    const Peer& peer = peers_[static_cast<size_t>(rank)];
    if (peer.up) peer_down(rank, peer_left(peer.info), sink);
  }
  return handled;
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
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, lane.fd(), nullptr);
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
  for (const auto& lane : peer.lanes) lane->drop_queue(sent_);
  peer.lanes.clear();  // closing a descriptor takes it out of epoll
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

void TcpTransport::wake() {
  if (wake_pending_.exchange(true, std::memory_order_seq_cst)) return;
  if (!sleeping_.load(std::memory_order_seq_cst)) return;
  const uint64_t one = 1;
  static_cast<void>(::write(event_.get(), &one, sizeof(one)));
}

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
  const int64_t judge_ms = std::clamp<int64_t>(
      std::chrono::ceil<std::chrono::milliseconds>(peer_timeout_).count() / 10, 1, 1000);
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
        watch(lane, static_cast<Rank>(r), i, false);
        open = true;
      }
    }
    const Time at = now();
    if (!open || at >= deadline) return;
    std::array<epoll_event, kEventsMax> events;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - at).count();
    const int count = epoll_wait(epoll_.get(), events.data(), kEventsMax,
                                 static_cast<int>(std::min<int64_t>(left, judge_ms)));
    for (int i = 0; i < count; ++i) {
      const uint64_t key = events[static_cast<size_t>(i)].data.u64;
      if (key == kEventKey) {
        uint64_t value = 0;
        static_cast<void>(::read(event_.get(), &value, sizeof(value)));
        continue;
      }
      Peer& peer = peers_[key >> 8];
      if (peer.up && (events[static_cast<size_t>(i)].events & EPOLLOUT) != 0)
        peer.lanes[key & 0xFF]->set_unblocked();
    }
  }
}

}  // namespace scant::net
