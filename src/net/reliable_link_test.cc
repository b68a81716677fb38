// The reliable link as arithmetic: what is lost, when, and how much may be under way. Times are
// written by the tests.
#include "net/reliable_link.h"

#include <functional>
#include <gtest/gtest.h>
#include <set>
#include <string>

#include "base/event_queue.h"
#include "base/rng.h"

namespace scant::net {
namespace {

using namespace std::chrono_literals;

constexpr Time kStart{1h};
constexpr uint64_t kWindowFirst = 16;
constexpr uint64_t kWindowMin = 4;
constexpr LinkOptions kDefault{};

// An ack of everything before `next` and of these packets beyond it.
LinkAck ack_of(uint64_t next, const std::vector<uint64_t>& beyond = {}) {
  LinkAck ack{.next = next};
  for (const uint64_t number : beyond) {
    const uint64_t bit = number - next - 1;
    ack.beyond[bit / 64] |= uint64_t{1} << (bit % 64);
  }
  return ack;
}

std::vector<uint64_t> numbers(uint64_t first, uint64_t end) {
  std::vector<uint64_t> all;
  for (uint64_t n = first; n < end; ++n) all.push_back(n);
  return all;
}

// A sender and what it says.
struct Sending {
  ReliableSender sender;
  void send(uint64_t count, Time at = kStart) {
    for (uint64_t i = 0; i < count; ++i) sender.on_send(at);
  }
  // The packets acknowledged for the first time; none may be doubtful.
  std::vector<uint64_t> ack(const LinkAck& of, Time at = kStart) {
    std::vector<uint64_t> fresh;
    EXPECT_TRUE(sender.on_ack(at, of, fresh));
    return fresh;
  }
  std::vector<uint64_t> lost(Time at = kStart) {
    std::vector<uint64_t> found;
    sender.take_lost(at, found);
    return found;
  }
};

using Numbers = std::vector<uint64_t>;

TEST(LinkAck, TellsWhatItHas) {
  const LinkAck ack = ack_of(10, {11, 12, 74, 75, 266});
  for (uint64_t n = 0; n < 400; ++n) {
    EXPECT_EQ(ack.has(n), n < 10 || n == 11 || n == 12 || n == 74 || n == 75 || n == 266) << n;
  }
}

TEST(ReliableSender, NumbersPacketsUntilItsWindowIsFull) {
  Sending to;
  EXPECT_TRUE(to.sender.idle());
  EXPECT_EQ(to.sender.next_deadline(), kNever);
  for (uint64_t n = 0; n < kWindowFirst; ++n) {
    EXPECT_TRUE(to.sender.may_send());
    EXPECT_EQ(to.sender.on_send(kStart), n);
  }
  EXPECT_FALSE(to.sender.may_send());
  EXPECT_FALSE(to.sender.idle());
}

TEST(ReliableSender, EachPacketIsAcknowledgedOnce) {
  Sending to;
  to.send(6);
  EXPECT_EQ(to.ack(ack_of(2)), (Numbers{0, 1}));
  EXPECT_EQ(to.ack(ack_of(2)), Numbers{});
  EXPECT_EQ(to.ack(ack_of(2, {4})), (Numbers{4}));
  EXPECT_EQ(to.ack(ack_of(5)), (Numbers{2, 3}));
  EXPECT_EQ(to.ack(ack_of(6)), (Numbers{5}));
  EXPECT_TRUE(to.sender.idle());
  EXPECT_EQ(to.sender.next_deadline(), kNever);
}

TEST(ReliableSender, AnAckThatWasOvertakenTellsNothingNew) {
  Sending to;
  to.send(8);
  EXPECT_EQ(to.ack(ack_of(8)).size(), 8u);
  EXPECT_EQ(to.ack(ack_of(3, {5})), Numbers{});
  EXPECT_TRUE(to.sender.idle());
  to.send(1);
  EXPECT_EQ(to.ack(ack_of(4)), Numbers{});
  EXPECT_FALSE(to.sender.idle());
}

TEST(ReliableSender, AnAckOfWhatWasNeverSentIsRefusedAndChangesNothing) {
  Sending to;
  to.send(4);
  for (const LinkAck& untrue :
       {ack_of(5), ack_of(UINT64_MAX), ack_of(2, {4}), ack_of(4, {5}), ack_of(0, {1, 256})}) {
    std::vector<uint64_t> fresh;
    EXPECT_FALSE(to.sender.on_ack(kStart, untrue, fresh));
    EXPECT_TRUE(fresh.empty());
    EXPECT_EQ(to.sender.window(), kWindowFirst);
  }
  EXPECT_EQ(to.ack(ack_of(4)), numbers(0, 4));
}

TEST(ReliableSender, TwoThatOvertakeAreReorderingThreeAreLoss) {
  Sending to;
  to.send(5);
  to.ack(ack_of(0, {1, 2}));
  EXPECT_GT(to.sender.next_deadline(), kStart);
  EXPECT_EQ(to.lost(), Numbers{});
  to.ack(ack_of(0, {1, 2, 3}));
  EXPECT_EQ(to.sender.next_deadline(), Time::min());  // at once
  EXPECT_EQ(to.lost(), (Numbers{0}));
  EXPECT_EQ(to.sender.retransmitted(), 1u);
}

TEST(ReliableSender, ARepetitionIsLostOnlyWhenThreeLaterOnesArrive) {
  Sending to;
  to.send(8);
  to.ack(ack_of(0, {1, 2, 3}));
  ASSERT_EQ(to.lost(), (Numbers{0}));
  to.ack(ack_of(0, {1, 2, 3, 4, 5, 6, 7}));  // all sent before the repetition
  EXPECT_EQ(to.lost(), Numbers{});
  to.send(2);
  to.ack(ack_of(0, {1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_EQ(to.lost(), Numbers{});
  to.send(1);
  to.ack(ack_of(0, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}));
  EXPECT_EQ(to.lost(), (Numbers{0}));
  EXPECT_EQ(to.sender.retransmitted(), 2u);
}

TEST(ReliableSender, ALateAckOfALostPacketSavesTheRepetition) {
  Sending to;
  to.send(kWindowFirst);
  to.ack(ack_of(0, {4}));  // 0 and 1 are lost; the window falls to 8.5, 13 are under way
  EXPECT_EQ(to.lost(), Numbers{});
  EXPECT_EQ(to.ack(ack_of(1, {4})), (Numbers{0}));
  to.ack(ack_of(1, {4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(to.lost(), (Numbers{1, 2, 3}));  // and not 0
}

TEST(ReliableSender, SilenceIsLossAfterTheFirstTimeout) {
  Sending to;
  to.send(3);
  const Time due = kStart + kDefault.timeout_first;
  EXPECT_EQ(to.sender.next_deadline(), due);
  EXPECT_EQ(to.lost(due - 1ns), Numbers{});
  EXPECT_EQ(to.lost(due), (Numbers{0, 1, 2}));
}

TEST(ReliableSender, AStaleTimerFindsNothing) {
  Sending to;
  to.send(3);
  const Time due = to.sender.next_deadline();
  to.ack(ack_of(3), kStart + 1ms);
  EXPECT_EQ(to.lost(due), Numbers{});
  EXPECT_EQ(to.sender.window(), kWindowFirst + 3);  // and nothing was taken for a loss
  to.send(1, due);
  EXPECT_EQ(to.lost(due), Numbers{});
  EXPECT_GT(to.sender.next_deadline(), due);
}

TEST(ReliableSender, TimeoutsDoubleUpToTheirLimitAndAnAckEndsThat) {
  Sending to;
  to.send(1);
  Time at = kStart;
  Duration wait = kDefault.timeout_first;
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(to.sender.next_deadline(), at + std::min(wait, kDefault.timeout_max)) << i;
    at = to.sender.next_deadline();
    EXPECT_EQ(to.lost(at), (Numbers{0}));
    wait = std::min(2 * wait, kDefault.timeout_max);
  }
  EXPECT_EQ(to.ack(ack_of(1), at + 1ms), (Numbers{0}));
  to.send(1, at + 1ms);
  // A repeated packet tells no round trip: one cannot know which of them arrived.
  EXPECT_EQ(to.sender.next_deadline(), at + 1ms + kDefault.timeout_first);
}

TEST(ReliableSender, OneTimeoutOfManyPacketsDoublesOnce) {
  Sending to;
  to.send(8);
  const Time at = to.sender.next_deadline();
  EXPECT_EQ(to.lost(at), (Numbers{0, 1, 2, 3}));  // as many as the smallest window
  to.ack(ack_of(4), at + 1ms);
  EXPECT_EQ(to.lost(at + 1ms), (Numbers{4, 5, 6, 7}));
  EXPECT_EQ(to.sender.next_deadline(), at + 1ms + kDefault.timeout_first);  // the ack ended it
}

// RFC 6298: the first sample s gives s + 4 * s / 2, later ones move the mean by 1/8, the spread by
// 1/4; the receiver's delay comes on top.
TEST(ReliableSender, TheTimeoutFollowsTheMeasuredRoundTrip) {
  Sending to;
  to.send(1);
  to.ack(ack_of(1), kStart + 8ms);
  to.send(1, kStart + 10ms);
  EXPECT_EQ(to.sender.next_deadline(), kStart + 10ms + 8ms + 16ms + kDefault.ack_delay);
  to.ack(ack_of(2), kStart + 26ms);  // 16 ms: spread (3 * 4 + 8) / 4, mean (7 * 8 + 16) / 8
  to.send(1, kStart + 30ms);
  EXPECT_EQ(to.sender.next_deadline(), kStart + 30ms + 9ms + 20ms + kDefault.ack_delay);
}

TEST(ReliableSender, TheTimeoutStaysWithinItsBounds) {
  Sending fast;
  fast.send(1);
  fast.ack(ack_of(1), kStart + 10us);
  fast.send(1);
  EXPECT_EQ(fast.sender.next_deadline(), kStart + kDefault.timeout_min);
  Sending slow;
  slow.send(1);
  slow.ack(ack_of(1), kStart + 10s);
  slow.send(1);
  EXPECT_EQ(slow.sender.next_deadline(), kStart + kDefault.timeout_max);
}

TEST(ReliableSender, TheWindowGrowsByEveryAckAndNeverBeyondWhatAnAckDescribes) {
  Sending to;
  uint64_t sent = 0;
  for (int round = 0; round < 8; ++round) {
    const double before = to.sender.window();
    uint64_t fresh = 0;
    for (; to.sender.may_send(); ++fresh) to.send(1);
    EXPECT_EQ(fresh, static_cast<uint64_t>(before));
    sent += fresh;
    to.ack(ack_of(sent));
    EXPECT_EQ(to.sender.window(), std::min<double>(before * 2, kLinkWindow));
  }
  EXPECT_EQ(to.sender.window(), kLinkWindow);
}

TEST(ReliableSender, ALossHalvesTheWindowOnceForOneRoundTrip) {
  Sending to;
  to.send(kWindowFirst);
  to.ack(ack_of(0, {1, 2, 3}));     // window 19
  EXPECT_EQ(to.lost().size(), 0u);  // 12 under way, window 9.5
  EXPECT_EQ(to.sender.window(), 9.5);
  to.ack(ack_of(0, {1, 2, 3, 5, 6, 7, 8}));  // 4 of the same flight is lost too
  const double window = to.sender.window();
  static_cast<void>(to.lost());
  EXPECT_EQ(to.sender.window(), window);
  // What was sent after the reduction belongs to the next one.
  const uint64_t later = to.sender.on_send(kStart);
  EXPECT_EQ(later, kWindowFirst);
  to.ack(ack_of(16), kStart + 1ms);
  to.send(4, kStart + 1ms);
  const double grown = to.sender.window();
  to.ack(ack_of(16, {17, 18, 19}), kStart + 2ms);
  const double before_loss = to.sender.window();
  EXPECT_GT(before_loss, grown);
  EXPECT_EQ(to.lost(kStart + 2ms), (Numbers{16}));
  EXPECT_EQ(to.sender.window(), before_loss / 2);
}

TEST(ReliableSender, AfterALossTheWindowGrowsByOneForARoundTrip) {
  Sending to;
  to.send(4);
  to.ack(ack_of(0, {1, 2, 3}));  // window 19
  ASSERT_EQ(to.lost(), (Numbers{0}));
  ASSERT_EQ(to.sender.window(), 9.5);
  to.ack(ack_of(4));
  EXPECT_EQ(to.sender.window(), 9.5 + 1 / 9.5);
  const double before = to.sender.window();
  to.send(9);
  to.ack(ack_of(13));
  EXPECT_EQ(to.sender.window(), before + 9 / before);
}

TEST(ReliableSender, SilenceLeavesTheSmallestWindowAndItNeverGetsSmaller) {
  Sending to;
  to.send(kWindowFirst);
  Time at = kStart;
  for (int i = 0; i < 5; ++i) {
    at = to.sender.next_deadline() == Time::min() ? at : to.sender.next_deadline();
    EXPECT_LE(to.lost(at).size(), kWindowMin);
    EXPECT_EQ(to.sender.window(), kWindowMin);
  }
  EXPECT_FALSE(to.sender.may_send());
}

TEST(ReliableSender, LostPacketsWaitForRoomAndGoFirst) {
  Sending to;
  to.send(kWindowFirst);
  const Time at = to.sender.next_deadline();
  EXPECT_EQ(to.lost(at), numbers(0, 4));
  EXPECT_EQ(to.lost(at), Numbers{});  // no room
  EXPECT_GT(to.sender.next_deadline(), at);
  EXPECT_FALSE(to.sender.may_send());
  to.ack(ack_of(4), at + 1ms);  // window 8, nothing under way
  EXPECT_EQ(to.sender.next_deadline(), Time::min());
  EXPECT_EQ(to.lost(at + 1ms), numbers(4, 12));
}

// Numbers never wrap in the life of a link; their places in the ring do, and the ring grows while
// packets in it are unacknowledged.
TEST(ReliableSender, ThePlacesOfPacketsAreUsedAgainAndAgain) {
  Sending to;
  base::Rng rng(7);
  uint64_t acknowledged = 0;
  uint64_t sent = 0;
  Time at = kStart;
  while (sent < 20'000) {
    for (uint64_t burst = rng.below(40); burst > 0 && to.sender.may_send(); --burst, ++sent) {
      ASSERT_EQ(to.sender.on_send(at), sent);
    }
    at += 100us;
    const uint64_t next = acknowledged + rng.below(sent - acknowledged + 1);
    ASSERT_EQ(to.ack(ack_of(next), at), numbers(acknowledged, next));
    acknowledged = next;
    ASSERT_EQ(to.sender.idle(), acknowledged == sent);
    ASSERT_EQ(to.lost(at), Numbers{});
    if (sent - acknowledged > 0) acknowledged += to.ack(ack_of(sent), at).size();
  }
}

TEST(ReliableSenderDeathTest, CannotSendMoreThanAnAckDescribes) {
  Sending to;
  to.send(kLinkWindow);
  EXPECT_DEATH(to.send(1), "window is full");
}

TEST(ReliableReceiver, AcknowledgesEverySecondPacketOrAfterItsDelay) {
  ReliableReceiver from;
  EXPECT_EQ(from.ack_deadline(), kNever);
  EXPECT_EQ(from.on_packet(kStart, 0), ReliableReceiver::Arrival::fresh);
  EXPECT_EQ(from.ack_deadline(), kStart + kDefault.ack_delay);
  EXPECT_EQ(from.on_packet(kStart + 1us, 1), ReliableReceiver::Arrival::fresh);
  EXPECT_EQ(from.ack_deadline(), kStart + 1us);
  EXPECT_EQ(from.take_ack().next, 2u);
  EXPECT_EQ(from.ack_deadline(), kNever);
}

TEST(ReliableReceiver, AGapAndARepetitionAreToldAtOnce) {
  ReliableReceiver from;
  EXPECT_EQ(from.on_packet(kStart, 1), ReliableReceiver::Arrival::fresh);
  EXPECT_EQ(from.ack_deadline(), kStart);
  LinkAck ack = from.take_ack();
  EXPECT_EQ(ack.next, 0u);
  EXPECT_TRUE(ack.has(1));
  EXPECT_EQ(from.on_packet(kStart + 1ms, 1), ReliableReceiver::Arrival::duplicate);
  EXPECT_EQ(from.ack_deadline(), kStart + 1ms);
  static_cast<void>(from.take_ack());
  EXPECT_EQ(from.on_packet(kStart + 2ms, 0), ReliableReceiver::Arrival::fresh);
  EXPECT_EQ(from.take_ack().next, 2u);
  EXPECT_EQ(from.on_packet(kStart + 3ms, 0), ReliableReceiver::Arrival::duplicate);
  EXPECT_EQ(from.ack_deadline(), kStart + 3ms);
}

TEST(ReliableReceiver, AnAckStaysOwedUntilItIsTaken) {
  ReliableReceiver from;
  from.on_packet(kStart, 0);
  const Time first = from.ack_deadline();
  from.on_packet(kStart + 1h, 2);  // a late timer does not move it back
  EXPECT_LE(from.ack_deadline(), kStart + 1h);
  EXPECT_GE(from.ack_deadline(), first);
}

TEST(ReliableReceiver, TakesNothingBeyondWhatAnAckDescribes) {
  ReliableReceiver from;
  EXPECT_EQ(from.on_packet(kStart, kLinkWindow + 1), ReliableReceiver::Arrival::beyond_window);
  EXPECT_EQ(from.on_packet(kStart, UINT64_MAX), ReliableReceiver::Arrival::beyond_window);
  EXPECT_EQ(from.ack_deadline(), kNever);
  EXPECT_EQ(from.on_packet(kStart, kLinkWindow), ReliableReceiver::Arrival::fresh);
  EXPECT_TRUE(from.take_ack().has(kLinkWindow));
}

TEST(ReliableReceiver, GapsCloseAcrossTheWordsOfAnAck) {
  for (const uint64_t hole : {uint64_t{0}, uint64_t{1}, uint64_t{63}, uint64_t{64}, uint64_t{65},
                              uint64_t{128}, uint64_t{255}}) {
    ReliableReceiver from;
    for (uint64_t n = kLinkWindow; n-- > 0;) {
      if (n != hole) {
        ASSERT_EQ(from.on_packet(kStart, n), ReliableReceiver::Arrival::fresh) << n;
      }
    }
    const LinkAck before = from.take_ack();
    EXPECT_EQ(before.next, hole);
    for (uint64_t n = 0; n < kLinkWindow; ++n) EXPECT_EQ(before.has(n), n != hole) << n;
    ASSERT_EQ(from.on_packet(kStart, hole), ReliableReceiver::Arrival::fresh);
    const LinkAck after = from.take_ack();
    EXPECT_EQ(after.next, kLinkWindow);
    EXPECT_EQ(after.beyond, (std::array<uint64_t, kAckWords>{}));
  }
}

TEST(ReliableLink, RepeatsNothingOnACleanPath) {
  Sending to;
  ReliableReceiver from;
  Time at = kStart;
  for (uint64_t n = 0; n < 5000; ++n, at += 100us) {
    ASSERT_TRUE(to.sender.may_send());
    from.on_packet(at + 1ms, to.sender.on_send(at));
    if (from.ack_deadline() <= at + 1ms) to.ack(from.take_ack(), at + 2ms);
    ASSERT_EQ(to.lost(at + 2ms), Numbers{}) << n;
  }
  EXPECT_EQ(to.sender.retransmitted(), 0u);
}

}  // namespace
}  // namespace scant::net
