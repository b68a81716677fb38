// Operations that fail because of a member that is alive and has given up: who is to blame is the
// member that was lost, and nobody waits for those that gave up.
#include <gtest/gtest.h>
#include <optional>

#include "collective/testing/fake_network.h"

namespace scant::collective {
namespace {

using namespace std::chrono_literals;

// Rank 1 receives from rank 2, who does not send. Rank 0 is needed for nothing.
struct Waiting {
  FakeNetwork network;
  std::vector<std::byte> data = std::vector<std::byte>(8);
  std::optional<Result<void>> outcome;

  explicit Waiting(uint64_t seed) : network(seed, 3) {
    Call call;
    call.kind = OpKind::recv;
    call.dtype = DType::u8;
    call.root = 2;
    call.outputs = {data};
    call.timeout = 1h;
    network.engine(1).submit(network.now(), std::move(call),
                             [this](const Result<void>& result, Rank) { outcome = result; });
    network.settle();
  }

  // Rank 2 fails an operation of its own because of rank 0.
  void let_2_fail_by_0() {
    network.kill(0);
    network.settle();
    Call call;
    call.kind = OpKind::barrier;
    network.engine(2).submit(network.now(), std::move(call), [](const Result<void>&, Rank) {});
    network.settle();
  }
};

TEST(Blame, WhoeverLeavesAfterALossIsNotTheCulprit) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Waiting waiting(seed);
    waiting.let_2_fail_by_0();
    ASSERT_FALSE(waiting.outcome.has_value()) << "it needs rank 2 alone, who is there";
    waiting.network.leave(2);
    waiting.network.settle();
    ASSERT_TRUE(waiting.outcome.has_value() && !waiting.outcome->ok());
    EXPECT_EQ(waiting.outcome->error().code, ErrorCode::peer_lost) << "seed " << seed;
    EXPECT_EQ(waiting.outcome->error().peer, 0) << "seed " << seed;
  }
}

TEST(Blame, WhoeverLeavesWithoutALossIsTheCulprit) {
  Waiting waiting(1);
  waiting.network.leave(2);
  waiting.network.settle();
  ASSERT_TRUE(waiting.outcome.has_value() && !waiting.outcome->ok());
  EXPECT_EQ(waiting.outcome->error().code, ErrorCode::closed);
  EXPECT_EQ(waiting.outcome->error().peer, 2);
}

TEST(Blame, NobodyWaitsForAMemberThatFormsANewEpoch) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Waiting waiting(seed);
    waiting.let_2_fail_by_0();
    int agreed = 0;
    const auto shrink = [&](Rank rank) {
      waiting.network.engine(rank).begin_shrink(
          waiting.network.now(), waiting.network.now() + 20s,
          [&](const Result<std::vector<Rank>>& survivors) { agreed += survivors.ok(); });
    };
    shrink(2);
    waiting.network.settle();
    ASSERT_TRUE(waiting.outcome.has_value() && !waiting.outcome->ok()) << "seed " << seed;
    EXPECT_EQ(waiting.outcome->error().code, ErrorCode::peer_lost);
    EXPECT_EQ(waiting.outcome->error().peer, 0);
    shrink(1);
    waiting.network.settle();
    EXPECT_EQ(agreed, 2);
  }
}

// Rank 1 has not heard of any loss; the proposal itself names who is missing in it.
TEST(Blame, AProposalNamesTheLost) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Waiting waiting(seed);
    waiting.network.kill(0);
    waiting.network.settle();
    waiting.network.engine(2).begin_shrink(waiting.network.now(), waiting.network.now() + 20s,
                                           [](const Result<std::vector<Rank>>&) {});
    waiting.network.settle();
    ASSERT_TRUE(waiting.outcome.has_value() && !waiting.outcome->ok()) << "seed " << seed;
    EXPECT_EQ(waiting.outcome->error().code, ErrorCode::peer_lost);
    EXPECT_EQ(waiting.outcome->error().peer, 0);
  }
}

}  // namespace
}  // namespace scant::collective
