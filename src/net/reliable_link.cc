// Loss is inferred from order (three later transmissions arrived) or from time (RFC 6298 timers);
// the window follows slow start and additive increase, multiplicative decrease (RFC 5681).
#include "net/reliable_link.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace scant::net {
namespace {

constexpr uint64_t kReorderMax = 3;  // transmissions that may overtake one that is not lost
constexpr double kWindowMin = 4;     // packets
constexpr int kBackoffMax = 8;       // doublings
constexpr int kPacketsPerAck = 2;
constexpr size_t kSlotsFirst = 8;

}  // namespace

bool ReliableSender::may_send() const {
  return next_ - base_ < kLinkWindow && static_cast<double>(in_flight_) < window_;
}

void ReliableSender::grow() {
  std::vector<Slot> larger(std::max(kSlotsFirst, slots_.size() * 2));
  for (uint64_t n = base_; n != next_; ++n) larger[n & (larger.size() - 1)] = slot(n);
  slots_ = std::move(larger);
}

uint64_t ReliableSender::on_send(Time now) {
  SCANT_CHECK(next_ - base_ < kLinkWindow, "the link's window is full");
  if (next_ - base_ == slots_.size()) grow();
  const uint64_t number = next_++;
  slot(number) = Slot{now, next_order_++, false, false, false};
  ++in_flight_;
  return number;
}

void ReliableSender::on_round_trip(Duration sample) {
  if (!measured_) {
    measured_ = true;
    round_trip_ = sample;
    round_trip_spread_ = sample / 2;
    return;
  }
  const Duration difference = sample > round_trip_ ? sample - round_trip_ : round_trip_ - sample;
  round_trip_spread_ = (3 * round_trip_spread_ + difference) / 4;
  round_trip_ = (7 * round_trip_ + sample) / 8;
}

Duration ReliableSender::timeout() const {
  const Duration plain = measured_ ? round_trip_ + 4 * round_trip_spread_ + options_.ack_delay
                                   : options_.timeout_first;
  const Duration bounded = std::clamp(plain, options_.timeout_min, options_.timeout_max);
  return std::min(options_.timeout_max, bounded * (1 << backoff_));
}

bool ReliableSender::on_ack(Time now, const LinkAck& ack, std::vector<uint64_t>& acknowledged) {
  if (ack.next > next_ || ack.end() > next_) return false;
  // An ack that overtook a newer one may still tell of packets; one wholly in the past cannot.
  Duration sample = Duration::min();
  const size_t before = acknowledged.size();
  for (uint64_t n = base_; n != next_; ++n) {
    Slot& s = slot(n);
    if (s.acknowledged || !ack.has(n)) continue;
    s.acknowledged = true;
    acknowledged.push_back(n);
    if (!s.lost) --in_flight_;
    order_seen_ = std::max(order_seen_, s.order + 1);
    if (!s.repeated) sample = now - s.sent;
  }
  const auto fresh = static_cast<double>(acknowledged.size() - before);
  if (fresh > 0) {
    backoff_ = 0;
    const double growth = window_ < window_threshold_ ? fresh : fresh / window_;
    window_ = std::min(static_cast<double>(kLinkWindow), window_ + growth);
    if (sample != Duration::min()) on_round_trip(sample);
  }
  while (base_ != next_ && slot(base_).acknowledged) ++base_;
  return true;
}

Time ReliableSender::next_deadline() const {
  const bool room = static_cast<double>(in_flight_) < window_;
  const Duration limit = timeout();
  Time first = kNever;
  for (uint64_t n = base_; n != next_; ++n) {
    const Slot& s = slot(n);
    if (s.acknowledged) continue;
    if (s.lost) {
      if (room) return Time::min();
      continue;  // goes when an ack or a timeout makes room
    }
    if (s.order + kReorderMax < order_seen_) return Time::min();
    first = std::min<Time>(first, s.sent + limit);
  }
  return first;
}

void ReliableSender::on_loss(const Slot& of, bool silence) {
  if (of.order < recovery_order_) return;  // one reduction for one round trip
  recovery_order_ = next_order_;
  window_threshold_ = std::max(kWindowMin, window_ / 2);
  window_ = silence ? kWindowMin : window_threshold_;
}

void ReliableSender::take_lost(Time now, std::vector<uint64_t>& lost) {
  const Duration limit = timeout();
  bool silence = false;
  for (uint64_t n = base_; n != next_; ++n) {
    Slot& s = slot(n);
    if (s.acknowledged || s.lost) continue;
    const bool overtaken = s.order + kReorderMax < order_seen_;
    const bool late = s.sent + limit <= now;
    if (!overtaken && !late) continue;
    s.lost = true;
    --in_flight_;
    silence = silence || !overtaken;
    on_loss(s, !overtaken);
  }
  if (silence) backoff_ = std::min(backoff_ + 1, kBackoffMax);
  for (uint64_t n = base_; n != next_; ++n) {
    Slot& s = slot(n);
    if (!s.lost || s.acknowledged) continue;
    if (static_cast<double>(in_flight_) >= window_) break;
    s = Slot{now, next_order_++, false, false, true};
    ++in_flight_;
    ++retransmitted_;
    lost.push_back(n);
  }
}

ReliableReceiver::Arrival ReliableReceiver::on_packet(Time now, uint64_t number) {
  if (number < state_.next || state_.has(number)) {
    ack_at_ = now;  // the sender has not heard of it
    return Arrival::duplicate;
  }
  if (number - state_.next > kLinkWindow) return Arrival::beyond_window;
  ++unacknowledged_;
  if (number != state_.next) {
    const uint64_t bit = number - state_.next - 1;
    state_.beyond[bit / 64] |= uint64_t{1} << (bit % 64);
    ack_at_ = now;  // tells of the gap
    return Arrival::fresh;
  }
  bool more = true;
  while (more) {
    ++state_.next;
    more = (state_.beyond[0] & 1) != 0;
    for (size_t i = 0; i < kAckWords; ++i) {
      const uint64_t carry = i + 1 < kAckWords ? state_.beyond[i + 1] << 63 : 0;
      state_.beyond[i] = state_.beyond[i] >> 1 | carry;
    }
  }
  const bool gaps = std::any_of(state_.beyond.begin(), state_.beyond.end(),
                                [](uint64_t word) { return word != 0; });
  const bool soon = gaps || unacknowledged_ >= kPacketsPerAck;
  ack_at_ = std::min(ack_at_, soon ? now : now + options_.ack_delay);
  return Arrival::fresh;
}

LinkAck ReliableReceiver::take_ack() {
  ack_at_ = kNever;
  unacknowledged_ = 0;
  return state_;
}

}  // namespace scant::net
