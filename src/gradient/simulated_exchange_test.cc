// Which pieces of bounded messages a simulated exchange gives up at a deadline: arithmetic on
// values that all members know, and what both ends are told of it.
#include "gradient/simulated_exchange.h"

#include <gtest/gtest.h>

#include "net/simulated/simulated_network.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kPieceBytes = 100;
constexpr uint32_t kPieces = 10;
// A piece takes 100 us.
constexpr LossModel kSlow{.latency = 2ms, .rate_bytes_per_second = 1'000'000};

std::vector<Operation::Piece> ten_pieces() {
  std::vector<Operation::Piece> pieces;
  for (uint32_t i = 0; i < kPieces; ++i) {
    pieces.push_back({i, {i * 64U, 64}, i * kPieceBytes, kPieceBytes});
  }
  return pieces;
}

std::vector<size_t> lost(const LossModel& model, Duration deadline, double share) {
  const Operation operation{.pieces = {{}, ten_pieces()},
                            .delivery = {.exact = false, .share = share, .deadline = deadline}};
  return lost_pieces(model, operation, 0, 1);
}

using Pieces = std::vector<size_t>;

TEST(Deadline, WhatTheLinkCannotBringInTimeIsGivenUp) {
  EXPECT_EQ(lost(kSlow, 0ms, 0), Pieces{}) << "no deadline";
  EXPECT_EQ(lost(kSlow, 3ms, 0), Pieces{}) << "the last byte arrives at the deadline";
  EXPECT_EQ(lost(kSlow, 3ms - 1ns, 0), Pieces{9});
  EXPECT_EQ(lost(kSlow, 2700us, 0), (Pieces{7, 8, 9}));
  EXPECT_EQ(lost(kSlow, 2ms, 0).size(), kPieces);
  EXPECT_EQ(lost(kSlow, 1ms, 0).size(), kPieces) << "not even the first byte arrives";
}

TEST(Deadline, TheShareArrivesWheneverItDoes) {
  EXPECT_EQ(lost(kSlow, 1ms, 1), Pieces{});
  for (const double share : {0.05, 0.3, 0.5, 0.95}) {
    const Pieces given_up = lost(kSlow, 1ms, share);
    const auto arrived = static_cast<double>(kPieces - given_up.size());
    EXPECT_GE(arrived, share * kPieces);
    EXPECT_LT(arrived - 1, share * kPieces) << "no more than the share is waited for";
  }
}

TEST(Deadline, LinksWithoutALimitOfRateAreLateByLatencyAlone) {
  constexpr LossModel kFast{.latency = 2ms};
  EXPECT_EQ(lost(kFast, 2ms, 0), Pieces{});
  EXPECT_EQ(lost(kFast, 2ms - 1ns, 0).size(), kPieces);
}

// What is lost by chance takes no time on the link.
TEST(Deadline, LossLeavesTimeForWhatFollows) {
  LossModel model = kSlow;
  model.seed = 7;
  model.chance = 0.4;
  const Pieces by_chance = lost(model, 0ms, 0);
  ASSERT_FALSE(by_chance.empty());
  const auto rest = static_cast<int64_t>(kPieces - by_chance.size());
  EXPECT_EQ(lost(model, 2ms + rest * 100us, 0), by_chance);
  EXPECT_EQ(lost(model, 2ms + rest * 100us - 1ns, 0).size(), by_chance.size() + 1);
}

TEST(Deadline, BothEndsAreToldTheSame) {
  net::SimulatedNetwork network({.size = 2, .link = {}});
  const SimulatedExchangeOptions options{.loss = kSlow};
  SimulatedExchange zero(network, 0, options);
  SimulatedExchange one(network, 1, options);
  SimulatedExchange* const ends[] = {&zero, &one};
  constexpr uint64_t kBytes = kPieces * kPieceBytes;
  std::vector<std::byte> sent(kBytes, std::byte{1});
  std::vector<std::vector<std::byte>> rooms(4, std::vector<std::byte>(kBytes));
  std::vector<uint64_t> received(4);
  std::vector<Outcome> outcomes;
  for (Rank self = 0; self < 2; ++self) {
    const auto at = static_cast<size_t>(self);
    const size_t other = 1 - at;
    Operation swap{.kind = Operation::Kind::swap,
                   .sent = {{}, {}},
                   .room = {rooms[2 * at], rooms[2 * at + 1]},
                   .received = std::span(received).subspan(2 * at, 2),
                   .pieces = {{}, {}},
                   .delivery = {.exact = false, .share = 0.1, .deadline = 2700us}};
    swap.sent[other] = sent;
    swap.pieces[other] = ten_pieces();
    ends[at]->submit(everyone(2, self), std::move(swap),
                     [&](const Outcome& outcome) { outcomes.push_back(outcome); });
  }
  const Time deadline = network.now() + 10s;
  while (outcomes.size() < 2 && network.advance(deadline)) {
    for (const Rank station : network.take_runnable()) ends[station]->pump();
  }
  ASSERT_EQ(outcomes.size(), 2U);
  for (const Outcome& outcome : outcomes) {
    ASSERT_TRUE(outcome.result.ok()) << outcome.result.error().to_string();
    ASSERT_EQ(outcome.missing.size(), 6U) << "three pieces each way";
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(outcome.missing[i].sender, static_cast<Rank>(i / 3));
      EXPECT_EQ(outcome.missing[i].slice, 7 + i % 3);
    }
  }
  EXPECT_EQ(received[1], 7 * kPieceBytes);
  EXPECT_EQ(received[2], 7 * kPieceBytes);
  for (SimulatedExchange* end : ends) end->abandon();
}

}  // namespace
}  // namespace scant::gradient
