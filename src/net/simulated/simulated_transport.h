// One endpoint of a SimulatedNetwork. Cuts frames into datagrams, repairs losses with the reliable
// link, assembles frames as their pieces come, in whatever order. Owner: the network's thread; only
// wake() may be called from others.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/datagram.h"
#include "net/liveness.h"
#include "net/reliable_link.h"
#include "net/simulated/simulated_network.h"

namespace scant::net {

class SimulatedTransport final : public Transport {
 public:
  SimulatedTransport(SimulatedNetwork& network, Rank rank);
  ~SimulatedTransport() override;

  [[nodiscard]] Rank rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return network_.size(); }
  [[nodiscard]] bool can_send(Rank peer) const override;
  void send(Rank peer, const FrameHeader& header, Bytes payload, uint64_t token) override;
  // Never waits: handles what is due at the network's time, and asks the network to make this
  // endpoint runnable at `deadline`. A deadline that has passed brings it back a microsecond later.
  void poll(Time deadline, TransportSink& sink) override;
  void wake() override;
  void forget(Rank peer) override;
  [[nodiscard]] Time now() const override { return network_.now(); }
  [[nodiscard]] std::vector<PeerInfo> peers() const override;
  // Returns at once; the network goes on carrying what was sent until it arrived or `deadline`.
  void close(Time deadline) override;

 private:
  friend class SimulatedNetwork;
  struct OutFrame {
    EncodedHeader header;
    Bytes payload;
    uint64_t number = 0;
    size_t cut = 0;  // bytes that went into datagrams
    [[nodiscard]] size_t bytes() const { return header.size() + payload.size(); }
  };
  struct Unfinished {  // sent, not acknowledged
    uint64_t token = 0;
    Bytes payload;
    uint32_t payload_crc = 0;
    size_t packets = 0;
    bool cut = false;
  };
  struct Packet {
    uint64_t frame = 0;
    std::vector<std::byte> bytes;
  };
  struct Assembly {
    bool begun = false;  // the header came
    FrameHeader header;
    MutableBytes target;
    uint32_t total = 0;
    size_t arrived = 0;
    std::vector<std::pair<uint32_t, std::vector<std::byte>>> early;  // pieces before the header
  };
  struct Link {
    std::deque<OutFrame> queue;
    size_t queued_bytes = 0;
    uint64_t next_frame = 0;
    ReliableSender sender;
    ReliableReceiver receiver;
    std::map<uint64_t, Packet> packets;         // by number, until acknowledged
    std::map<uint64_t, Unfinished> unfinished;  // by frame
    std::map<uint64_t, Assembly> assemblies;    // by frame
    Time timer = kNever;                        // its place in timers_
    bool goodbye = false;                       // the peer's goodbye came
    uint64_t goodbye_frame = 0;
    uint64_t frames_arrived = 0;
    Time heard{};
  };

  Link& link(Rank peer);
  [[nodiscard]] bool down(Rank peer) const { return down_[static_cast<size_t>(peer)]; }
  void work(TransportSink& sink);
  void receive(Rank from, std::vector<std::byte> bytes);
  void on_datagram(Rank from, Bytes bytes, TransportSink& sink);
  void on_data(Rank peer, const Datagram& datagram, TransportSink& sink);
  static void place(const Assembly& assembly, uint32_t offset, Bytes piece);
  bool begin_frame(Rank peer, Assembly& assembly, const Datagram& datagram, TransportSink& sink);
  void end_frame(Rank peer, uint64_t frame, TransportSink& sink);
  void maybe_closed(Rank peer, TransportSink& sink);
  void on_notice(Rank peer, TransportSink& sink);
  void on_ack(Rank peer, const LinkAck& ack, TransportSink& sink);
  void release(const Unfinished& frame);
  void transmit(Rank peer, Link& to);
  void send_packet(Rank peer, Link& to);
  void run_timers();
  void set_timer(Rank peer, Link& of);
  void control(Rank peer, DatagramKind kind, const LinkAck& ack = {});
  void beat(TransportSink& sink);
  void judge(TransportSink& sink);
  [[nodiscard]] Error lost(Rank peer, const std::string& cause, Time heard) const;
  void broken(Rank peer, const std::string& what, TransportSink& sink);
  [[nodiscard]] PeerInfo peer_info(Rank peer) const;
  void drop(Rank peer);
  void peer_down(Rank peer, const Error& error, bool reset, TransportSink& sink);
  void deliver_sent(TransportSink& sink);
  void linger();
  void reset_all();
  [[nodiscard]] bool delivered_all() const;

  SimulatedNetwork& network_;
  Rank rank_;
  std::unordered_map<Rank, std::unique_ptr<Link>> links_;
  std::vector<bool> down_;
  std::deque<std::pair<Rank, std::vector<std::byte>>> inbox_;
  size_t inbox_bytes_ = 0;
  std::vector<Rank> notices_;
  std::set<Rank> dirty_;
  std::set<std::pair<Time, Rank>> timers_;
  std::vector<uint64_t> sent_;
  Time judge_at_ = kNever;
  std::vector<Liveness> liveness_;  // only with heartbeat traffic
  Time next_beat_ = kNever;
  Time last_beat_{};
  bool polling_ = false;
  bool handled_ = false;
  bool closed_ = false;
  Time linger_until_{};
  std::atomic<bool> woken_{false};  // set by wake(), cleared by poll(); carries no data
};

}  // namespace scant::net
