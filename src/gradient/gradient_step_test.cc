// The round of gradients on a fake exchange whose operations end in any order: averages, mass,
// members that come and go, rounds at once, and who may call what when.
#include "gradient/gradient_step.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>

#include "gradient/testing/round_of_members.h"

namespace scant::gradient {
namespace {

using testing::expect_alike_and_well;
using testing::expect_mass;
using testing::FakeNetwork;
using testing::first_stations;
using testing::kept_by;
using testing::Member;
using testing::RoundOfMembers;
using testing::small_layout;

FusionPlan small_plan(const Layout& layout, Path path, double density, codec::ValueKind values) {
  return uniform(layout, path, density, values, 3000);
}

TEST(GradientStep, EveryPathGivesTheMeanInWhateverOrderThingsHappen) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const int ranks = 1 + static_cast<int>(seed % 5);
    const Layout layout = small_layout(ranks);
    FakeNetwork network(ranks);
    RoundOfMembers rounds(network, layout, ranks);
    const auto path = static_cast<Path>(seed % kPathCount);
    rounds.set_plan(small_plan(layout, path, 1.0, codec::ValueKind::f32));
    rounds.run(1, first_stations(ranks), 1, seed);
    expect_alike_and_well(rounds, first_stations(ranks));
    for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
      const TensorLayout& known = layout.tensors()[tensor];
      for (uint64_t i = 0; i < known.shape.elements(); ++i) {
        ASSERT_NEAR(rounds.at(0).arena[known.offset + i], exact_average(1, ranks, tensor, i), 1e-6);
      }
    }
  }
}

TEST(GradientStep, NothingIsLostWhateverThePlansAreAndTheOrderIs) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 1 + static_cast<int>(rng.below(5));
    const Layout layout = small_layout(ranks);
    FakeNetwork network(ranks);
    RoundOfMembers rounds(network, layout, ranks, {.verdict_last = rng.chance(0.5)});
    for (uint64_t round = 1; round <= 4; ++round) {
      rounds.set_plan(random_plan(rng, layout));
      const std::vector<double> before = kept_by(rounds, first_stations(ranks));
      rounds.run(round, first_stations(ranks), 1, seed * 10 + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(ranks)));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(ranks), before, 2e-5));
    }
  }
}

// What a member kept as an owner is carried on, whoever comes or goes.
TEST(GradientStep, MembersShrinkAndGrowBetweenRoundsAndNothingIsLost) {
  const std::vector<std::vector<Rank>> by_round = {{0, 1, 2, 3}, {3, 1},       {3, 1, 0},      {2},
                                                   {0, 1, 2, 3}, {2, 3, 0, 1}, {1, 0, 2, 3, 4}};
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const Layout layout = small_layout(4);
    FakeNetwork network(5);
    RoundOfMembers rounds(network, layout, 5);
    for (uint64_t round = 0; round < by_round.size(); ++round) {
      const std::vector<Rank>& stations = by_round[round];
      rounds.set_plan(
          small_plan(layout, static_cast<Path>(rng.below(kPathCount)), 0.3, codec::ValueKind::q4));
      rounds.begin(round + 1, stations, round + 1, seed + round);
      const std::vector<double> before = kept_by(rounds, stations);
      rounds.drive(seed + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, stations));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, stations, before, 2e-5));
    }
  }
}

// The fold itself: what an owner kept of one average stands in its gradient as often as the new
// average will divide it.
TEST(GradientStep, AnOwnerThatOwnsNoMoreAddsItsResidualTimesTheMembers) {
  const Layout layout = small_layout(2);
  FakeNetwork network(2);
  RoundOfMembers rounds(network, layout, 2);
  rounds.set_plan(small_plan(layout, Path::split, 1.0, codec::ValueKind::q2));
  rounds.run(1, {0, 1}, 1, 1);
  Member& member = rounds.at(1);
  const std::vector<double> worker = member.kept(false);
  const std::vector<double> owner = member.kept(true);
  ASSERT_TRUE(std::ranges::any_of(owner, [](double value) { return value != 0; }));
  // Everything is station 0's now, each of three members counts a third.
  std::vector<SliceDuty> duties(layout.slices().size(), {.owner = 1, .weight = 1.0f / 3.0f});
  ASSERT_TRUE(member.step->set_members({2, {1, 0, 5}, 0}, duties).ok());
  const std::vector<double> after = member.kept(false);
  for (size_t i = 0; i < after.size(); ++i) {
    ASSERT_NEAR(after[i], worker[i] + 3 * owner[i], 1e-6) << i;
  }
  EXPECT_TRUE(std::ranges::all_of(member.kept(true), [](double value) { return value == 0; }));
  EXPECT_EQ(member.step->residuals().owner_energy(), 0);
}

TEST(GradientStep, OwnersAndWeightsAreWhatTheRoundSays) {
  for (const Path path : {Path::all_reduce, Path::split, Path::gather}) {
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3);
    rounds.set_plan(small_plan(layout, path, 1.0, codec::ValueKind::f32));
    std::vector<SliceDuty> duties;
    for (size_t i = 0; i < layout.slices().size(); ++i) {
      duties.push_back({static_cast<Rank>(2 - i % 2), i % 3 == 0 ? 0.25f : 1.0f});
    }
    rounds.duties = duties;
    rounds.run(1, {0, 1, 2}, 1, 4);
    expect_alike_and_well(rounds, {0, 1, 2});
    for (uint32_t i = 0; i < layout.slices().size(); ++i) {
      const SliceLayout& slice = layout.slices()[i];
      const uint64_t at = layout.arena_offset(layout.parts()[slice.part].tensor, slice.range);
      double sum = 0;
      for (const Member& member : rounds.all()) sum += member.gradient[at];
      EXPECT_NEAR(rounds.at(0).arena[at], sum * static_cast<double>(duties[i].weight), 1e-6) << i;
    }
  }
}

TEST(GradientStep, TwoRoundsAreUnderWayAtOnce) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers one(network, layout, 3, {}, 0);
    RoundOfMembers other(network, layout, 3, {.seed = 5}, kSlotsMax - 1);
    one.set_plan(random_plan(rng, layout));
    other.set_plan(random_plan(rng, layout));
    for (uint64_t round = 1; round <= 2; ++round) {
      const std::vector<double> kept = kept_by(one, {0, 1, 2});
      const std::vector<double> kept_other = kept_by(other, {0, 1, 2});
      one.begin(round, {0, 1, 2}, 1, seed);
      other.begin(round + 40, {0, 1, 2}, 1, seed + 1);
      RoundOfMembers::drive_all(network, {&one, &other}, seed, [](uint64_t) {});
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(one, {0, 1, 2}));
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(other, {0, 1, 2}));
      ASSERT_NO_FATAL_FAILURE(expect_mass(one, {0, 1, 2}, kept, 2e-5));
      ASSERT_NO_FATAL_FAILURE(expect_mass(other, {0, 1, 2}, kept_other, 2e-5));
    }
  }
}

TEST(GradientStep, AllRanksLearnWhatEachWouldTakeAlong) {
  const Layout layout = small_layout(3);
  FakeNetwork network(3);
  RoundOfMembers rounds(network, layout, 3);
  rounds.set_plan(small_plan(layout, Path::split, 0.1, codec::ValueKind::q4));
  for (uint64_t round = 1; round <= 2; ++round) {
    std::vector<double> owner_before;
    for (Member& member : rounds.all()) {
      owner_before.push_back(member.step->residuals().owner_energy());
    }
    rounds.run(round, {0, 1, 2}, 1, round);
    for (Member& member : rounds.all()) {
      const StepReport& report = member.outcome->value();
      ASSERT_EQ(report.accounts.size(), 3u);
      for (size_t rank = 0; rank < 3; ++rank) {
        const Residuals& of = rounds.at(static_cast<Rank>(rank)).step->residuals();
        EXPECT_EQ(report.accounts[rank].samples, 32u);
        EXPECT_EQ(report.accounts[rank].residual_energy, of.worker_energy() + owner_before[rank]);
      }
      EXPECT_EQ(report.members_hash, everyone(3, 0).hash());
    }
  }
  const Residuals& residuals = rounds.at(1).step->residuals();
  EXPECT_GT(residuals.owner_energy(), 0);
  EXPECT_NEAR(residuals.worker_energy(), residuals.measured_energy(),
              1e-3 * residuals.measured_energy());
}

TEST(GradientStep, ATensorThatNobodyHasKeepsItsResidual) {
  for (const Path path : {Path::split, Path::gather}) {
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3);
    rounds.set_plan(small_plan(layout, path, 0.1, codec::ValueKind::q4));
    rounds.run(1, {0, 1, 2}, 1, 1);
    const std::vector<double> before = rounds.at(1).kept(false);
    rounds.run(2, {0, 1, 2}, 1, 2, {3});
    expect_alike_and_well(rounds, {0, 1, 2});
    EXPECT_FALSE(rounds.at(0).outcome->value().present[3]);
    const std::vector<double> after = rounds.at(1).kept(false);
    const TensorLayout& known = layout.tensors()[3];
    for (uint64_t i = known.offset; i < known.offset + known.shape.elements(); ++i) {
      ASSERT_EQ(after[i], before[i]);
      ASSERT_EQ(rounds.at(1).arena[i], 0.0f);
    }
  }
}

// A job's effort counts what the planner's rates charge for.
TEST(GradientStep, JobsTellHowMuchWorkTheyWere) {
  const Layout layout = Layout::create(std::vector<codec::Shape>{{64, 640}}, 2).value();
  const auto efforts = [&](Path path, double density) {
    FakeNetwork network(2);
    RoundOfMembers rounds(network, layout, 2);
    rounds.set_plan(uniform(layout, path, density, codec::ValueKind::q4));
    rounds.run(1, {0, 1}, 1, 3);
    return rounds.at(0).efforts;
  };
  constexpr auto kQ4 = static_cast<size_t>(codec::ValueKind::q4);
  constexpr uint64_t kAll = 64 * 640;
  const auto dense = efforts(Path::split, 1.0);
  ASSERT_EQ(dense.size(), 3u);  // encode, add, decode
  EXPECT_EQ(dense[0].encoded[kQ4].dense, kAll);
  EXPECT_EQ(dense[0].records, 2u);
  EXPECT_EQ(dense[0].scanned + dense[0].cleared + dense[0].decoded[kQ4].dense, 0u);
  EXPECT_EQ(dense[1].decoded[kQ4].dense, kAll);      // two records of a half
  EXPECT_EQ(dense[1].encoded[kQ4].dense, kAll / 2);  // the own half's average
  EXPECT_EQ(dense[1].records, 3u);
  EXPECT_EQ(dense[2].decoded[kQ4].dense, kAll);
  EXPECT_EQ(dense[2].records, 2u);
  const auto sparse = efforts(Path::gather, 0.25);
  ASSERT_EQ(sparse.size(), 2u);
  EXPECT_EQ(sparse[0].scanned, kAll);
  EXPECT_NEAR(static_cast<double>(sparse[0].encoded[kQ4].entries), kAll / 4.0, kAll / 50.0);
  EXPECT_EQ(sparse[1].cleared, kAll);
  EXPECT_NEAR(static_cast<double>(sparse[1].decoded[kQ4].entries), kAll / 2.0, kAll / 25.0);
  const auto plain = efforts(Path::all_reduce, 1.0);
  ASSERT_EQ(plain.size(), 1u);
  EXPECT_EQ(plain[0], Effort{});
}

TEST(GradientStep, WhatIsSavedComesBackUnderTheSameMembers) {
  const Layout layout = small_layout(2);
  FakeNetwork network(2);
  RoundOfMembers rounds(network, layout, 2);
  rounds.set_plan(small_plan(layout, Path::split, 0.1, codec::ValueKind::q3));
  rounds.run(1, {0, 1}, 1, 1);
  const Residuals& residuals = rounds.at(1).step->residuals();
  const double energy = residuals.measured_energy();
  const std::vector<double> owner = rounds.at(1).kept(true);
  const std::vector<std::byte> saved = rounds.at(1).step->save().value();
  rounds.run(2, {0, 1}, 1, 2);
  EXPECT_NE(residuals.measured_energy(), energy);
  ASSERT_TRUE(rounds.at(1).step->restore(saved).ok());
  EXPECT_EQ(residuals.measured_energy(), energy);
  EXPECT_EQ(residuals.worker_energy(), energy);  // measured, for no record told it
  EXPECT_EQ(rounds.at(1).kept(true), owner);
  EXPECT_EQ(rounds.at(0).step->restore(saved).error().code, ErrorCode::mismatch);
  rounds.at(1).step->scale_residuals(-2.0f);
  EXPECT_NEAR(residuals.worker_energy(), 4 * energy, 1e-9 * energy);
  EXPECT_EQ(residuals.measured_energy(), 4 * energy);
}

TEST(GradientStep, CallsThatDoNotFitTheStateAreRefusedByName) {
  const Layout layout = small_layout(1);
  FakeNetwork network(1);
  RoundOfMembers rounds(network, layout, 1);
  Member& member = rounds.at(0);
  GradientStep& step = *member.step;
  const auto refused = [](const Result<void>& outcome, const char* what) {
    return !outcome.ok() && outcome.error().code == ErrorCode::invalid_argument &&
           outcome.error().message.find(what) != std::string::npos;
  };
  RoundSpec spec{.round = 1, .arena = member.arena, .members = everyone(1, 0)};
  EXPECT_TRUE(refused(step.begin(spec, Time{}), "no plan is set"));
  rounds.set_plan(small_plan(layout, Path::split, 1.0, codec::ValueKind::f32));
  spec.arena = spec.arena.first(3);
  EXPECT_TRUE(refused(step.begin(spec, Time{}), "arena: the layout needs"));
  spec.arena = member.arena;
  spec.members.self = 3;
  EXPECT_TRUE(refused(step.begin(spec, Time{}), "members"));
  EXPECT_TRUE(step.idle());
  EXPECT_FALSE(step.next());
  EXPECT_FALSE(step.poll_transmit(Time{}));
  EXPECT_FALSE(step.take_outcome(Time{}));
  step.abort(Error{});  // nothing is under way
  EXPECT_FALSE(step.next_cancelled());
  spec.members.self = 0;
  ASSERT_TRUE(step.begin(spec, Time{}).ok());
  EXPECT_TRUE(refused(step.begin(spec, Time{}), "is not over"));
  EXPECT_TRUE(refused(step.set_plan(small_plan(layout, Path::gather, 1.0, codec::ValueKind::f32)),
                      "between steps"));
  EXPECT_TRUE(refused(step.set_members(everyone(1, 0)), "between steps"));
  EXPECT_TRUE(refused(step.restore(step.save().value()), "between steps"));
  EXPECT_TRUE(step.averaged().empty());
  member.to_finish = true;
  rounds.drive(1);
  ASSERT_TRUE(member.outcome && member.outcome->ok());
}

TEST(GradientStep, OptionsThatCannotBeAreRefusedByName) {
  const auto refusal = [](const StepOptions& options, const Members& members, uint32_t slot) {
    const auto made = GradientStep::create(small_layout(2), options, members, slot);
    return made.ok() ? std::string() : made.error().message;
  };
  EXPECT_EQ(refusal({}, everyone(2, 0), 0), "");
  EXPECT_NE(refusal({.decay = 1.5f}, everyone(2, 0), 0).find("decay"), std::string::npos);
  EXPECT_NE(refusal({.workers = 0}, everyone(2, 0), 0).find("workers"), std::string::npos);
  EXPECT_NE(refusal({}, everyone(2, 2), 0).find("members"), std::string::npos);
  EXPECT_NE(refusal({}, everyone(2, 0), kSlotsMax).find("slot 16"), std::string::npos);
}

using GradientStepDeathTest = ::testing::Test;

TEST(GradientStepDeathTest, ProgrammersErrorsStopTheProgram) {
  const Layout layout = small_layout(1);
  FakeNetwork network(1);
  RoundOfMembers rounds(network, layout, 1);
  GradientStep& step = *rounds.at(0).step;
  EXPECT_DEATH(step.ready(0, Time{}), "ready once");
  EXPECT_DEATH(step.finish(0, 0, Time{}), "finished once");
  EXPECT_DEATH(step.on_done({}, {}, Time{}), "done once");
  EXPECT_DEATH(step.finished({}, Time{}, Time{}), "the job that was run");
  rounds.set_plan(small_plan(layout, Path::split, 1.0, codec::ValueKind::f32));
  const RoundSpec spec{.round = 1, .arena = rounds.at(0).arena, .members = everyone(1, 0)};
  ASSERT_TRUE(step.begin(spec, Time{}).ok());
  EXPECT_DEATH(step.ready(99, Time{}), "ready once");
  step.ready(0, Time{});
  EXPECT_DEATH(step.ready(0, Time{}), "ready once");
  step.finish(0, 0, Time{});
  EXPECT_DEATH(step.ready(1, Time{}), "ready once");
  EXPECT_DEATH(step.finish(0, 0, Time{}), "finished once");
  rounds.drive(1);
}

}  // namespace
}  // namespace scant::gradient
