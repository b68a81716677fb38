// Test support: engines joined by memory. Frames of a pair are delivered in any order, one phase at
// a time (read, header, payload, sent), as a seed decides. Ranks die, leave, stop. Time is virtual.
#pragma once

#include <memory>
#include <vector>

#include "base/rng.h"
#include "collective/engine/engine.h"

namespace scant::collective {

class FakeNetwork {
 public:
  FakeNetwork(uint64_t seed, int size, EngineOptions options = {}, const CostModel& model = {});

  [[nodiscard]] Engine& engine(Rank rank) { return *engines_[static_cast<size_t>(rank)]; }
  [[nodiscard]] int size() const { return static_cast<int>(engines_.size()); }
  [[nodiscard]] Time now() const { return now_; }
  [[nodiscard]] base::Rng& rng() { return rng_; }

  // One random event; false when nothing is left to do but wait for a deadline.
  bool step();
  // Until nothing is left, the clock standing still.
  void settle();
  // Until nothing is left, going from deadline to deadline, at most to `until`.
  void run(Time until);
  void advance(Duration by);

  // The rank vanishes; what is whole at its peers is delivered, each of them hears of it later, at
  // random.
  void kill(Rank rank);
  // An orderly leave: everything it queued arrives first.
  void leave(Rank rank);
  [[nodiscard]] bool dead(Rank rank) const { return dead_[static_cast<size_t>(rank)]; }
  // Nothing goes from this rank while it is held back.
  void hold(Rank rank, bool held) { held_[static_cast<size_t>(rank)] = held; }
  [[nodiscard]] uint64_t frames(net::FrameType type) const {
    return counts_[static_cast<size_t>(type)];
  }
  // Payload bytes of the data frames that were sent.
  [[nodiscard]] uint64_t data_bytes() const { return data_bytes_; }

 private:
  enum class Phase : uint8_t { queued, header, whole };
  struct Flight {
    Rank from = 0;
    Rank to = 0;
    net::FrameHeader header;
    Bytes payload;  // the sender's memory, until `sent`
    uint64_t token = 0;
    bool sent = false;
    std::vector<std::byte> copy;
    Phase phase = Phase::queued;
    MutableBytes target;
  };
  struct Notice {
    Rank at = 0;
    Rank gone = 0;
    Error error;
  };
  bool transmit();
  void advance_flight(size_t index);
  void tell_sent(Flight& flight);
  void deliver_notice(size_t index);
  void drop_flights_of(Rank at, Rank gone);

  base::Rng rng_;
  Time now_{std::chrono::hours(1)};
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<bool> dead_;
  std::vector<bool> held_;
  std::vector<Flight> flights_;
  std::vector<Notice> notices_;
  std::vector<uint64_t> counts_ = std::vector<uint64_t>(32);
  uint64_t data_bytes_ = 0;
};

}  // namespace scant::collective
