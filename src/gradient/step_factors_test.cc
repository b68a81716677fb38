// Rounds with matrix parts, on a fake exchange whose operations end in any order: averages, mass,
// equal bits, members and owners that change, rounds that fail, and numbers that are not finite.
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>

#include "gradient/testing/fusion_plans.h"
#include "gradient/testing/round_of_members.h"

namespace scant::gradient {
namespace {

using codec::Point;
using codec::ValueKind;
using testing::expect_alike_and_well;
using testing::expect_mass;
using testing::FakeNetwork;
using testing::first_stations;
using testing::kept_by;
using testing::Member;
using testing::plan_of;
using testing::ranked;
using testing::RoundOfMembers;
using testing::small_layout;

constexpr uint32_t kMatrix = 1;  // the tensor of 20 x 40
constexpr uint32_t kLarge = 3;   // and that of 64 x 80

TEST(StepFactors, AllDirectionsInF32AreTheMean) {
  for (const Path path : {Path::split, Path::gather}) {
    for (int ranks = 1; ranks <= 4; ++ranks) {
      const Layout layout = small_layout(ranks);
      FakeNetwork network(ranks);
      RoundOfMembers rounds(network, layout, ranks);
      FusionPlan plan = plan_of(layout, path, {1.0, ValueKind::f32});
      for (BufferPlan& buffer : plan.buffers) {
        for (uint32_t i = 0; i < buffer.parts; ++i) {
          const uint64_t most = layout.rank_max(buffer.first_part + i);
          if (most == 0) continue;
          const Point all = ranked(static_cast<uint16_t>(most), ValueKind::f32);
          buffer.points[i] = {all, path == Path::split ? all : kNoSecondLeg};
        }
      }
      rounds.set_plan(plan);
      rounds.run(1, first_stations(ranks), 1, 5);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(ranks)));
      for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
        const TensorLayout& known = layout.tensors()[tensor];
        for (uint64_t i = 0; i < known.shape.elements(); ++i) {
          ASSERT_NEAR(rounds.at(0).arena[known.offset + i], exact_average(1, ranks, tensor, i),
                      2e-5)
              << "tensor " << tensor << ", element " << i;
        }
      }
    }
  }
}

TEST(StepFactors, NothingIsLostWhateverThePlansAreAndTheOrderIs) {
  size_t with_factors = 0;
  for (uint64_t seed = 1; seed <= 80; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 1 + static_cast<int>(rng.below(5));
    const Layout layout = small_layout(ranks);
    FakeNetwork network(ranks);
    RoundOfMembers rounds(network, layout, ranks, {.verdict_last = rng.chance(0.5)});
    for (uint64_t round = 1; round <= 4; ++round) {
      const FusionPlan plan = testing::random_plan(rng, layout, true);
      with_factors += SliceTable(layout, plan).matrices().size();
      rounds.set_plan(plan);
      const std::vector<double> before = kept_by(rounds, first_stations(ranks));
      rounds.run(round, first_stations(ranks), 1, seed * 10 + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(ranks)));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(ranks), before, 4e-5));
    }
  }
  EXPECT_GT(with_factors, 100u);
}

// Whole records and parts of them, of every leg, left factors and coefficients among them.
TEST(StepFactors, WhatBoundedLegsLoseReturnsOrOnlyChoseDirections) {
  size_t lost[kLegCount] = {};  // factors, by leg
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 2 + static_cast<int>(rng.below(4));
    const Layout layout = small_layout(ranks);
    FakeNetwork network(ranks);
    StepOptions options{.verdict_last = rng.chance(0.5)};
    options.first_leg.exact = seed % 3 == 0;
    options.second_leg.exact = seed % 3 == 1;
    RoundOfMembers rounds(network, layout, ranks, options);
    network.lose = [&](const Lane& lane, Rank sender, Rank receiver,
                       const Operation::Piece& piece) -> std::vector<codec::Range> {
      const uint64_t drawn = base::random_at(
          seed << 8 | static_cast<uint64_t>(sender), static_cast<uint64_t>(receiver),
          uint64_t{piece.slice} << 8 | static_cast<uint64_t>(lane.leg));
      if (drawn % 3 != 0) return {};
      if (piece.slice >= layout.slices().size()) ++lost[static_cast<size_t>(lane.leg)];
      const bool half = drawn % 2 == 0 && piece.range.elements > 1;
      if (!half) return {piece.range};
      return {{piece.range.first, piece.range.elements / 2}};
    };
    for (uint64_t round = 1; round <= 4; ++round) {
      rounds.set_plan(testing::random_plan(rng, layout, true));
      const std::vector<double> before = kept_by(rounds, first_stations(ranks));
      rounds.run(round, first_stations(ranks), 1, seed * 10 + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(ranks)));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(ranks), before, 6e-5));
    }
  }
  for (const Leg leg : {Leg::basis_first, Leg::basis_second, Leg::first, Leg::second}) {
    EXPECT_GT(lost[static_cast<size_t>(leg)], 30u) << static_cast<int>(leg);
  }
}

// Nothing of any factor arrives: all of the gradient waits, with a rest and without.
TEST(StepFactors, WhereNoFactorArrivesAllWaits) {
  for (const Point rest : {codec::kKeepAll, Point{1, ValueKind::q2}}) {
    for (const Leg lost : {Leg::basis_first, Leg::basis_second, Leg::first, Leg::second}) {
      const Layout layout = small_layout(3);
      FakeNetwork network(3);
      StepOptions options;
      options.first_leg.exact = options.second_leg.exact = false;
      RoundOfMembers rounds(network, layout, 3, options);
      network.lose = [&](const Lane& lane, Rank, Rank,
                         const Operation::Piece& piece) -> std::vector<codec::Range> {
        if (lane.leg != lost) return {};
        return {piece.range};
      };
      rounds.set_plan(plan_of(layout, Path::split, ranked(2, ValueKind::q8, rest)));
      for (uint64_t round = 1; round <= 2; ++round) {
        const std::vector<double> before = kept_by(rounds, first_stations(3));
        rounds.run(round, first_stations(3), 1, round);
        ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
        ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
        const TensorLayout& known = layout.tensors()[kLarge];
        const bool moved = std::any_of(
            rounds.at(0).arena.begin() + static_cast<std::ptrdiff_t>(known.offset),
            rounds.at(0).arena.begin() + static_cast<std::ptrdiff_t>(known.offset + 5120),
            [](float value) { return value != 0; });
        // An owner has its own factors, if no others; averages that came to nobody are zeros.
        EXPECT_EQ(moved, lost != Leg::second && (lost != Leg::basis_second || rest.density > 0));
      }
    }
  }
}

TEST(StepFactors, MembersShrinkAndGrowBetweenRoundsAndNothingIsLost) {
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
      rounds.set_plan(plan_of(
          layout, rng.chance(0.5) ? Path::split : Path::gather,
          ranked(static_cast<uint16_t>(1 + rng.below(3)), ValueKind::q4, {0.3, ValueKind::q4})));
      rounds.begin(round + 1, stations, round + 1, seed + round);
      const std::vector<double> before = kept_by(rounds, stations);
      rounds.drive(seed + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, stations));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, stations, before, 4e-5));
    }
  }
}

TEST(StepFactors, OwnersChangeWithinARound) {
  uint32_t changed = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3);
    for (uint64_t round = 1; round <= 3; ++round) {
      rounds.set_plan(plan_of(
          layout, Path::split,
          ranked(2, ValueKind::q4, rng.chance(0.5) ? Point{1, ValueKind::q1} : codec::kKeepAll)));
      std::vector<SliceDuty> duties = duties_for(layout, 3);
      for (SliceDuty& duty : duties) duty.owner = static_cast<Rank>(rng.below(3));
      rounds.owner_changes = {duties};
      rounds.begin(round, first_stations(3), 1, seed * 10 + round);
      const std::vector<double> before = kept_by(rounds, first_stations(3));
      rounds.drive(seed * 10 + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
      changed += rounds.at(0).outcome->value().changed_buffers;
    }
  }
  EXPECT_GT(changed, 60u);
}

// A round that nobody can have ended well: gradients that were encoded are back, owners where they
// were.
void expect_undone(const Member& member, const std::vector<double>& worker,
                   const std::vector<double>& owner) {
  const std::vector<double> worker_now = member.kept(false);
  const std::vector<double> owner_now = member.kept(true);
  const Layout& layout = member.step->layout();
  for (const SliceLayout& slice : layout.slices()) {
    const uint64_t at = layout.arena_offset(layout.parts()[slice.part].tensor, slice.range);
    bool encoded = false;
    for (uint64_t i = at; i < at + slice.range.elements; ++i) {
      encoded = encoded || std::abs(worker_now[i] - worker[i]) > 1e-4;
    }
    for (uint64_t i = at; i < at + slice.range.elements; ++i) {
      const double gradient = encoded ? static_cast<double>(member.gradient[i]) : 0.0;
      ASSERT_NEAR(worker_now[i], worker[i] + gradient, 2e-5) << "worker, element " << i;
      ASSERT_NEAR(owner_now[i], owner[i], 1e-5) << "owner, element " << i;
    }
  }
}

// The verdict's lane stands for the opening, which is the first in it.
TEST(StepFactors, ALegThatFailsIsAnErrorOnEveryRankAndAllReturns) {
  for (const Leg leg :
       {Leg::basis_first, Leg::basis_second, Leg::first, Leg::second, Leg::verdict}) {
    for (const Point rest : {codec::kKeepAll, Point{1, ValueKind::q2}}) {
      for (uint64_t seed = 1; seed <= 15; ++seed) {
        SCOPED_TRACE(::testing::Message() << "seed " << seed << ", leg " << static_cast<int>(leg));
        const Layout layout = small_layout(3);
        FakeNetwork network(3);
        RoundOfMembers rounds(network, layout, 3, {.verdict_last = true});
        rounds.set_plan(plan_of(layout, Path::split, ranked(3, ValueKind::q4, rest)));
        rounds.run(1, first_stations(3), 1, seed);
        std::vector<std::vector<double>> worker;
        std::vector<std::vector<double>> owner;
        for (Member& member : rounds.all()) {
          worker.push_back(member.kept(false));
          owner.push_back(member.kept(true));
        }
        network.fail_next(leg, {.code = ErrorCode::io, .message = "the test wants it"});
        rounds.run(2, first_stations(3), 1, seed + 1);
        for (size_t i = 0; i < 3; ++i) {
          const Member& member = rounds.at(static_cast<Rank>(i));
          ASSERT_TRUE(member.outcome) << "rank " << i << " waits for ever";
          ASSERT_FALSE(member.outcome->ok());
          ASSERT_NO_FATAL_FAILURE(expect_undone(member, worker[i], owner[i]));
        }
        // The next one, of a later epoch, has all that the failed one had.
        const std::vector<double> before = kept_by(rounds, first_stations(3));
        rounds.run(3, first_stations(3), 2, seed + 2);
        ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
        ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
      }
    }
  }
}

TEST(StepFactors, ATensorWithoutAGradientSendsNoFactors) {
  for (const Path path : {Path::split, Path::gather}) {
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3, {.missing_as_zeros = true});
    rounds.set_plan(plan_of(layout, path, ranked(2, ValueKind::q8)));
    rounds.run(1, first_stations(3), 1, 1);
    const std::vector<double> before = kept_by(rounds, first_stations(3));
    rounds.begin(2, first_stations(3), 1, 2, {kMatrix});
    rounds.drive(2);
    ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
    ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
    const TensorLayout& absent = layout.tensors()[kMatrix];
    for (uint64_t i = 0; i < absent.shape.elements(); ++i) {
      ASSERT_EQ(rounds.at(0).arena[absent.offset + i], 0.0f);
    }
    EXPECT_EQ(rounds.at(0).outcome->value().parts[absent.first_part].bytes, 0u);
    EXPECT_GT(rounds.at(0).outcome->value().parts[layout.tensors()[kLarge].first_part].bytes, 0u);
  }
}

// Seen by all, counted, named; residuals stay finite.
TEST(StepFactors, WhatIsNotFiniteReachesAllAndStaysInNoResidual) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity}) {
    for (const Point rest : {codec::kKeepAll, Point{1, ValueKind::q2}, Point{0.1, ValueKind::q4}}) {
      const Layout layout = small_layout(3);
      FakeNetwork network(3);
      RoundOfMembers rounds(network, layout, 3);
      rounds.set_plan(plan_of(layout, Path::split, ranked(2, ValueKind::q4, rest)));
      rounds.gradient = [value](int step, Rank rank, uint32_t tensor, uint64_t element) {
        if (step == 1 && rank == 1 && tensor == kLarge && element == 777) return value;
        return gradient_at(step, rank, tensor, element);
      };
      rounds.run(1, first_stations(3), 1, 1);
      const TensorLayout& matrix = layout.tensors()[kLarge];
      for (const Rank rank : first_stations(3)) {
        const Result<StepReport>& outcome = *rounds.at(rank).outcome;
        ASSERT_TRUE(outcome.ok()) << outcome.error().to_string();
        EXPECT_GE(outcome.value().nonfinite, 1u);
        ASSERT_EQ(outcome.value().not_finite.size(), 1u);
        EXPECT_EQ(outcome.value().not_finite[0].tensor, kLarge);
        EXPECT_FALSE(std::isfinite(rounds.at(rank).arena[matrix.offset + 777]));
        for (const double kept : rounds.at(rank).kept(false)) ASSERT_TRUE(std::isfinite(kept));
        for (const double kept : rounds.at(rank).kept(true)) ASSERT_TRUE(std::isfinite(kept));
      }
      const std::vector<double> before = kept_by(rounds, first_stations(3));
      rounds.run(2, first_stations(3), 1, 2);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
    }
  }
}

TEST(StepFactors, SlicesOfAMatrixPartHaveOneWeight) {
  const Layout layout = small_layout(3);
  FakeNetwork network(3);
  RoundOfMembers rounds(network, layout, 3);
  rounds.set_plan(plan_of(layout, Path::split, ranked(2, ValueKind::q4)));
  std::vector<SliceDuty> duties = duties_for(layout, 3);
  const uint32_t slice = layout.parts()[layout.tensors()[kLarge].first_part].first_slice;
  duties[slice].weight = 0.5f;
  const RoundSpec spec{
      .round = 1, .arena = rounds.at(0).arena, .members = everyone(3, 0), .duties = duties};
  const Result<void> refused = rounds.at(0).step->begin(spec, Time{});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(refused.error().message.find("sends factors, and its slices have different weights"),
            std::string::npos)
      << refused.error().message;
}

// Nor without a rest does an owner encode averages of elements.
TEST(StepFactors, AMatrixWithoutARestBringsWhatOwnersKept) {
  const Layout layout = small_layout(3);
  FakeNetwork network(3);
  RoundOfMembers rounds(network, layout, 3);
  rounds.set_plan(plan_of(layout, Path::split, {1, ValueKind::q2}));
  rounds.run(1, first_stations(3), 1, 1);
  const auto owned = [&](uint32_t tensor) {
    const TensorLayout& known = layout.tensors()[tensor];
    double sum = 0;
    for (Member& member : rounds.all()) {
      const std::vector<double> kept = member.kept(true);
      for (uint64_t i = 0; i < known.shape.elements(); ++i) sum += std::abs(kept[known.offset + i]);
    }
    return sum;
  };
  EXPECT_GT(owned(kLarge), 0);
  rounds.set_plan(plan_of(layout, Path::split, ranked(2, ValueKind::q8)));
  const std::vector<double> before = kept_by(rounds, first_stations(3));
  rounds.run(2, first_stations(3), 1, 2);
  ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
  ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
  EXPECT_EQ(owned(kLarge), 0);
}

// Also where directions are drawn anew, as of a matrix of which few columns hold something.
TEST(StepFactors, ASavedStateGoesOnToTheBit) {
  const auto few_columns = [](int step, Rank rank, uint32_t tensor, uint64_t element) {
    const bool none = tensor == kLarge && element % 80 > 1;
    return none ? 0.0f : gradient_at(step, rank, tensor, element);
  };
  for (const Path path : {Path::split, Path::gather}) {
    const Layout layout = small_layout(3);
    const FusionPlan plan = plan_of(layout, path, ranked(3, ValueKind::q4, {1, ValueKind::q1}));
    FakeNetwork network(3);
    RoundOfMembers first(network, layout, 3);
    first.gradient = few_columns;
    first.set_plan(plan);
    for (uint64_t round = 1; round <= 3; ++round) first.run(round, first_stations(3), 1, round);
    FakeNetwork again(3);
    RoundOfMembers second(again, layout, 3);
    second.gradient = few_columns;
    second.set_plan(plan);
    for (const Rank rank : first_stations(3)) {
      const std::vector<std::byte> saved = first.at(rank).step->save().value();
      ASSERT_TRUE(second.at(rank).step->restore(saved).ok());
      EXPECT_EQ(second.at(rank).step->save().value(), saved);
      std::vector<std::byte> damaged = saved;
      damaged[damaged.size() / 2] ^= std::byte{1};
      EXPECT_EQ(second.at(rank).step->restore(damaged).error().code, ErrorCode::corrupt);
    }
    first.run(4, first_stations(3), 1, 4);
    second.run(4, first_stations(3), 1, 4);
    ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(second, first_stations(3)));
    EXPECT_EQ(first.at(0).arena, second.at(0).arena);
    EXPECT_EQ(first.at(0).step->save().value(), second.at(0).step->save().value());
  }
}

// Of any size and in any kind of value: finite on all ranks, and nothing is lost.
TEST(StepFactors, HugeAndTinyValuesInAllKinds) {
  for (const float times : {1e-38f, 1e-20f, 1e4f, 1e9f, 1e20f, 1e29f, 1e34f, 1e38f}) {
    for (int kind = 0; kind < codec::kValueKindCount; ++kind) {
      for (const Point rest : {codec::kKeepAll, Point{1, ValueKind::q2}}) {
        SCOPED_TRACE(::testing::Message() << times << " in " << name(static_cast<ValueKind>(kind))
                                          << ", rest " << rest.density);
        const Layout layout = small_layout(3);
        FakeNetwork network(3);
        RoundOfMembers rounds(network, layout, 3);
        rounds.set_plan(
            plan_of(layout, Path::split, ranked(2, static_cast<ValueKind>(kind), rest)));
        rounds.gradient = [&](int step, Rank rank, uint32_t tensor, uint64_t element) {
          return tensor == kLarge ? times * gradient_at(step, rank, tensor, element) : 0.0f;
        };
        rounds.run(1, first_stations(3), 1, 1);
        ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
        const bool counted = rounds.at(0).outcome->value().nonfinite > 0;
        const std::vector<double> after = kept_by(rounds, first_stations(3));
        const TensorLayout& known = layout.tensors()[kLarge];
        for (uint64_t i = known.offset; i < known.offset + known.shape.elements(); ++i) {
          ASSERT_TRUE(std::isfinite(after[i]));
          const auto average = static_cast<double>(rounds.at(0).arena[i]);
          ASSERT_TRUE(counted || std::isfinite(average)) << "element " << i;
          double wanted = 0;
          for (const Member& member : rounds.all()) wanted += member.gradient[i];
          if (counted) continue;
          ASSERT_NEAR(after[i] + 3 * average, wanted, 1e-5 * times);
        }
      }
    }
  }
}

// Steps that report curves say what the directions of matrices hold.
TEST(StepFactors, CurvesSayWhatDirectionsHold) {
  const Layout layout = small_layout(2);
  for (const Point point : {Point{1, ValueKind::q4}, ranked(2, ValueKind::q8)}) {
    FakeNetwork network(2);
    RoundOfMembers rounds(network, layout, 2);
    rounds.set_plan(plan_of(layout, Path::split, point));
    rounds.change = [](Member&, RoundSpec& spec) { spec.curves = true; };
    rounds.run(1, first_stations(2), 1, 1);
    ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(2)));
    const std::vector<codec::Curve>& curves = rounds.at(0).outcome->value().curves;
    for (uint32_t part = 0; part < curves.size(); ++part) {
      const bool matrix = layout.rank_max(part) > 0;
      EXPECT_EQ(curves[part].held[0] > 0, matrix) << part;
      for (size_t i = 1; i < curves[part].held.size(); ++i) {
        EXPECT_GE(curves[part].held[i], curves[part].held[i - 1]);
      }
      EXPECT_LE(curves[part].held.back(), curves[part].energy * 1.000001);
    }
  }
}

// What a rank's directions are changes what the factors hold, and nothing else.
TEST(StepFactors, ANewcomerWithOtherDirectionsLosesNothing) {
  const Layout layout = small_layout(3);
  FakeNetwork network(3);
  RoundOfMembers rounds(network, layout, 3);
  rounds.set_plan(plan_of(layout, Path::split, ranked(2, ValueKind::q8)));
  for (uint64_t round = 1; round <= 3; ++round) rounds.run(round, {0, 1}, 1, round);
  const std::vector<double> before = kept_by(rounds, first_stations(3));
  rounds.run(4, first_stations(3), 2, 4);
  ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(3)));
  ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(3), before, 4e-5));
}

}  // namespace
}  // namespace scant::gradient
