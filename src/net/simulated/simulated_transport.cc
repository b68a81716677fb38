// Frames to datagrams and back. The order within one poll: what the peers said, what is due, what
// the owner queued, who has fallen silent.
#include "net/simulated/simulated_transport.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/crc.h"
#include "net/net_counters.h"
#include "net/peer_text.h"

namespace scant::net {
namespace {

constexpr size_t kQueuedBytesMax = 768 * 1024;  // of one peer, as in the tcp transport
constexpr auto kAgain = std::chrono::microseconds(1);

class DiscardSink final : public TransportSink {
 public:
  MutableBytes on_header(Rank, const FrameHeader&) override { return {}; }
  void on_frame(Rank, const FrameHeader&, MutableBytes) override {}
  void on_sent(uint64_t) override {}
  void on_peer_down(Rank, const Error&) override {}
};

base::Counter& bytes_sent(Content content) {
  return bytes_counter(Direction::sent, PathKind::simulated, content);
}

}  // namespace

SimulatedTransport::SimulatedTransport(SimulatedNetwork& network, Rank rank)
    : network_(network), rank_(rank), down_(static_cast<size_t>(network.size()), false) {
  if (!network.options().heartbeat_traffic) return;
  const Duration timeout = network.options().peer_timeout;
  liveness_.assign(down_.size(), Liveness(timeout, timeout, now()));
  last_beat_ = now();
  next_beat_ = now() + timeout / 10;
}

SimulatedTransport::~SimulatedTransport() = default;

SimulatedTransport::Link& SimulatedTransport::link(Rank peer) {
  auto& slot = links_[peer];
  if (!slot) {
    slot = std::make_unique<Link>();
    slot->heard = now();
  }
  return *slot;
}

bool SimulatedTransport::can_send(Rank peer) const {
  const auto found = links_.find(peer);
  return found == links_.end() || found->second->queued_bytes < kQueuedBytesMax;
}

void SimulatedTransport::send(Rank peer, const FrameHeader& given, Bytes payload, uint64_t token) {
  SCANT_CHECK(peer != rank_ && peer >= 0 && peer < size(), "send to a rank that is no peer");
  SCANT_CHECK(payload.size() <= kFramePayloadBytesMax, "a frame's payload is too long");
  if (down(peer) || closed_) {
    if (token != 0) sent_.push_back(token);
    return;
  }
  Link& to = link(peer);
  FrameHeader header = given;
  header.job = 0;
  header.sequence = to.next_frame++;
  header.length = static_cast<uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : base::crc32c(payload);
  Unfinished unfinished{token, payload, header.payload_crc, 0, false};
  to.unfinished.emplace(header.sequence, unfinished);
  to.queue.push_back(OutFrame{encode(header), payload, header.sequence, 0});
  to.queued_bytes += to.queue.back().bytes();
  frames_counter(Direction::sent, PathKind::simulated).add();
  dirty_.insert(peer);
}

void SimulatedTransport::poll(Time deadline, TransportSink& sink) {
  SCANT_CHECK(!polling_ && !closed_, "poll() within poll() or after close()");
  if (!network_.alive(rank_) || network_.stopped(rank_)) return;
  handled_ = woken_.exchange(false, std::memory_order_relaxed);
  work(sink);
  if (handled_) {
    network_.make_runnable(rank_);
    return;
  }
  Time next = std::min({deadline, judge_at_, next_beat_});
  if (!timers_.empty()) next = std::min(next, timers_.begin()->first);
  if (next != kNever) network_.schedule(rank_, next > now() ? next : now() + kAgain);
}

void SimulatedTransport::work(TransportSink& sink) {
  polling_ = true;
  deliver_sent(sink);
  for (const Rank peer : std::exchange(notices_, {})) on_notice(peer, sink);
  while (!inbox_.empty()) {
    const auto [from, bytes] = std::move(inbox_.front());
    inbox_.pop_front();
    inbox_bytes_ -= bytes.size();
    on_datagram(from, bytes, sink);
  }
  if (now() >= next_beat_) beat(sink);
  run_timers();
  for (const Rank peer : std::exchange(dirty_, {})) {
    const auto found = links_.find(peer);
    if (found != links_.end()) transmit(peer, *found->second);
  }
  run_timers();
  if (now() >= judge_at_) judge(sink);
  deliver_sent(sink);
  polling_ = false;
}

// The token goes back; until now the owner had to leave the payload alone.
void SimulatedTransport::release(const Unfinished& frame) {
  SCANT_CHECK(frame.payload.empty() || base::crc32c(frame.payload) == frame.payload_crc,
              "a payload changed before on_sent()");
  if (frame.token != 0) sent_.push_back(frame.token);
}

void SimulatedTransport::transmit(Rank peer, Link& to) {
  while (!to.queue.empty() && to.sender.may_send()) send_packet(peer, to);
  set_timer(peer, to);
}

void SimulatedTransport::send_packet(Rank peer, Link& to) {
  OutFrame& frame = to.queue.front();
  const size_t room = network_.options().datagram_bytes - kDatagramOverheadBytes;
  const size_t step = std::min(room, frame.bytes() - frame.cut);
  std::vector<std::byte> first;
  Datagram datagram;
  if (frame.cut == 0) {
    const Bytes rest = frame.payload.first(step - kFrameHeaderBytes);
    first.reserve(step);
    first.assign(frame.header.begin(), frame.header.end());
    first.insert(first.end(), rest.begin(), rest.end());
    datagram.piece = first;
  } else {
    datagram.piece = frame.payload.subspan(frame.cut - kFrameHeaderBytes, step);
  }
  datagram.kind = DatagramKind::data;
  datagram.source = rank_;
  datagram.destination = peer;
  datagram.number = to.sender.on_send(now());
  datagram.frame = frame.number;
  datagram.offset = static_cast<uint32_t>(frame.cut);
  datagram.total = static_cast<uint32_t>(frame.bytes());
  auto bytes = encode(datagram);
  bytes_sent(Content::frames).add(bytes.size());
  to.packets.emplace(datagram.number, Packet{frame.number, bytes});
  network_.transmit(rank_, peer, std::move(bytes));
  frame.cut += step;
  to.queued_bytes -= step;
  Unfinished& unfinished = to.unfinished.at(frame.number);
  ++unfinished.packets;
  if (frame.cut < frame.bytes()) return;
  unfinished.cut = true;
  if (!network_.options().sent_when_acknowledged) release(unfinished);
  to.queue.pop_front();
}

void SimulatedTransport::run_timers() {
  std::vector<Rank> due;
  for (const auto& [at, peer] : timers_) {
    if (at > now()) break;
    due.push_back(peer);
  }
  for (const Rank peer : due) {
    Link& of = link(peer);
    std::vector<uint64_t> lost;
    if (of.sender.next_deadline() <= now()) of.sender.take_lost(now(), lost);
    for (const uint64_t number : lost) {
      const auto& bytes = of.packets.at(number).bytes;
      retransmits_counter().add();
      bytes_sent(Content::repair).add(bytes.size());
      network_.transmit(rank_, peer, bytes);
    }
    if (of.receiver.ack_deadline() <= now()) {
      control(peer, DatagramKind::acknowledgement, of.receiver.take_ack());
    }
    set_timer(peer, of);
  }
}

void SimulatedTransport::set_timer(Rank peer, Link& of) {
  const Time next = std::min(of.sender.next_deadline(), of.receiver.ack_deadline());
  if (next == of.timer) return;
  if (of.timer != kNever) timers_.erase({of.timer, peer});
  if (next != kNever) timers_.emplace(next, peer);
  of.timer = next;
}

void SimulatedTransport::control(Rank peer, DatagramKind kind, const LinkAck& ack) {
  Datagram datagram;
  datagram.kind = kind;
  datagram.source = rank_;
  datagram.destination = peer;
  datagram.ack = ack;
  auto bytes = encode(datagram);
  bytes_sent(kind == DatagramKind::heartbeat ? Content::keep_alive : Content::repair)
      .add(bytes.size());
  network_.transmit(rank_, peer, std::move(bytes));
}

// As the tcp transport's tick: heartbeats and judgement by what was heard.
void SimulatedTransport::beat(TransportSink& sink) {
  const Duration timeout = network_.options().peer_timeout;
  const bool stalled = now() - last_beat_ > timeout / 2;
  last_beat_ = now();
  next_beat_ = now() + timeout / 10;
  for (Rank peer = 0; peer < size(); ++peer) {
    if (peer == rank_ || down(peer)) continue;
    Liveness& liveness = liveness_[static_cast<size_t>(peer)];
    if (stalled) liveness.forgive(now());
    if (liveness.lost(now())) {
      const Time heard = now() - liveness.silent_for(now());
      peer_down(peer, lost(peer, "nothing was heard from it", heard), true, sink);
    } else if (liveness.heartbeat_due(now())) {
      liveness.on_sent(now());
      heartbeats_counter().add();
      control(peer, DatagramKind::heartbeat);
    }
  }
}

// Without heartbeat traffic: the network says since when a peer is mute; the arithmetic is the
// same.
void SimulatedTransport::judge(TransportSink& sink) {
  judge_at_ = kNever;
  const Duration timeout = network_.options().peer_timeout;
  for (Rank peer = 0; peer < size(); ++peer) {
    if (peer == rank_ || down(peer)) continue;
    Time heard = network_.silent_since(peer, rank_);
    if (heard == kNever) continue;
    const auto found = links_.find(peer);
    if (found != links_.end()) heard = std::max(heard, found->second->heard);
    const Liveness liveness(timeout, timeout, heard);
    if (liveness.lost(now())) {
      peer_down(peer, lost(peer, "nothing was heard from it", heard), true, sink);
    } else {
      judge_at_ = std::min(judge_at_, liveness.lost_at());
    }
  }
}

Error SimulatedTransport::lost(Rank peer, const std::string& cause, Time heard) const {
  return peer_lost(peer_info(peer), Error{ErrorCode::peer_lost, 0, peer, cause}, now() - heard);
}

void SimulatedTransport::broken(Rank peer, const std::string& what, TransportSink& sink) {
  corrupt_counter().add();
  peer_down(peer,
            peer_lost(peer_info(peer), Error{ErrorCode::corrupt, 0, peer, what}, Duration::zero()),
            true, sink);
}

PeerInfo SimulatedTransport::peer_info(Rank peer) const {
  return {
      peer, "host" + std::to_string(peer), peer + 1, "simulated", !down(peer), Duration::zero()};
}

void SimulatedTransport::drop(Rank peer) {
  down_[static_cast<size_t>(peer)] = true;
  const auto found = links_.find(peer);
  if (found == links_.end()) return;
  Link& of = *found->second;
  for (const auto& [number, frame] : of.unfinished) {
    const bool told = frame.cut && !network_.options().sent_when_acknowledged;
    if (!told && frame.token != 0) sent_.push_back(frame.token);
  }
  if (of.timer != kNever) timers_.erase({of.timer, peer});
  dirty_.erase(peer);
  links_.erase(found);
}

void SimulatedTransport::peer_down(Rank peer, const Error& error, bool reset, TransportSink& sink) {
  SCANT_CHECK(!down(peer));
  if (error.code != ErrorCode::closed) lost_counter().add();
  drop(peer);
  if (reset) control(peer, DatagramKind::reset);
  handled_ = true;
  deliver_sent(sink);
  sink.on_peer_down(peer, error);
}

void SimulatedTransport::deliver_sent(TransportSink& sink) {
  for (const uint64_t token : std::exchange(sent_, {})) {
    handled_ = true;
    sink.on_sent(token);
  }
}

void SimulatedTransport::wake() {
  if (woken_.exchange(true, std::memory_order_relaxed)) return;
  network_.wakes_.fetch_add(1, std::memory_order_release);
}

void SimulatedTransport::forget(Rank peer) {
  SCANT_CHECK(!polling_, "forget() from within the sink");
  if (down(peer)) return;
  drop(peer);
  control(peer, DatagramKind::reset);
}

std::vector<PeerInfo> SimulatedTransport::peers() const {
  std::vector<PeerInfo> all;
  for (Rank r = 0; r < size(); ++r) {
    all.push_back(peer_info(r));
    if (r == rank_) continue;
    const Time since = network_.silent_since(r, rank_);
    if (since != kNever) all.back().silent_for = now() - since;
  }
  return all;
}

void SimulatedTransport::close(Time deadline) {
  SCANT_CHECK(!polling_ && !closed_, "close() from within the sink, or twice");
  for (Rank peer = 0; peer < size(); ++peer) {
    if (peer == rank_ || down(peer)) continue;
    if (links_.contains(peer)) {
      FrameHeader goodbye;
      goodbye.type = FrameType::goodbye;
      send(peer, goodbye, {}, 0);
    } else {
      network_.notice(rank_, peer);
    }
  }
  closed_ = true;
  linger_until_ = deadline;
  judge_at_ = next_beat_ = kNever;
  linger();
}

// After close(): the network drives the endpoint until all it sent has arrived.
void SimulatedTransport::linger() {
  if (!network_.alive(rank_) || polling_) return;
  DiscardSink discard;
  work(discard);
  if (delivered_all() || now() >= linger_until_) {
    network_.leave(rank_);
    return;
  }
  Time next = linger_until_;
  if (!timers_.empty()) next = std::min(next, timers_.begin()->first);
  network_.schedule(rank_, next > now() ? next : now() + kAgain);
}

bool SimulatedTransport::delivered_all() const {
  return std::all_of(links_.begin(), links_.end(), [](const auto& entry) {
    return entry.second->queue.empty() && entry.second->sender.idle();
  });
}

void SimulatedTransport::reset_all() {
  for (Rank peer = 0; peer < size(); ++peer) {
    if (peer != rank_ && !down(peer)) control(peer, DatagramKind::reset);
  }
}

}  // namespace scant::net
