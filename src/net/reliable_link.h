// Exactly-once delivery of numbered packets over a path that loses, repeats and reorders, as
// arithmetic: times and numbers in, decisions out. No socket, clock, timer or payload: whoever
// drives it keeps the bytes. One sender and one receiver for each direction of a pair. The window
// is kLinkWindow packets, so all state is bounded.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "scant/base/types.h"

namespace scant::net {

inline constexpr size_t kAckWords = 4;
inline constexpr uint64_t kLinkWindow = 64 * kAckWords;  // packets; what an ack can describe

// Everything before `next` has arrived; bit i of `beyond` says whether next + 1 + i has.
struct LinkAck {
  uint64_t next = 0;
  std::array<uint64_t, kAckWords> beyond{};
  [[nodiscard]] bool has(uint64_t number) const {
    if (number <= next) return number < next;
    const uint64_t bit = number - next - 1;
    return bit < kLinkWindow && (beyond[bit / 64] >> (bit % 64) & 1) != 0;
  }
  // One more than the last that it has.
  [[nodiscard]] uint64_t end() const {
    for (size_t i = kAckWords; i-- > 0;) {
      if (beyond[i] != 0)
        return next + 1 + 64 * i + static_cast<uint64_t>(std::bit_width(beyond[i]));
    }
    return next;
  }
};

struct LinkOptions {
  Duration timeout_first = std::chrono::milliseconds(20);  // before a round trip was measured
  Duration timeout_min = std::chrono::milliseconds(2);     // well above the receiver's ack_delay
  Duration timeout_max = std::chrono::milliseconds(250);   // several tries within a peer_timeout
  Duration ack_delay = std::chrono::microseconds(500);
};

class ReliableSender {
 public:
  explicit ReliableSender(const LinkOptions& options = {}) : options_(options) {}

  [[nodiscard]] bool may_send() const;
  [[nodiscard]] bool idle() const { return base_ == next_; }
  // A new packet leaves now; returns its number.
  uint64_t on_send(Time now);
  // Appends the numbers that are acknowledged for the first time. False: the ack cannot be true.
  bool on_ack(Time now, const LinkAck& ack, std::vector<uint64_t>& acknowledged);
  // When to call take_lost() again; kNever when nothing is under way.
  [[nodiscard]] Time next_deadline() const;
  // Appends the packets to send again now and takes them as sent.
  void take_lost(Time now, std::vector<uint64_t>& lost);
  [[nodiscard]] uint64_t retransmitted() const { return retransmitted_; }
  [[nodiscard]] double window() const { return window_; }

 private:
  struct Slot {
    Time sent{};
    uint64_t order = 0;  // of this transmission among all
    bool acknowledged = false;
    bool lost = false;
    bool repeated = false;
  };
  [[nodiscard]] Slot& slot(uint64_t number) { return slots_[number & (slots_.size() - 1)]; }
  [[nodiscard]] const Slot& slot(uint64_t number) const {
    return slots_[number & (slots_.size() - 1)];
  }
  void grow();
  void on_round_trip(Duration sample);
  void on_loss(const Slot& of, bool silence);
  [[nodiscard]] Duration timeout() const;

  LinkOptions options_;
  uint64_t base_ = 0;  // oldest packet that is not acknowledged
  uint64_t next_ = 0;
  std::vector<Slot> slots_;  // a power of two, grown on demand up to kLinkWindow
  uint64_t next_order_ = 0;
  uint64_t order_seen_ = 0;      // one more than the newest transmission known to have arrived
  uint64_t recovery_order_ = 0;  // transmissions before it belong to the last reduction
  uint64_t retransmitted_ = 0;
  uint64_t in_flight_ = 0;
  double window_ = 16;  // packets; additive increase, multiplicative decrease
  double window_threshold_ = 1e9;
  int backoff_ = 0;
  Duration round_trip_{};
  Duration round_trip_spread_{};
  bool measured_ = false;
};

class ReliableReceiver {
 public:
  explicit ReliableReceiver(const LinkOptions& options = {}) : options_(options) {}

  enum class Arrival { fresh, duplicate, beyond_window };
  Arrival on_packet(Time now, uint64_t number);
  // When an acknowledgement must leave; kNever: none is owed.
  [[nodiscard]] Time ack_deadline() const { return ack_at_; }
  [[nodiscard]] LinkAck take_ack();

 private:
  LinkOptions options_;
  LinkAck state_;
  Time ack_at_ = kNever;
  int unacknowledged_ = 0;
};

}  // namespace scant::net
