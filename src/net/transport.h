// Transport: moves frames between the numbered ranks of one job. Two implementations, tcp and
// simulated, pass one conformance suite. Contract:
//  - a frame handed to send() is delivered to the peer exactly once and intact, or the peer is
//  reported lost;
//  - frames of one pair may arrive in another order than they were sent (several connections,
//  retransmission);
//  - a peer that is silent for peer_timeout, whose stream ends without goodbye, or whose bytes are
//  corrupt is reported
//    lost exactly once, after everything that arrived whole from it has been delivered;
//  - all methods but wake() belong to one owner thread, which is also the thread the sink is called
//  on.
#pragma once

#include <string>
#include <vector>

#include "net/frame.h"
#include "scant/collective/communicator.h"

namespace scant::net {

class TransportSink {
 public:
  virtual ~TransportSink() = default;
  // A validated header, its payload not yet read (header.length > 0). Return exactly header.length
  // bytes to receive into, or an empty span to discard the payload (on_frame is then not called for
  // it).
  virtual MutableBytes on_header(Rank peer, const FrameHeader& header) = 0;
  // Asked before on_header when the whole payload lies in memory that is lent for the call. True:
  // it was used from there, and neither on_header nor on_frame follows.
  virtual bool take(Rank /*peer*/, const FrameHeader& /*header*/, Bytes /*payload*/) {
    return false;
  }
  // A whole frame whose payload checksum holds. `payload` is what on_header returned, or empty.
  virtual void on_frame(Rank peer, const FrameHeader& header, MutableBytes payload) = 0;
  // The payload of a send() is no longer read by the transport.
  virtual void on_sent(uint64_t token) = 0;
  // Once per peer. error.code is peer_lost, corrupt or closed (goodbye); message names rank, host,
  // last heard. Payload spans that on_header returned for unfinished frames of this peer are no
  // longer written.
  virtual void on_peer_down(Rank peer, const Error& error) = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  [[nodiscard]] virtual Rank rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  // May take another frame for this peer now without queueing more than the transport's own bound.
  [[nodiscard]] virtual bool can_send(Rank peer) const = 0;
  // Copies the header; `payload` must stay valid until on_sent(token). Frames to a peer that is
  // down are dropped (their on_sent still comes). Self-sends are a programmer's error.
  virtual void send(Rank peer, const FrameHeader& header, Bytes payload, uint64_t token) = 0;
  // Runs I/O and timers; returns after at least one event was handled, or at `deadline`, or after
  // wake().
  virtual void poll(Time deadline, TransportSink& sink) = 0;
  // Thread-safe: makes a poll() in progress, or the next one, return soon.
  virtual void wake() = 0;
  // Stop treating this peer as a member: drop its connection without reporting it. For a new epoch.
  virtual void forget(Rank peer) = 0;
  [[nodiscard]] virtual Time now() const = 0;
  [[nodiscard]] virtual std::vector<PeerInfo> peers() const = 0;
  // Sends goodbye to all, flushes until `deadline`, closes. poll() must not be called afterwards.
  virtual void close(Time deadline) = 0;
};

}  // namespace scant::net
