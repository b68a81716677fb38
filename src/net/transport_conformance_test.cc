// The contract of transport.h, tested on every implementation. A failing simulated case prints its
// seed; SCANT_SEED replays it.
#include <array>
#include <cstdlib>
#include <gtest/gtest.h>
#include <thread>

#include "net/net_counters.h"
#include "net/testing/conformance_world.h"

namespace scant::net {
namespace {

using namespace std::chrono_literals;

uint64_t seed_of_run() {
  const char* given = std::getenv("SCANT_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : 20261121;
}

std::vector<WorldKind> kinds() {
  LinkModel bad;
  bad.rate_bytes_per_second = 125'000'000;
  bad.latency = 200us;
  bad.jitter = 300us;
  bad.loss = 0.05;
  bad.duplicate = 0.03;
  bad.corrupt = 0.02;
  bad.reorder = 0.1;
  LinkModel slow;
  slow.rate_bytes_per_second = 12'500'000;
  slow.latency = 2ms;
  slow.queue_max = 50ms;
  using Base = WorldKind::Base;
  return {{"tcp4", Base::tcp4},
          {"tcp6", Base::tcp6},
          {"tcp4_3_lanes", Base::tcp4, 3},
          {"unix", Base::unix_socket},
          {"unix_2_lanes", Base::unix_socket, 2},
          {"simulated", Base::simulated},
          {"simulated_slow", Base::simulated, 1, slow, false, true},
          {"simulated_lossy", Base::simulated, 1, bad, false, false},
          {"simulated_lossy_heartbeats", Base::simulated, 1, bad, true, true}};
}

class TransportConformance : public testing::TestWithParam<WorldKind> {
 protected:
  void SetUp() override {
    if (GetParam().base == WorldKind::Base::simulated) {
      std::printf("seed=%llu\n", static_cast<unsigned long long>(seed_of_run()));
    }
  }
  [[nodiscard]] std::unique_ptr<World> make_world(int size) const {
    auto world = std::make_unique<World>(GetParam(), size, seed_of_run());
    EXPECT_EQ(world->problems(), "");
    return world;
  }
};

constexpr std::array<size_t, 12> kSizes = {
    0, 1, 2, 71, 4093, 8072, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20, 100'003};

TEST_P(TransportConformance, EveryFrameArrivesOnceAndIntact) {
  auto world = make_world(3);
  const size_t rounds = 3;
  uint32_t index = 0;
  for (size_t i = 0; i < rounds * kSizes.size(); ++i, ++index) {
    for (Rank from = 0; from < 3; ++from) {
      for (Rank to = 0; to < 3; ++to) {
        if (from == to) continue;
        ASSERT_TRUE(world->run_until([&] { return world->transport(from).can_send(to); }));
        const uint64_t token = 1 + index * 9 + static_cast<uint64_t>(from * 3 + to);
        world->send(from, to, index, kSizes[i % kSizes.size()], token);
      }
    }
  }
  const auto complete = [&] {
    for (Rank r = 0; r < 3; ++r) {
      if (world->sink(r).tokens.size() != 2 * index) return false;
      for (Rank from = 0; from < 3; ++from) {
        if (from != r && world->sink(r).frames[from].size() != index) return false;
      }
    }
    return true;
  };
  EXPECT_TRUE(world->run_until(complete));
  EXPECT_EQ(world->problems(), "");
  for (Rank r = 0; r < 3; ++r) EXPECT_TRUE(world->sink(r).down.empty());
}

TEST_P(TransportConformance, ManySmallFramesBothWays) {
  auto world = make_world(2);
  const uint32_t count = 4000;
  for (uint32_t i = 0; i < count; ++i) {
    for (Rank from = 0; from < 2; ++from) {
      ASSERT_TRUE(world->run_until([&] { return world->transport(from).can_send(1 - from); }));
      world->send(from, 1 - from, i, i % 97);
    }
  }
  EXPECT_TRUE(world->run_until([&] {
    return world->sink(0).frames[1].size() == count && world->sink(1).frames[0].size() == count;
  }));
  EXPECT_EQ(world->problems(), "");
}

// Both send as fast as they can: nobody may wait for the other to read first.
TEST_P(TransportConformance, FloodBothWaysDoesNotDeadlock) {
  auto world = make_world(2);
  const uint32_t count = 24;
  std::array<uint32_t, 2> next{};
  const auto flood = [&] {
    for (Rank from = 0; from < 2; ++from) {
      auto& at = next[static_cast<size_t>(from)];
      while (at < count && world->transport(from).can_send(1 - from)) {
        world->send(from, 1 - from, at++, 1 << 20);
      }
    }
    return world->sink(0).frames[1].size() == count && world->sink(1).frames[0].size() == count;
  };
  EXPECT_TRUE(world->run_until(flood));
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, ReceiverThatDoesNotReadStopsTheSender) {
  auto world = make_world(2);
  world->hold(1, true);
  uint32_t sent = 0;
  int refused = 0;
  // Far more than socket buffers and the queue together take.
  while (sent < 64 && refused < 1000) {
    if (world->transport(0).can_send(1)) {
      ++sent;
      world->send(0, 1, sent, 1 << 20, sent);
      refused = 0;
    } else {
      ++refused;
    }
    world->poll_only(0);
  }
  EXPECT_LT(sent, 64U);
  EXPECT_GT(sent, 0U);
  world->hold(1, false);
  EXPECT_TRUE(world->run_until([&] { return world->sink(1).frames[0].size() == sent; }));
  EXPECT_TRUE(world->run_until([&] { return world->sink(0).tokens.size() == sent; }));
  EXPECT_TRUE(world->transport(0).can_send(1));
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, DiscardedPayloadsAreSkipped) {
  auto world = make_world(2);
  world->sink(1).discards = [](const FrameHeader& header) { return header.operation % 2 == 1; };
  for (uint32_t i = 0; i < 40; ++i) {
    ASSERT_TRUE(world->run_until([&] { return world->transport(0).can_send(1); }));
    world->send(0, 1, i, 1 + kSizes[i % kSizes.size()] % 100'000, 1 + i);
  }
  EXPECT_TRUE(world->run_until(
      [&] { return world->sink(0).tokens.size() == 40 && world->sink(1).frames[0].size() == 20; }));
  for (const uint32_t index : world->sink(1).frames[0]) EXPECT_EQ(index % 2, 0U);
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, KilledPeerIsReportedOnceAfterWhatArrived) {
  auto world = make_world(3);
  const uint32_t count = 30;
  for (uint32_t i = 0; i < count; ++i) world->send(1, 0, i, 1000 + i, 1 + i);
  ASSERT_TRUE(world->run_until([&] { return world->sink(1).tokens.size() == count; }));
  world->kill(1);
  const auto told = [&] {
    return world->sink(0).down.contains(1) && world->sink(2).down.contains(1);
  };
  if (world->simulated()) world->pass(world->peer_timeout() + 300ms);
  ASSERT_TRUE(world->run_until(told));
  const Error& error = world->sink(0).down.at(1);
  EXPECT_EQ(error.code, ErrorCode::peer_lost);
  EXPECT_EQ(error.peer, 1);
  EXPECT_NE(error.message.find("rank 1 (host "), std::string::npos) << error.message;
  EXPECT_NE(error.message.find("last heard"), std::string::npos) << error.message;
  // A lossy network may have lost what nobody sends again; sockets hold what was written.
  if (!world->simulated()) {
    EXPECT_EQ(world->sink(0).frames[1].size(), count);
  }
  // Frames to the dead are dropped and their memory comes back.
  world->send(0, 1, 99, 5000, 4711);
  EXPECT_TRUE(world->run_until([&] { return world->sink(0).tokens.contains(4711); }));
  world->send(0, 2, 1, 5000);
  EXPECT_TRUE(world->run_until([&] { return world->sink(2).frames[0].contains(1); }));
  EXPECT_EQ(world->sink(0).down.size(), 1U);
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, FramesToAKilledPeerGiveTheirMemoryBack) {
  auto world = make_world(2);
  for (uint32_t i = 0; i < 8; ++i) world->send(0, 1, i, 1 << 20, 1 + i);
  world->poll_only(0);
  world->kill(1);
  if (world->simulated()) world->pass(world->peer_timeout() + 300ms);
  ASSERT_TRUE(world->run_until([&] { return world->sink(0).down.contains(1); }));
  EXPECT_TRUE(world->run_until([&] { return world->sink(0).tokens.size() == 8; }));
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, GoodbyeIsNoLossAndLosesNothing) {
  auto world = make_world(3);
  const uint32_t count = 12;
  for (uint32_t i = 0; i < count; ++i) world->send(1, 0, i, 100'000, 1 + i);
  // The other direction is busy too: unread bytes must not destroy what is under way.
  for (uint32_t i = 0; i < 3; ++i) world->send(0, 1, i, 300'000);
  world->close(1, 30s);
  ASSERT_TRUE(world->run_until(
      [&] { return world->sink(0).down.contains(1) && world->sink(2).down.contains(1); }));
  EXPECT_EQ(world->sink(0).frames[1].size(), count);
  EXPECT_EQ(world->sink(0).down.at(1).code, ErrorCode::closed);
  EXPECT_EQ(world->sink(2).down.at(1).code, ErrorCode::closed);
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, EveryoneMayLeaveAtOnce) {
  auto world = make_world(4);
  for (Rank r = 0; r < 4; ++r) world->send(r, (r + 1) % 4, 0, 10'000);
  for (Rank r = 0; r < 4; ++r) world->close(r, 30s);
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, SilentPeerIsLostWithinTheTimeout) {
  auto world = make_world(3);
  world->send(1, 0, 0, 10);
  ASSERT_TRUE(world->run_until([&] { return world->sink(0).frames[1].size() == 1; }));
  world->pass(2 * world->peer_timeout());  // heartbeats keep idle peers alive
  for (Rank r = 0; r < 3; ++r) ASSERT_TRUE(world->sink(r).down.empty()) << r;
  world->hold(1, true);
  world->pass(world->peer_timeout() / 2);
  EXPECT_TRUE(world->sink(0).down.empty());
  world->pass(world->peer_timeout() / 2 + world->peer_timeout() / 5);
  for (const Rank r : {0, 2}) {
    ASSERT_TRUE(world->sink(r).down.contains(1)) << "rank " << r << " noticed nothing";
    EXPECT_EQ(world->sink(r).down.at(1).code, ErrorCode::peer_lost);
    EXPECT_EQ(world->sink(r).down.size(), 1U);
  }
  // The stopped rank goes on and finds that the others gave it up.
  world->hold(1, false);
  EXPECT_TRUE(world->run_until([&] { return world->sink(1).down.size() == 2; }));
  EXPECT_EQ(world->problems(), "");
}

// Everybody stops for long (a suspended machine): what is unread is read before anyone is judged.
TEST_P(TransportConformance, OwnSilenceIsNotBlamedOnPeers) {
  auto world = make_world(2);
  world->send(0, 1, 0, 10);
  world->send(1, 0, 0, 10);
  ASSERT_TRUE(world->run_until([&] {
    return world->sink(0).frames[1].size() == 1 && world->sink(1).frames[0].size() == 1;
  }));
  world->hold(0, true);
  world->hold(1, true);
  world->pass(3 * world->peer_timeout());
  world->hold(0, false);
  world->hold(1, false);
  world->pass(world->peer_timeout());
  EXPECT_TRUE(world->sink(0).down.empty());
  EXPECT_TRUE(world->sink(1).down.empty());
  world->send(0, 1, 1, 10);
  EXPECT_TRUE(world->run_until([&] { return world->sink(1).frames[0].size() == 2; }));
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, ForgottenPeerIsNotReported) {
  auto world = make_world(3);
  for (uint32_t i = 0; i < 4; ++i) world->send(0, 1, i, 1 << 20, 1 + i);
  world->transport(0).forget(1);
  world->transport(0).forget(1);  // twice is once
  if (world->simulated()) world->pass(2 * world->peer_timeout());
  ASSERT_TRUE(world->run_until([&] { return world->sink(1).down.contains(0); }));
  EXPECT_EQ(world->sink(1).down.at(0).code, ErrorCode::peer_lost);
  world->send(0, 1, 9, 10, 9);
  EXPECT_TRUE(world->run_until([&] { return world->sink(0).tokens.size() == 5; }));
  world->send(0, 2, 0, 10);
  world->send(2, 0, 0, 10);
  EXPECT_TRUE(world->run_until([&] {
    return world->sink(2).frames[0].size() == 1 && world->sink(0).frames[2].size() == 1;
  }));
  EXPECT_TRUE(world->sink(0).down.empty());
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, SendingFromTheSinkWorks) {
  auto world = make_world(2);
  for (Rank r = 0; r < 2; ++r) {
    world->sink(r).also = [&world, r](Rank peer, const FrameHeader& header) {
      if (header.operation < 400) world->send(r, peer, header.operation + 1, 200);
    };
  }
  world->send(0, 1, 0, 200);
  EXPECT_TRUE(world->run_until([&] { return world->sink(1).frames[0].contains(400); }));
  EXPECT_EQ(world->problems(), "");
}

TEST_P(TransportConformance, WakeFromAnotherThreadEndsThePoll) {
  auto world = make_world(2);
  if (world->simulated()) {
    world->pass(1ms);
    while (!world->network().take_runnable().empty()) {
    }
    std::thread([&] { world->transport(1).wake(); }).join();
    ASSERT_TRUE(world->network().advance(world->network().now()));
    EXPECT_EQ(world->network().take_runnable(), std::vector<Rank>{1});
    return;
  }
  for (int i = 0; i < 200; ++i) {
    std::thread waker([&] { world->transport(0).wake(); });
    // The test's clock stands still: only the wake ends this.
    world->transport(0).poll(world->transport(0).now() + 1h, world->sink(0));
    waker.join();
  }
}

uint64_t bytes(Direction direction, std::initializer_list<Content> contents) {
  uint64_t sum = 0;
  for (const auto kind :
       {PathKind::tcp, PathKind::unix_socket, PathKind::shared_memory, PathKind::simulated}) {
    for (const auto content : contents) sum += bytes_counter(direction, kind, content).value();
  }
  return sum;
}

TEST_P(TransportConformance, CountersEqualTheBytes) {
  auto world = make_world(2);
  const auto everything = {Content::frames, Content::keep_alive, Content::repair};
  const uint64_t all_before = bytes(Direction::sent, everything);
  const uint64_t sent_before = bytes(Direction::sent, {Content::frames});
  const uint64_t received_before = bytes(Direction::received, {Content::frames});
  const uint64_t link_before = world->simulated() ? world->network().statistics().bytes : 0;
  const auto& shared = bytes_counter(Direction::received, PathKind::shared_memory, Content::frames);
  const uint64_t shared_before = shared.value();
  uint64_t formula = 0;
  for (uint32_t i = 0; i < 50; ++i) {
    ASSERT_TRUE(world->run_until([&] { return world->transport(0).can_send(1); }));
    world->send(0, 1, i, i * 1000);
    formula += kFrameHeaderBytes + i * 1000;
  }
  ASSERT_TRUE(world->run_until([&] { return world->sink(1).frames[0].size() == 50; }));
  if (world->simulated()) {
    // Datagram heads and repairs come on top; every byte on the links is in some counter.
    EXPECT_EQ(bytes(Direction::sent, everything) - all_before,
              world->network().statistics().bytes - link_before);
    EXPECT_GT(bytes(Direction::sent, {Content::frames}) - sent_before, formula);
    return;
  }
  EXPECT_EQ(bytes(Direction::received, {Content::frames}) - received_before, formula);
  EXPECT_EQ(bytes(Direction::sent, {Content::frames}) - sent_before, formula);
  EXPECT_EQ(shared.value() > shared_before, GetParam().base == WorldKind::Base::unix_socket);
}

INSTANTIATE_TEST_SUITE_P(All, TransportConformance, testing::ValuesIn(kinds()),
                         [](const auto& each) { return std::string(each.param.name); });

}  // namespace
}  // namespace scant::net
