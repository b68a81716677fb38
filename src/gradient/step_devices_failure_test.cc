// Devices that fail, and rounds that end while a device works: an error on every rank, nothing is
// lost, and nothing waits for ever.
#include <cmath>
#include <gtest/gtest.h>

#include "gradient/testing/devices.h"

namespace scant::gradient {
namespace {

using testing::all_of;
using testing::Kind;
using testing::Member;
using testing::plan_of;
using testing::ranked;
using testing::Ranks;
using testing::small_layout;
using testing::StagedRank;

// Of each slice nothing has happened, or its gradient was taken in; owners are where they were.
void expect_whole(const Member& member, const std::vector<double>& worker,
                  const std::vector<double>& owner, size_t& taken_in) {
  const std::vector<double> worker_now = member.kept(false);
  const std::vector<double> owner_now = member.kept(true);
  const Layout& layout = member.step->layout();
  for (const SliceLayout& slice : layout.slices()) {
    const uint64_t at = layout.arena_offset(layout.parts()[slice.part].tensor, slice.range);
    bool untouched = true;
    bool taken = true;
    for (uint64_t i = at; i < at + slice.range.elements; ++i) {
      const auto gradient = static_cast<double>(member.gradient[i]);
      untouched = untouched && std::abs(worker_now[i] - worker[i]) < 2e-5;
      taken = taken && std::abs(worker_now[i] - worker[i] - gradient) < 2e-5;
      ASSERT_NEAR(owner_now[i], owner[i], 2e-5) << "owner, element " << i;
    }
    ASSERT_TRUE(untouched || taken) << "rank " << member.station << ", elements from " << at;
    if (taken && !untouched) ++taken_in;
  }
}

struct Kept {
  explicit Kept(Ranks& ranks) {
    for (Member& member : ranks.rounds->all()) {
      worker.push_back(member.kept(false));
      owner.push_back(member.kept(true));
    }
  }
  std::vector<std::vector<double>> worker;
  std::vector<std::vector<double>> owner;
};

// An error of this kind on every rank, that names rank 1; nothing is lost, and all can go on.
void expect_failed(Ranks& ranks, const Kept& before, ErrorCode code, uint64_t seed) {
  size_t taken_in = 0;
  for (Member& member : ranks.rounds->all()) {
    ASSERT_TRUE(member.outcome) << "rank " << member.station << " waits for ever";
    ASSERT_FALSE(member.outcome->ok());
    EXPECT_EQ(member.outcome->error().code, code) << member.outcome->error().to_string();
    EXPECT_EQ(member.outcome->error().peer, member.station == 1 ? kNoRank : 1)
        << member.outcome->error().to_string();
    EXPECT_TRUE(member.step->idle());
    EXPECT_FALSE(member.step->device_works());
    const auto rank = static_cast<size_t>(member.station);
    ASSERT_NO_FATAL_FAILURE(
        expect_whole(member, before.worker[rank], before.owner[rank], taken_in));
  }
  EXPECT_GT(taken_in, 0u);
  ranks.rounds->run(3, all_of(3), 2, seed);
  for (Member& member : ranks.rounds->all()) ASSERT_TRUE(member.outcome->ok());
}

TEST(StepDevicesFailure, ADeviceThatFailsIsAnErrorOnEveryRankAndNothingIsLost) {
  const Layout layout = small_layout(3);
  const FusionPlan plan = plan_of(layout, Path::split, 1.0);
  const auto calls = static_cast<int>(2 * layout.slices().size());  // a copy and a call for each
  for (int fails_after = 0; fails_after < calls; ++fails_after) {
    SCOPED_TRACE(::testing::Message() << "call " << fails_after << " of " << calls);
    const auto seed = static_cast<uint64_t>(fails_after);
    Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
    ranks.rounds->set_plan(plan);
    ranks.rounds->run(1, all_of(3), 1, seed);
    const Kept before(ranks);
    ranks.staged[1]->device().fails_after = fails_after;
    ranks.rounds->run(2, all_of(3), 1, seed);
    ASSERT_NO_FATAL_FAILURE(expect_failed(ranks, before, ErrorCode::io, seed));
  }
}

// Factors, with a rest and without; the rest of what goes to the devices does as before.
std::vector<FusionPlan> plans_with_factors(const Layout& layout) {
  std::vector<FusionPlan> plans;
  for (const Path path : {Path::split, Path::gather}) {
    for (const codec::Point rest : {codec::kKeepAll, codec::Point{1, codec::ValueKind::q2}}) {
      plans.push_back(plan_of(layout, path, ranked(2, codec::ValueKind::q4, rest)));
    }
  }
  return plans;
}

// Of each part that a device is asked to copy, and each slice that it is asked to encode.
int calls_of(const Layout& layout, const FusionPlan& plan) {
  int calls = 0;
  for (const BufferPlan& buffer : plan.buffers) {
    for (uint32_t i = 0; i < buffer.parts; ++i) {
      const bool matrix = buffer.points[i].first.rank > 0;
      calls += matrix ? 2 : 2 * static_cast<int>(layout.parts()[buffer.first_part + i].slices);
    }
  }
  return calls;
}

TEST(StepDevicesFailure, LikewiseWhereItsGradientsBecomeFactors) {
  const Layout layout = small_layout(3);
  for (const FusionPlan& plan : plans_with_factors(layout)) {
    const int calls = calls_of(layout, plan);
    for (int fails_after = 0; fails_after < calls; ++fails_after) {
      SCOPED_TRACE(::testing::Message() << "call " << fails_after << " of " << calls);
      const auto seed = static_cast<uint64_t>(fails_after);
      Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
      ranks.rounds->set_plan(plan);
      ranks.rounds->run(1, all_of(3), 1, seed);
      const Kept before(ranks);
      ranks.staged[1]->device().fails_after = fails_after;
      ranks.rounds->run(2, all_of(3), 1, seed);
      ASSERT_NO_FATAL_FAILURE(expect_failed(ranks, before, ErrorCode::io, seed));
    }
    // No call more: the round that all these failed would have ended well.
    Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
    ranks.rounds->set_plan(plan);
    ranks.staged[1]->device().fails_after = calls;
    ranks.rounds->run(1, all_of(3), 1, 1);
    for (Member& member : ranks.rounds->all()) ASSERT_TRUE(member.outcome->ok());
    EXPECT_EQ(ranks.staged[1]->device().fails_after, 0);
  }
}

TEST(StepDevicesFailure, ADeviceWithoutMemoryIsAnErrorOnEveryRank) {
  const Layout layout = small_layout(3);
  for (const FusionPlan& plan : plans_with_factors(layout)) {
    Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
    ranks.rounds->set_plan(plan);
    const Kept before(ranks);
    ranks.staged[1]->device().bytes_left = 100;
    ranks.rounds->run(1, all_of(3), 1, 1);
    ranks.staged[1]->device().bytes_left = SIZE_MAX;
    ASSERT_NO_FATAL_FAILURE(expect_failed(ranks, before, ErrorCode::resource, 1));
  }
}

// The basis, or the leg of all else, is lost while the device works on other parts.
TEST(StepDevicesFailure, ALegWithFactorsThatFailsWaitsForTheDevice) {
  const Layout layout = small_layout(3);
  for (const Leg leg : {Leg::basis_first, Leg::basis_second, Leg::first, Leg::second}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(::testing::Message() << "seed " << seed << ", leg " << static_cast<int>(leg));
      Ranks ranks(layout, {Kind::host, Kind::staged, Kind::late}, {.verdict_last = true});
      ranks.rounds->set_plan(plans_with_factors(layout)[seed % 2]);
      ranks.rounds->run(1, all_of(3), 1, seed);
      const Kept before(ranks);
      ranks.network.fail_next(leg, {.code = ErrorCode::io, .message = "the test wants it"});
      ranks.rounds->run(2, all_of(3), 1, seed);
      size_t taken_in = 0;
      for (Member& member : ranks.rounds->all()) {
        ASSERT_TRUE(member.outcome && !member.outcome->ok());
        EXPECT_EQ(member.outcome->error().code, ErrorCode::io);
        EXPECT_FALSE(member.step->device_works());
        const auto rank = static_cast<size_t>(member.station);
        ASSERT_NO_FATAL_FAILURE(
            expect_whole(member, before.worker[rank], before.owner[rank], taken_in));
      }
      ranks.rounds->run(3, all_of(3), 2, seed);
      for (Member& member : ranks.rounds->all()) ASSERT_TRUE(member.outcome->ok());
    }
  }
}

// What a plain round took in is not kept.
TEST(StepDevicesFailure, LikewiseWhereTheDeviceCopies) {
  const Layout layout = small_layout(3);
  const auto calls = static_cast<int>(2 * layout.parts().size());
  for (int fails_after = 0; fails_after < calls; ++fails_after) {
    SCOPED_TRACE(::testing::Message() << "call " << fails_after << " of " << calls);
    Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
    ranks.rounds->set_plan(plan_of(layout, Path::all_reduce, 1.0));
    ranks.staged[1]->device().fails_after = fails_after;
    ranks.rounds->run(1, all_of(3), 1, 1);
    for (Member& member : ranks.rounds->all()) {
      ASSERT_TRUE(member.outcome) << "rank " << member.station << " waits for ever";
      ASSERT_FALSE(member.outcome->ok());
      EXPECT_EQ(member.outcome->error().code, ErrorCode::io);
      EXPECT_FALSE(member.step->device_works());
    }
    ranks.rounds->run(2, all_of(3), 2, 2);
    for (Member& member : ranks.rounds->all()) {
      ASSERT_TRUE(member.outcome->ok());
      EXPECT_EQ(member.arena, ranks.at(0).arena);
    }
  }
}

TEST(StepDevicesFailure, LikewiseWhereTheStepItselfFails) {
  const Layout layout = small_layout(3);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Ranks ranks(layout, {Kind::host, Kind::late, Kind::host}, {.verdict_last = seed % 2 == 0});
    ranks.rounds->set_plan(plan_of(layout, Path::split, 1.0));
    ranks.rounds->run(1, all_of(3), 1, seed);
    const Kept before(ranks);
    auto& encoders = ranks.late[1].all();
    encoders[seed % encoders.size()].second->fail_next(
        {.code = ErrorCode::resource, .message = "the test wants it"});
    ranks.rounds->run(2, all_of(3), 1, seed);
    ASSERT_NO_FATAL_FAILURE(expect_failed(ranks, before, ErrorCode::resource, seed));
  }
}

// In a round whose owners change: what devices encode afterwards returns as well.
TEST(StepDevicesFailure, LikewiseWhereOwnersChange) {
  const Layout layout = small_layout(3);
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    Ranks ranks(layout, {Kind::staged, Kind::late, Kind::host}, {.verdict_last = seed % 2 == 0});
    ranks.rounds->set_plan(plan_of(layout, Path::split, 1.0));
    ranks.rounds->run(1, all_of(3), 1, seed);
    const Kept before(ranks);
    std::vector<SliceDuty> duties = duties_for(layout, 3);
    for (SliceDuty& duty : duties) duty.owner = static_cast<Rank>(rng.below(3));
    ranks.rounds->owner_changes = {duties};
    auto& encoders = ranks.late[1].all();
    encoders[rng.below(encoders.size())].second->fail_next(
        {.code = ErrorCode::io, .message = "the test wants it"});
    ranks.rounds->run(2, all_of(3), 1, seed);
    ranks.rounds->owner_changes.clear();
    ASSERT_NO_FATAL_FAILURE(expect_failed(ranks, before, ErrorCode::io, seed));
  }
}

// A gradient that was to become factors is not kept: nobody has encoded it.
TEST(StepDevicesFailure, ARoundThatIsAbortedWaitsForTheCopy) {
  const Layout layout = small_layout(3);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
    ranks.rounds->set_plan(plans_with_factors(layout)[seed % 4]);
    StagedRank& device = *ranks.staged[1];
    device.held = true;
    ranks.rounds->begin(1, all_of(3), 1, seed);
    ranks.rounds->drive(seed);
    GradientStep& step = *ranks.at(1).step;
    ASSERT_TRUE(step.device_works());
    step.abort({.code = ErrorCode::closed, .message = "the test wants it"});
    ranks.rounds->drive(seed);
    EXPECT_FALSE(ranks.at(1).outcome);
    device.held = false;
    ranks.rounds->drive(seed);
    ASSERT_TRUE(ranks.at(1).outcome);
    EXPECT_EQ(ranks.at(1).outcome->error().code, ErrorCode::closed);
    size_t taken_in = 0;
    const std::vector<double> nothing(layout.arena_elements(), 0.0);
    ASSERT_NO_FATAL_FAILURE(expect_whole(ranks.at(1), nothing, nothing, taken_in));
    EXPECT_GT(taken_in, 0u);
    EXPECT_LT(taken_in, layout.slices().size());
  }
}

// The end is told when the device is done, not before; what it has encoded meanwhile returns.
TEST(StepDevicesFailure, ARoundThatIsAbortedWaitsForTheDevice) {
  const Layout layout = small_layout(3);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Ranks ranks(layout, {Kind::host, Kind::staged, Kind::host}, {});
    ranks.rounds->set_plan(plan_of(layout, Path::split, 1.0));
    ranks.rounds->run(1, all_of(3), 1, seed);
    const Kept before(ranks);
    StagedRank& device = *ranks.staged[1];
    device.held = true;
    ranks.rounds->begin(2, all_of(3), 1, seed);
    ranks.rounds->drive(seed);
    GradientStep& step = *ranks.at(1).step;
    ASSERT_TRUE(step.device_works());
    step.abort({.code = ErrorCode::closed, .message = "the test wants it"});
    ranks.rounds->drive(seed);
    EXPECT_TRUE(ranks.at(0).outcome && ranks.at(2).outcome);
    EXPECT_FALSE(ranks.at(1).outcome);
    EXPECT_FALSE(step.next());
    EXPECT_FALSE(step.idle());
    device.held = false;
    ranks.rounds->drive(seed);
    ASSERT_TRUE(ranks.at(1).outcome);
    EXPECT_EQ(ranks.at(1).outcome->error().code, ErrorCode::closed);
    size_t taken_in = 0;
    ASSERT_NO_FATAL_FAILURE(expect_whole(ranks.at(1), before.worker[1], before.owner[1], taken_in));
    EXPECT_EQ(taken_in, layout.slices().size());
  }
}

void expect_a_step_that_goes_away_to_end(const Layout& layout, const FusionPlan& plan) {
  Ranks ranks(layout, {Kind::staged}, {});
  ranks.rounds->set_plan(plan);
  Member& member = ranks.at(0);
  RoundSpec spec{.round = 1, .arena = member.arena, .members = everyone(1, 0)};
  ranks.staged[0]->change(member, spec);
  ASSERT_TRUE(member.step->begin(spec, Time{}).ok());
  member.step->ready(1, Time{});
  const auto job = member.step->next();
  ASSERT_TRUE(job);
  static_cast<void>(member.step->run(*job));
  member.step->finished(*job, Time{}, Time{});
  EXPECT_FALSE(member.step->next()) << "nothing is done";
  EXPECT_TRUE(ranks.staged[0]->works());
  member.step.reset();
  EXPECT_FALSE(ranks.staged[0]->works());
  EXPECT_GT(ranks.staged[0]->woken, 0);
}

TEST(StepDevicesFailure, AStepThatGoesAwayEndsWhatItsDeviceWorksOn) {
  const Layout layout = small_layout(1);
  expect_a_step_that_goes_away_to_end(layout, plan_of(layout, Path::split, 1.0));
  for (const FusionPlan& plan : plans_with_factors(layout)) {
    expect_a_step_that_goes_away_to_end(layout, plan);
  }
}

}  // namespace
}  // namespace scant::gradient
