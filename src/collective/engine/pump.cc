#include "collective/engine/pump.h"

#include <algorithm>

namespace scant::collective {

void Pump::transmit() {
  // A copy: sending may change the list.
  pending_.assign(engine_.pending_peers().begin(), engine_.pending_peers().end());
  for (const Rank peer : pending_) {
    while (transport_.can_send(peer)) {
      const std::optional<OutFrame> frame = engine_.poll_transmit(peer);
      if (!frame) break;
      transport_.send(peer, frame->header, frame->payload, frame->token);
    }
  }
}

void Pump::tick() {
  const Time now = transport_.now();
  engine_.set_now(now);
  if (engine_.next_deadline() <= now) engine_.on_timer(now);
  for (const Rank station : engine_.take_forgotten()) transport_.forget(station);
}

void Pump::step(Time deadline) {
  engine_.set_now(transport_.now());
  transmit();
  transport_.poll(std::min(deadline, engine_.next_deadline()), *this);
  tick();
}

MutableBytes Pump::on_header(Rank peer, const net::FrameHeader& header) {
  return engine_.on_header(peer, header);
}

bool Pump::take(Rank peer, const net::FrameHeader& header, Bytes payload) {
  engine_.set_now(transport_.now());
  return engine_.take(peer, header, payload);
}

void Pump::on_frame(Rank peer, const net::FrameHeader& header, MutableBytes payload) {
  engine_.set_now(transport_.now());
  engine_.on_frame(peer, header, payload);
}

void Pump::on_sent(uint64_t token) { engine_.on_sent(token); }

void Pump::on_peer_down(Rank peer, const Error& error) {
  engine_.set_now(transport_.now());
  engine_.on_peer_down(peer, error);
}

}  // namespace scant::collective
