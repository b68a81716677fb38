// The transport over stream sockets: TCP between hosts, unix sockets between ranks of one network
// namespace, on one event loop. Owner: one thread; only wake() may be called from others.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/event_loop.h"
#include "net/liveness.h"
#include "net/tcp/connection.h"
#include "net/tcp/mesh.h"
#include "net/transport.h"
#include "scant/collective/store.h"

namespace scant::net {

// Listens, publishes, connects and authenticates; blocks until everyone is there or names who is
// missing.
[[nodiscard]] Result<Established> bootstrap_tcp(Store& store, const CommunicatorOptions& options);

class TcpTransport final : public Transport {
 public:
  // `clock` is the transport's for heartbeats, judgement and rate; a test may bring its own, the
  // bootstrap always waits in real time. It must outlive the transport.
  static Result<std::unique_ptr<Transport>> create(Store& store, const CommunicatorOptions& options,
                                                   const base::Clock& clock = monotonic_clock());
  // Over sockets that are authenticated already.
  static Result<std::unique_ptr<TcpTransport>> over(const CommunicatorOptions& options,
                                                    Established established,
                                                    const base::Clock& clock);
  ~TcpTransport() override;

  [[nodiscard]] Rank rank() const override { return rank_; }
  [[nodiscard]] int size() const override { return static_cast<int>(peers_.size()); }
  [[nodiscard]] bool can_send(Rank peer) const override;
  void send(Rank peer, const FrameHeader& header, Bytes payload, uint64_t token) override;
  void poll(Time deadline, TransportSink& sink) override;
  void wake() override;
  void forget(Rank peer) override;
  [[nodiscard]] Time now() const override { return clock_->now(); }
  [[nodiscard]] std::vector<PeerInfo> peers() const override;
  void close(Time deadline) override;

 private:
  static const base::Clock& monotonic_clock();
  struct Peer {
    std::vector<std::unique_ptr<Connection>> lanes;
    Liveness liveness{Duration(0), Duration(0), Time{}};
    PeerInfo info;
    bool up = false;
    bool dirty = false;  // has unflushed frames
  };

  TcpTransport(const CommunicatorOptions& options, uint32_t job, size_t size,
               std::unique_ptr<base::EventLoop> loop, const base::Clock& clock);
  static Result<std::unique_ptr<TcpTransport>> make(const CommunicatorOptions& options,
                                                    Established established,
                                                    std::unique_ptr<base::EventLoop> loop,
                                                    const base::Clock& clock);
  Result<void> add_peer(Rank peer, Established::Peer from, Duration connect_timeout);
  void update_watch(const Connection& connection);
  void unwatch(Connection& connection);
  bool flush_dirty(TransportSink& sink);
  void flush_peer(Rank peer, TransportSink& sink);
  bool deliver_sent(TransportSink& sink);
  void on_ready(Rank peer, size_t lane, base::Readiness ready);
  bool read_peer(Rank peer, size_t lane, TransportSink& sink);
  bool tick(TransportSink& sink);
  void peer_failed(Rank peer, const Error& cause, TransportSink& sink);
  void peer_down(Rank peer, const Error& error, TransportSink& sink);
  void close_lanes(Peer& peer);
  [[nodiscard]] size_t send_budget();
  Connection& lane_for(Peer& peer);
  void drain_goodbyes(Time deadline);

  const base::Clock* clock_;
  Rank rank_;
  uint32_t job_;
  Duration peer_timeout_;
  uint64_t rate_limit_;
  double rate_tokens_ = 0;
  Time rate_filled_;
  std::unique_ptr<base::EventLoop> loop_;
  std::vector<Peer> peers_;
  std::vector<Rank> dirty_;
  std::vector<uint64_t> sent_;
  std::vector<Rank> left_;  // said goodbye in this round of events
  Time next_tick_;
  Time last_tick_;
  bool polling_ = false;
  TransportSink* sink_ = nullptr;  // of the poll() in progress; null: the transport closes
  bool handled_ = false;           // something, in this poll()
};

}  // namespace scant::net
