// Couples an engine to a transport: the one loop body that the I/O thread of a communicator and the
// simulator share. Owner: the thread that owns the engine.
#pragma once

#include <vector>

#include "collective/engine/engine.h"
#include "net/transport.h"

namespace scant::collective {

class Pump final : private net::TransportSink {
 public:
  Pump(Engine& engine, net::Transport& transport) : engine_(engine), transport_(transport) {}

  // Sends what may go, then handles at least one event, or returns at `deadline`, the engine's next
  // deadline or wake().
  void step(Time deadline);
  // Hands over frames while the transport takes them.
  void transmit();
  // Deadlines of the engine, and stations that a new epoch left behind.
  void tick();

 private:
  MutableBytes on_header(Rank peer, const net::FrameHeader& header) override;
  bool take(Rank peer, const net::FrameHeader& header, Bytes payload) override;
  void on_frame(Rank peer, const net::FrameHeader& header, MutableBytes payload) override;
  void on_sent(uint64_t token) override;
  void on_peer_down(Rank peer, const Error& error) override;

  Engine& engine_;
  net::Transport& transport_;
  std::vector<Rank> pending_;  // reused
};

}  // namespace scant::collective
