#include "collective/testing/fake_network.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace scant::collective {

FakeNetwork::FakeNetwork(uint64_t seed, int size, EngineOptions options, const CostModel& model)
    : rng_(seed, 99), dead_(static_cast<size_t>(size)), held_(static_cast<size_t>(size)) {
  base::set_check_seed(seed);
  for (Rank rank = 0; rank < size; ++rank) {
    options.rank = rank;
    options.size = size;
    engines_.push_back(std::make_unique<Engine>(options, model));
    engines_.back()->set_now(now_);
  }
}

// Takes one frame from a random engine that has one.
bool FakeNetwork::transmit() {
  const auto size = static_cast<uint64_t>(engines_.size());
  const uint64_t first = rng_.below(size);
  for (uint64_t i = 0; i < size; ++i) {
    const auto from = static_cast<Rank>((first + i) % size);
    if (dead(from) || held_[static_cast<size_t>(from)]) continue;
    const std::vector<Rank> pending = engine(from).pending_peers();
    for (const Rank to : pending) {
      std::optional<OutFrame> out = engine(from).poll_transmit(to);
      if (!out) continue;
      ++counts_[static_cast<size_t>(out->header.type)];
      if (out->header.type == net::FrameType::data) data_bytes_ += out->payload.size();
      Flight flight;
      flight.from = from;
      flight.to = to;
      flight.header = out->header;
      flight.payload = out->payload;
      flight.token = out->token;
      flights_.push_back(std::move(flight));
      return true;
    }
  }
  return false;
}

void FakeNetwork::tell_sent(Flight& flight) {
  if (flight.sent) return;
  flight.sent = true;
  if (!dead(flight.from)) engine(flight.from).on_sent(flight.token);
}

void FakeNetwork::advance_flight(size_t index) {
  Flight& flight = flights_[index];
  Engine& to = engine(flight.to);
  if (flight.phase == Phase::queued) {
    flight.copy.assign(flight.payload.begin(), flight.payload.end());
    flight.phase = Phase::header;
    if (rng_.chance(0.5)) return tell_sent(flight);
    return;
  }
  if (flight.phase == Phase::header) {
    flight.phase = Phase::whole;
    if (flight.header.length > 0 && rng_.chance(0.3) &&
        to.take(flight.from, flight.header, flight.copy)) {
      tell_sent(flights_[index]);
      flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(index));
      return;
    }
    if (flight.header.length > 0) {
      flight.target = to.on_header(flight.from, flight.header);
      if (flight.target.empty()) {  // discarded
        tell_sent(flights_[index]);
        flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(index));
      } else {
        SCANT_CHECK(flights_[index].target.size() == flights_[index].header.length);
        std::memcpy(flight.target.data(), flight.copy.data(), flight.copy.size() / 2);
      }
      return;
    }
  }
  Flight done = std::move(flight);
  flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(index));
  if (!done.copy.empty()) std::memcpy(done.target.data(), done.copy.data(), done.copy.size());
  to.on_frame(done.from, done.header, done.target);
  tell_sent(done);
}

void FakeNetwork::drop_flights_of(Rank at, Rank gone) {
  for (size_t i = 0; i < flights_.size();) {
    if (flights_[i].from == gone && flights_[i].to == at) {
      flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

void FakeNetwork::deliver_notice(size_t index) {
  const Notice notice = notices_[index];
  const bool orderly = notice.error.code == ErrorCode::closed;
  if (orderly) {
    for (const Flight& flight : flights_) {
      if (flight.from == notice.gone && flight.to == notice.at) return;  // still arriving
    }
  }
  notices_.erase(notices_.begin() + static_cast<std::ptrdiff_t>(index));
  if (!orderly) drop_flights_of(notice.at, notice.gone);
  if (dead(notice.at)) return;
  std::vector<uint64_t> tokens;
  for (size_t i = 0; i < flights_.size();) {
    Flight& flight = flights_[i];
    if (flight.from == notice.at && flight.to == notice.gone) {
      if (!flight.sent) tokens.push_back(flight.token);
      flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  engine(notice.at).on_peer_down(notice.gone, notice.error);
  for (const uint64_t token : tokens) engine(notice.at).on_sent(token);
}

bool FakeNetwork::step() {
  for (Rank rank = 0; rank < size(); ++rank) engine(rank).set_now(now_);
  if (rng_.chance(0.4) && transmit()) return true;
  std::vector<size_t> movable;
  for (size_t i = 0; i < flights_.size(); ++i) {
    if (!dead(flights_[i].to)) movable.push_back(i);
  }
  const size_t choices = movable.size() + notices_.size();
  if (choices == 0) return transmit();
  const size_t choice = rng_.below(choices);
  if (choice < movable.size()) {
    advance_flight(movable[choice]);
  } else {
    deliver_notice(choice - movable.size());
  }
  return true;
}

void FakeNetwork::settle() {
  while (step()) {
  }
}

void FakeNetwork::advance(Duration by) {
  now_ += by;
  for (Rank rank = 0; rank < size(); ++rank) {
    if (!dead(rank)) engine(rank).on_timer(now_);
  }
}

void FakeNetwork::run(Time until) {
  for (;;) {
    settle();
    Time next = until;
    for (Rank rank = 0; rank < size(); ++rank) {
      if (!dead(rank)) next = std::min(next, engine(rank).next_deadline());
    }
    if (next >= until) return;
    advance(std::max(next - now_, Duration(0)));
  }
}

void FakeNetwork::kill(Rank rank) {
  dead_[static_cast<size_t>(rank)] = true;
  std::erase_if(flights_, [rank](const Flight& flight) {
    return flight.from == rank && flight.phase == Phase::queued;
  });
  for (Rank other = 0; other < size(); ++other) {
    if (other == rank || dead(other)) continue;
    notices_.push_back(
        Notice{other, rank,
               Error{ErrorCode::peer_lost, 0, rank, "rank " + std::to_string(rank) + " is lost"}});
  }
}

void FakeNetwork::leave(Rank rank) {
  for (const Rank to : std::vector<Rank>(engine(rank).pending_peers())) {
    while (std::optional<OutFrame> out = engine(rank).poll_transmit(to)) {
      Flight flight;
      flight.from = rank;
      flight.to = to;
      flight.header = out->header;
      flight.copy.assign(out->payload.begin(), out->payload.end());
      flight.phase = Phase::header;
      flight.sent = true;
      engine(rank).on_sent(out->token);
      flights_.push_back(std::move(flight));
    }
  }
  for (Flight& flight : flights_) {
    if (flight.from != rank || flight.phase != Phase::queued) continue;
    flight.copy.assign(flight.payload.begin(), flight.payload.end());
    flight.phase = Phase::header;
    flight.sent = true;
  }
  dead_[static_cast<size_t>(rank)] = true;
  for (Rank other = 0; other < size(); ++other) {
    if (other == rank || dead(other)) continue;
    notices_.push_back(
        Notice{other, rank,
               Error{ErrorCode::closed, 0, rank, "rank " + std::to_string(rank) + " has left"}});
  }
}

}  // namespace scant::collective
