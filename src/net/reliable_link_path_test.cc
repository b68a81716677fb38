// Both ends of the reliable link over a path that a seed spoils, beside sets that say what must be
// true.
#include <functional>
#include <gtest/gtest.h>
#include <set>
#include <string>

#include "base/event_queue.h"
#include "base/rng.h"
#include "net/reliable_link.h"

namespace scant::net {
namespace {

using namespace std::chrono_literals;

constexpr Time kStart{1h};
constexpr uint64_t kWindowMin = 4;

// The sets are what must be true; the link is arithmetic.
class SpoiltPath {
 public:
  SpoiltPath(uint64_t seed, uint64_t packets) : rng_(seed), packets_(packets), events_(kStart) {
    loss_ = rng_.below(4) == 0 ? 0.0 : rng_.uniform() * 0.4;
    duplicate_ = rng_.uniform() * 0.2;
    jitter_ = Duration(static_cast<int64_t>(rng_.below(5'000'000)));
    base_ = Duration(static_cast<int64_t>(1'000 + rng_.below(20'000'000)));
  }

  void run() {
    pump();
    const Time limit = kStart + 1h;
    while (acknowledged_.size() < packets_ || !sender_.idle()) {
      auto action = events_.pop(std::min<Time>(limit, next_timer()));
      if (action) {
        (*action)();
      } else {
        ASSERT_LT(next_timer(), limit) << "the link stands still";
        events_.advance(next_timer());
      }
      pump();
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(fresh_.size(), packets_);
    EXPECT_LE(sender_.window(), kLinkWindow);
  }
  [[nodiscard]] uint64_t retransmitted() const { return sender_.retransmitted(); }
  [[nodiscard]] uint64_t dropped() const { return dropped_; }

 private:
  Time next_timer() const {
    return std::max(events_.now(), std::min(sender_.next_deadline(), receiver_.ack_deadline()));
  }
  // Over the path: lost, once, or twice, each after a time of its own.
  void carry(const std::function<void()>& arrive) {
    if (rng_.chance(loss_)) {
      ++dropped_;
      return;
    }
    for (int copies = rng_.chance(duplicate_) ? 2 : 1; copies > 0; --copies) {
      const Duration extra(
          static_cast<int64_t>(rng_.below(static_cast<uint64_t>(jitter_.count()) + 1)));
      events_.schedule(events_.now() + base_ + extra, arrive);
    }
  }
  void transmit(uint64_t number) {
    carry([this, number] {
      const auto arrival = receiver_.on_packet(events_.now(), number);
      EXPECT_NE(arrival, ReliableReceiver::Arrival::beyond_window);
      EXPECT_EQ(arrival == ReliableReceiver::Arrival::fresh, fresh_.insert(number).second);
    });
  }
  void pump() {
    const Time now = events_.now();
    if (receiver_.ack_deadline() <= now) {
      const LinkAck ack = receiver_.take_ack();
      for (uint64_t n = ack.next < 300 ? 0 : ack.next - 300; n < ack.next + kLinkWindow; ++n) {
        ASSERT_EQ(ack.has(n), fresh_.contains(n)) << n;
      }
      carry([this, ack] {
        std::vector<uint64_t> told;
        ASSERT_TRUE(sender_.on_ack(events_.now(), ack, told));
        for (const uint64_t number : told) {
          ASSERT_TRUE(acknowledged_.insert(number).second) << number << " twice";
          ASSERT_TRUE(fresh_.contains(number)) << number << " never arrived";
        }
      });
    }
    if (sender_.next_deadline() <= now) {
      std::vector<uint64_t> again;
      sender_.take_lost(now, again);
      for (const uint64_t number : again) {
        ASSERT_FALSE(acknowledged_.contains(number)) << number << " goes again for nothing";
        transmit(number);
      }
    }
    while (next_ < packets_ && sender_.may_send()) {
      ASSERT_EQ(sender_.on_send(now), next_);
      transmit(next_++);
    }
    ASSERT_GE(sender_.window(), kWindowMin);
  }

  base::Rng rng_;
  uint64_t packets_;
  double loss_ = 0;
  double duplicate_ = 0;
  Duration jitter_{};
  Duration base_{};
  base::EventQueue<std::function<void()>> events_;
  ReliableSender sender_;
  ReliableReceiver receiver_;
  uint64_t next_ = 0;
  uint64_t dropped_ = 0;
  std::set<uint64_t> fresh_;         // what has arrived
  std::set<uint64_t> acknowledged_;  // what the sender knows of
};

TEST(ReliableLink, BringsEverythingOnceOverAnyPath) {
  uint64_t repeated = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SpoiltPath path(seed, 1 + seed * 7);
    path.run();
    if (HasFatalFailure()) return;
    repeated += path.retransmitted();
  }
  EXPECT_GT(repeated, 1000u);
}

}  // namespace
}  // namespace scant::net
