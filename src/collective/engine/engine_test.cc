// The engine on a fake network that delivers frames in random order: right results for every
// collective, mismatches, credit, deadlines.
#include "collective/engine/engine.h"

#include <gtest/gtest.h>

#include "collective/testing/exercise_run.h"

namespace scant::collective {
namespace {

using namespace std::chrono_literals;

class RandomOperations : public testing::TestWithParam<int> {};

TEST_P(RandomOperations, EndWithTheRightResultInAnyOrderOfArrival) {
  const int size = GetParam();
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, size, seed % 2 == 0 ? small_segments() : EngineOptions{});
    std::deque<ExerciseRun> runs;
    const uint64_t count = 1 + network.rng().below(40);
    for (uint64_t i = 0; i < count; ++i) {
      runs.emplace_back(network, random_spec(network.rng(), size, 3001), kWorldGroup,
                        everyone(size));
    }
    submit_all(network, runs);
    network.settle();
    expect_all_well(runs);
    expect_clean(network);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, RandomOperations, testing::Range(1, 10));

TEST(Engine, MovesAMillionElements) {
  for (const OpKind kind : {OpKind::all_reduce, OpKind::all_gather, OpKind::broadcast,
                            OpKind::reduce_scatter, OpKind::all_to_all}) {
    FakeNetwork network(5, 3);
    ExerciseSpec spec;
    spec.kind = kind;
    spec.size = 3;
    spec.elements = 1'000'003;
    std::deque<ExerciseRun> runs;
    runs.emplace_back(network, spec, kWorldGroup, everyone(3));
    submit_all(network, runs);
    network.settle();
    expect_all_well(runs);
    expect_clean(network);
  }
}

TEST(Engine, SubgroupsRunBesideTheWorld) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, 5, small_segments());
    const std::vector<Rank> odd = {3, 1};  // the order of members is the group's own
    const std::vector<Rank> rest = {0, 4, 2};
    for (const Rank rank : odd) ASSERT_TRUE(network.engine(rank).add_group(7, odd));
    for (const Rank rank : rest) ASSERT_TRUE(network.engine(rank).add_group(8, rest));
    std::deque<ExerciseRun> runs;
    for (int i = 0; i < 30; ++i) {
      const uint64_t which = network.rng().below(3);
      const std::vector<Rank> members = which == 0 ? odd : which == 1 ? rest : everyone(5);
      const GroupId group = which == 0 ? 7 : which == 1 ? 8 : kWorldGroup;
      runs.emplace_back(network, random_spec(network.rng(), static_cast<int>(members.size()), 2000),
                        group, members);
    }
    submit_all(network, runs);
    network.settle();
    expect_all_well(runs);
    expect_clean(network);
  }
}

TEST(Engine, SmallCollectivesCostNoControlFrames) {
  EngineOptions options;
  options.agree_first = 0;
  FakeNetwork network(1, 4, options);
  std::deque<ExerciseRun> runs;
  for (int i = 0; i < 20; ++i) {
    ExerciseSpec spec;
    spec.size = 4;
    spec.elements = 256;
    runs.emplace_back(network, spec, kWorldGroup, everyone(4));
  }
  submit_all(network, runs);
  network.settle();
  expect_all_well(runs);
  EXPECT_EQ(network.frames(net::FrameType::ready), 0U);
  EXPECT_EQ(network.frames(net::FrameType::request), 0U);
  EXPECT_EQ(network.frames(net::FrameType::credit), 0U);
}

// One rank runs far ahead of another: the window holds it back, requests are answered, nothing is
// lost.
TEST(Engine, AFloodBeyondTheWindowIsBoundedAndEnds) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    FakeNetwork network(seed, 2, small_segments());
    std::deque<ExerciseRun> runs;
    for (int i = 0; i < 200; ++i) {
      ExerciseSpec spec;
      spec.kind = OpKind::broadcast;
      spec.size = 2;
      spec.elements = 200;
      spec.seed = static_cast<uint64_t>(i);
      runs.emplace_back(network, spec, kWorldGroup, everyone(2));
    }
    for (ExerciseRun& run : runs) run.submit(0);
    network.settle();
    EXPECT_LT(network.engine(1).buffers_out(), 20U);
    EXPECT_GT(network.engine(0).operations_in_flight(), 150U);
    for (ExerciseRun& run : runs) run.submit(1);
    network.settle();
    expect_all_well(runs);
    expect_clean(network);
    EXPECT_GT(network.frames(net::FrameType::request), 0U);
  }
}

TEST(Engine, AnExpiredOperationNamesWhoIsAwaitedOnEveryRank) {
  FakeNetwork network(3, 3);
  ExerciseSpec spec;
  spec.size = 3;
  ExerciseRun run(network, spec, kWorldGroup, everyone(3));
  run.submit(0, 2s);
  run.submit(1, 5s);
  network.run(network.now() + 10s);
  for (const size_t rank : {size_t{0}, size_t{1}}) {
    ASSERT_TRUE(run.outcome(rank).done);
    ASSERT_FALSE(run.outcome(rank).result.ok());
    EXPECT_EQ(run.outcome(rank).result.error().code, ErrorCode::timeout);
    EXPECT_EQ(run.outcome(rank).result.error().peer, 2);
    EXPECT_NE(run.outcome(rank).result.error().message.find("awaited: "), std::string::npos);
    EXPECT_NE(run.outcome(rank).result.error().message.find("rank 2"), std::string::npos);
  }
  run.submit(2);  // too late: the group gave this operation up
  network.settle();
  ASSERT_TRUE(run.outcome(2).done);
  EXPECT_EQ(run.outcome(2).result.error().code, ErrorCode::timeout);
  expect_clean(network);

  ExerciseRun next(network, spec, kWorldGroup, everyone(3));  // the group itself goes on
  for (size_t rank = 0; rank < 3; ++rank) next.submit(rank);
  network.settle();
  for (size_t rank = 0; rank < 3; ++rank) EXPECT_TRUE(next.outcome(rank).result.ok());
  EXPECT_EQ(next.wrong(), "");
}

TEST(Engine, AnInvalidCallOnOneRankEndsTheOperationOnAll) {
  FakeNetwork network(3, 3);
  ExerciseSpec spec;
  spec.size = 3;
  ExerciseRun run(network, spec, kWorldGroup, everyone(3));
  run.submit(0);
  run.submit(2);
  Call call;
  call.kind = OpKind::broadcast;
  call.root = 7;
  std::byte byte{};
  call.outputs = {MutableBytes(&byte, 1)};
  Result<void> own;
  network.engine(1).submit(network.now(), call, [&](const Result<void>& r, Rank) { own = r; });
  network.settle();
  ASSERT_FALSE(own.ok());
  EXPECT_EQ(own.error().code, ErrorCode::invalid_argument);
  for (const size_t rank : {size_t{0}, size_t{2}}) {
    ASSERT_TRUE(run.outcome(rank).done);
    EXPECT_EQ(run.outcome(rank).result.error().code, ErrorCode::invalid_argument);
    EXPECT_EQ(run.outcome(rank).result.error().peer, 1);
  }
  expect_clean(network);
}

TEST(Engine, CostParametersAreAgreedAndUsedFromAFixedSequence) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    EngineOptions options;
    options.agree_first = 4;
    options.agree_every = 8;  // several agreements at once are on their way
    FakeNetwork network(seed, 3, options);
    std::deque<ExerciseRun> runs;
    for (int i = 0; i < 200; ++i) {
      runs.emplace_back(network, random_spec(network.rng(), 3, 500), kWorldGroup, everyone(3));
    }
    // Rank 0 submits everything at once: what follows the agreement has to wait for it.
    for (ExerciseRun& run : runs) run.submit(0);
    network.settle();
    for (size_t rank = 1; rank < 3; ++rank) {
      for (ExerciseRun& run : runs) run.submit(rank);
      network.settle();
    }
    expect_all_well(runs);
    expect_clean(network);
    if (HasFailure()) return;
  }
}

// Number 7, of three ranks.
void add_group(FakeNetwork& network) {
  for (Rank rank = 0; rank < 3; ++rank) {
    ASSERT_TRUE(network.engine(rank).add_group(7, everyone(3)));
  }
}

TEST(Engine, AReleasedGroupFailsWhatIsPendingAndDropsWhatStillComes) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, 3);
    add_group(network);
    ExerciseSpec spec;
    spec.size = 3;
    spec.elements = 1 + seed * 40;
    ExerciseRun ended(network, spec, 7, everyone(3));
    ExerciseRun pending(network, spec, 7, everyone(3));
    for (size_t rank = 0; rank < 3; ++rank) ended.submit(rank);
    network.settle();
    for (size_t rank = 0; rank < 2; ++rank) pending.submit(rank);
    for (uint64_t steps = network.rng().below(20); steps > 0; --steps) network.step();
    ASSERT_TRUE(network.engine(0).release_group(7));
    EXPECT_FALSE(network.engine(0).release_group(7));
    EXPECT_FALSE(network.engine(0).release_group(kWorldGroup));
    network.settle();
    pending.submit(2);
    network.settle();
    for (size_t rank = 0; rank < 3; ++rank) {
      ASSERT_TRUE(pending.outcome(rank).done) << "rank " << rank;
      EXPECT_EQ(pending.outcome(rank).result.error().code, ErrorCode::closed);
    }
    for (Rank rank = 1; rank < 3; ++rank) ASSERT_TRUE(network.engine(rank).release_group(7));
    network.settle();
    for (Rank rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(network.engine(rank).early_operations(), 0U) << "rank " << rank;
    }
    ExerciseRun other(network, spec, kWorldGroup, everyone(3));
    for (size_t rank = 0; rank < 3; ++rank) other.submit(rank);
    network.settle();
    EXPECT_TRUE(other.outcome(0).result.ok());
    expect_clean(network);
    if (HasFailure()) return;
  }
}

// Whether the others began before or after the release, nobody waits for a rank that never will.
TEST(Engine, ACollectiveOfAGroupThatARankReleasedEndsAtOnceAndNamesIt) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, 3);
    add_group(network);
    ExerciseSpec spec;
    spec.size = 3;
    spec.elements = 1 + seed * 4000;
    ExerciseRun never(network, spec, 7, everyone(3));
    never.submit(1);
    for (uint64_t steps = network.rng().below(20); steps > 0; --steps) network.step();
    ASSERT_TRUE(network.engine(0).release_group(7));
    never.submit(2);
    network.run(network.now() + 1s);
    for (size_t rank = 1; rank < 3; ++rank) {
      ASSERT_TRUE(never.outcome(rank).done) << "rank " << rank;
      EXPECT_EQ(never.outcome(rank).result.error().code, ErrorCode::closed);
      EXPECT_EQ(never.outcome(rank).result.error().peer, 0);
      EXPECT_NE(never.outcome(rank).result.error().message.find("released the group"),
                std::string::npos);
    }
    if (HasFailure()) return;
  }
}

// Who waits for a third rank alone has told the one that released nothing.
TEST(Engine, ARankThatWaitsForAnotherLearnsOfARelease) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, 3);
    add_group(network);
    ExerciseSpec spec;
    spec.kind = OpKind::broadcast;
    spec.root = 1;
    spec.size = 3;
    spec.elements = 1 + seed * 4000;
    for (int done = 0; done < 2; ++done) {
      ExerciseRun run(network, spec, 7, everyone(3));
      for (size_t rank = 0; rank < 3; ++rank) run.submit(rank);
      network.settle();
    }
    ExerciseRun waits(network, spec, 7, everyone(3));
    waits.submit(2);
    for (uint64_t steps = network.rng().below(20); steps > 0; --steps) network.step();
    ASSERT_TRUE(network.engine(0).release_group(7));
    network.run(network.now() + 1s);
    ASSERT_TRUE(waits.outcome(2).done);
    EXPECT_EQ(waits.outcome(2).result.error().code, ErrorCode::closed);
    EXPECT_EQ(waits.outcome(2).result.error().peer, 0);
    if (HasFailure()) return;
  }
}

TEST(Engine, ADeferredOperationHasItsDeadline) {
  EngineOptions options;
  options.agree_first = 1;
  options.agree_every = 64;
  FakeNetwork network(2, 2, options);
  std::deque<ExerciseRun> runs;
  ExerciseSpec spec;
  spec.size = 2;
  for (int i = 0; i < 40; ++i) {
    runs.emplace_back(network, spec, kWorldGroup, everyone(2));
    runs.back().submit(0, 3s);
  }
  network.run(network.now() + 5s);
  EXPECT_EQ(runs.back().outcome(0).result.error().code, ErrorCode::timeout);
  for (ExerciseRun& run : runs) run.submit(1, 3s);
  network.run(network.now() + 5s);
  for (ExerciseRun& run : runs) {
    EXPECT_TRUE(run.outcome(1).done);
    EXPECT_FALSE(run.outcome(1).result.ok());
  }
}

}  // namespace
}  // namespace scant::collective
