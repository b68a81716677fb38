// Rounds in which something goes wrong: operations that fail, members that are lost, elements that
// do not arrive. Every rank gets an error or the same bits, nothing waits for ever, nothing is
// lost.
#include <cstring>
#include <gtest/gtest.h>

#include "gradient/testing/round_of_members.h"

namespace scant::gradient {
namespace {

using testing::FakeNetwork;
using testing::kept_by;
using testing::Member;
using testing::RoundOfMembers;
using testing::small_layout;

const std::vector<Rank> kThree = {0, 1, 2};

FusionPlan small_plan(const Layout& layout, Path path, double density = 1.0,
                      codec::ValueKind values = codec::ValueKind::q4) {
  return uniform(layout, path, density, values, 3000);
}

// A round that nobody can have ended well: records are back, owners are where they were. What was
// not encoded keeps the residual and leaves the gradient out.
void expect_undone(const Member& member, const std::vector<double>& worker,
                   const std::vector<double>& owner) {
  const std::vector<double> worker_now = member.kept(false);
  const std::vector<double> owner_now = member.kept(true);
  const Layout& layout = member.step->layout();
  for (const SliceLayout& slice : layout.slices()) {
    const uint64_t at = layout.arena_offset(layout.parts()[slice.part].tensor, slice.range);
    bool encoded = false;
    for (uint64_t i = at; i < at + slice.range.elements; ++i) {
      encoded = encoded || std::abs(worker_now[i] - worker[i]) > 1e-5;
    }
    for (uint64_t i = at; i < at + slice.range.elements; ++i) {
      const double gradient = encoded ? static_cast<double>(member.gradient[i]) : 0.0;
      ASSERT_NEAR(worker_now[i], worker[i] + gradient, 1e-5) << "worker, element " << i;
      ASSERT_NEAR(owner_now[i], owner[i], 1e-5) << "owner, element " << i;
    }
  }
}

TEST(GradientStepFailure, AFailedLegIsAnErrorOnEveryRankAndTheRecordsReturn) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    for (const Leg leg : {Leg::first, Leg::second, Leg::verdict}) {
      SCOPED_TRACE(::testing::Message() << "seed " << seed << ", leg " << static_cast<int>(leg));
      const Layout layout = small_layout(3);
      FakeNetwork network(3);
      // Verdicts last: whatever fails before them is in them.
      RoundOfMembers rounds(network, layout, 3, {.verdict_last = true});
      rounds.set_plan(small_plan(layout, Path::split));
      rounds.run(1, kThree, 1, seed);
      std::vector<std::vector<double>> worker;
      std::vector<std::vector<double>> owner;
      for (Member& member : rounds.all()) {
        worker.push_back(member.kept(false));
        owner.push_back(member.kept(true));
      }
      network.fail_next(leg, {.code = ErrorCode::io, .message = "the test wants it"});
      rounds.run(2, kThree, 1, seed + 1);
      for (size_t i = 0; i < 3; ++i) {
        const Member& member = rounds.at(static_cast<Rank>(i));
        ASSERT_TRUE(member.outcome) << "rank " << i << " waits for ever";
        ASSERT_FALSE(member.outcome->ok());
        EXPECT_TRUE(member.step->idle());
        EXPECT_EQ(member.step->under_way(), 0u);
        EXPECT_TRUE(member.step->averaged().empty());
        // Where the verdicts themselves did not come, nobody knows what the others do.
        if (leg != Leg::verdict) {
          ASSERT_NO_FATAL_FAILURE(expect_undone(member, worker[i], owner[i]));
        }
      }
    }
  }
}

TEST(GradientStepFailure, AfterAFailedRoundMembersOfALaterEpochGoOn) {
  const Layout layout = small_layout(3);
  FakeNetwork network(3);
  RoundOfMembers rounds(network, layout, 3, {.verdict_last = true});
  rounds.set_plan(small_plan(layout, Path::split, 0.3));
  network.fail_next(Leg::first, {.code = ErrorCode::io, .message = "the test wants it"});
  rounds.run(1, kThree, 1, 1);
  const RoundSpec again{.round = 2, .arena = rounds.at(0).arena, .members = everyone(3, 0)};
  const Result<void> refused = rounds.at(0).step->begin(again, Time{});
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("members of a later epoch than 1"), std::string::npos);
  const std::vector<double> before = kept_by(rounds, kThree);
  rounds.run(2, kThree, 2, 2);
  const std::vector<double> after = kept_by(rounds, kThree);
  for (const Rank rank : kThree) ASSERT_TRUE(rounds.at(rank).outcome->ok());
  for (size_t i = 0; i < after.size(); ++i) {
    double wanted = before[i];
    for (const Member& member : rounds.all()) wanted += member.gradient[i];
    ASSERT_NEAR(after[i] + 3 * rounds.at(0).arena[i], wanted, 2e-5) << i;
  }
}

// Whenever it happens: those who are left end the round with an error, or had all they needed.
TEST(GradientStepFailure, AMemberThatIsLostEndsTheRoundOfTheOthers) {
  size_t failed = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const Layout layout = small_layout(4);
    FakeNetwork network(4);
    RoundOfMembers rounds(network, layout, 4, {.verdict_last = rng.chance(0.5)});
    rounds.set_plan(random_plan(rng, layout));
    rounds.begin(1, {0, 1, 2, 3}, 1, seed);
    const auto victim = static_cast<Rank>(rng.below(4));
    const uint64_t when = rng.below(60);
    RoundOfMembers::drive_all(network, {&rounds}, seed, [&](uint64_t number) {
      if (number != when) return;
      rounds.at(victim).gone = true;
      network.lose_station(victim);
    });
    for (Member& member : rounds.all()) {
      if (member.station == victim) continue;
      ASSERT_TRUE(member.outcome) << "station " << member.station << " waits for ever";
      if (member.outcome->ok()) continue;
      ++failed;
      const ErrorCode code = member.outcome->error().code;
      EXPECT_TRUE(code == ErrorCode::peer_lost || code == ErrorCode::closed) << name(code);
    }
    // The others go on without it.
    std::vector<Rank> left = {0, 1, 2, 3};
    std::erase(left, victim);
    rounds.run(2, left, 2, seed);
    for (const Rank station : left) {
      ASSERT_TRUE(rounds.at(station).outcome);
      EXPECT_TRUE(rounds.at(station).outcome->ok());
    }
    rounds.at(victim).step->abort({.code = ErrorCode::closed, .message = "the test ends"});
    rounds.at(victim).to_come.clear();
    rounds.at(victim).to_finish = false;
    rounds.at(victim).gone = false;
    rounds.drive(seed);
    EXPECT_TRUE(rounds.at(victim).step->idle());
  }
  EXPECT_GT(failed, 60u);
}

TEST(GradientStepFailure, AnAbortedRoundEndsHereAndOnTheOthers) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3);
    rounds.set_plan(small_plan(layout, Path::split));
    rounds.begin(1, kThree, 1, seed);
    RoundOfMembers::drive_all(network, {&rounds}, seed, [&](uint64_t number) {
      if (number != 3) return;
      Member& member = rounds.at(1);
      member.step->abort({.code = ErrorCode::invalid_argument, .message = "enough"});
      member.to_come.clear();
      member.to_finish = false;
    });
    ASSERT_TRUE(rounds.at(1).outcome);
    EXPECT_EQ(rounds.at(1).outcome->error().message, "enough");
    for (const Rank other : {0, 2}) {
      ASSERT_TRUE(rounds.at(other).outcome);
      EXPECT_EQ(rounds.at(other).outcome->error().code, ErrorCode::closed);
    }
    std::vector<Leg> legs;
    for (const auto& [station, lane] : network.cancelled) {
      if (station == 1) legs.push_back(lane.leg);
    }
    EXPECT_EQ(legs, (std::vector<Leg>{Leg::first, Leg::second, Leg::verdict, Leg::owners,
                                      Leg::basis_first, Leg::basis_second}));
  }
}

StepOptions bounded() {
  StepOptions options;
  options.first_leg = {.exact = false, .share = 0.5};
  options.second_leg = {.exact = false, .share = 0.5};
  return options;
}

// Whole pieces and stretches of them, on both legs.
TEST(GradientStepFailure, WhatDoesNotArriveReturnsToWhoSentIt) {
  size_t lost = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 2 + static_cast<int>(rng.below(3));
    const Layout layout = small_layout(ranks);
    FakeNetwork network(ranks);
    network.lose = [&](const Lane&, Rank, Rank, const Operation::Piece& piece) {
      if (rng.chance(0.6)) return std::vector<codec::Range>{};
      ++lost;
      if (rng.chance(0.5)) return std::vector<codec::Range>{piece.range};
      const uint64_t skipped = rng.below(piece.range.elements);
      const uint64_t count = 1 + rng.below(piece.range.elements - skipped);
      return std::vector<codec::Range>{{piece.range.first + skipped, count}};
    };
    RoundOfMembers rounds(network, layout, ranks, bounded());
    const std::vector<Rank> all = everyone(ranks, 0).stations;
    for (uint64_t round = 1; round <= 4; ++round) {
      rounds.set_plan(random_plan(rng, layout));  // gather and all_reduce stay exact
      const std::vector<double> before = kept_by(rounds, all);
      rounds.run(round, all, 1, seed * 7 + round);
      for (const Rank rank : all) {
        const Member& member = rounds.at(rank);
        ASSERT_TRUE(member.outcome) << "rank " << rank << " waits for ever";
        ASSERT_TRUE(member.outcome->ok()) << member.outcome->error().to_string();
        ASSERT_EQ(std::memcmp(member.arena.data(), rounds.at(0).arena.data(),
                              member.arena.size() * sizeof(float)),
                  0)
            << "rank " << rank;
        EXPECT_TRUE(member.step->averaged().empty()) << "ranks have different messages";
      }
      const std::vector<double> after = kept_by(rounds, all);
      for (size_t i = 0; i < after.size(); ++i) {
        double wanted = before[i];
        for (const Member& member : rounds.all()) wanted += member.gradient[i];
        ASSERT_NEAR(after[i] + ranks * static_cast<double>(rounds.at(0).arena[i]), wanted, 5e-5)
            << "round " << round << ", element " << i;
      }
    }
  }
  EXPECT_GT(lost, 200u);
}

TEST(GradientStepFailure, MissingElementsThatCannotBeAreCorrupt) {
  const auto outcome_of = [](const StepOptions& options, const std::function<void(Missing&)>& bend,
                             Path path = Path::split) {
    const Layout layout = small_layout(2);
    FakeNetwork network(2);
    RoundOfMembers rounds(network, layout, 2, options);
    rounds.set_plan(small_plan(layout, path));
    GradientStep& step = *rounds.at(0).step;
    const RoundSpec spec{.round = 9, .arena = rounds.at(0).arena, .members = everyone(2, 0)};
    EXPECT_TRUE(step.begin(spec, Time{}).ok());
    for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor)
      step.ready(tensor, Time{});
    while (const auto job = step.next()) {
      static_cast<void>(step.run(*job));
      step.finished(*job, Time{}, Time{});
    }
    std::optional<Transmit> leg = step.poll_transmit(Time{});
    EXPECT_TRUE(leg && leg->ticket.leg == Leg::first);
    Missing one{.round = 9, .leg = Leg::first, .sender = 1, .receiver = 0};
    const Rank owner = path == Path::split ? 0 : 1;
    while (layout.slices()[one.slice].owner != owner) ++one.slice;
    one.elements = {layout.slices()[one.slice].range};
    bend(one);
    step.on_done(leg->ticket, {.result = {}, .missing = {one}}, Time{});
    step.abort({.code = ErrorCode::closed, .message = "well"});
    while (step.under_way() > 0) step.on_done(leg->ticket, {}, Time{});
    return step.take_outcome(Time{})->error();
  };
  EXPECT_EQ(outcome_of(bounded(), [](Missing&) {}).message, "well");
  const std::vector<std::function<void(Missing&)>> wrong = {
      [](Missing& one) { one.round = 8; },
      [](Missing& one) { one.leg = Leg::second; },
      [](Missing& one) { one.sender = 2; },
      [](Missing& one) { one.receiver = -1; },
      [](Missing& one) { one.receiver = 1; },
      [](Missing& one) { one.slice = 1u << 30; },
      [](Missing& one) { one.elements[0].first += 1; },
      [](Missing& one) { one.elements.push_back(one.elements[0]); }};
  for (size_t i = 0; i < wrong.size(); ++i) {
    EXPECT_EQ(outcome_of(bounded(), wrong[i]).code, ErrorCode::corrupt) << i;
  }
  const Error exact = outcome_of({}, [](Missing&) {});
  EXPECT_EQ(exact.code, ErrorCode::corrupt);
  EXPECT_EQ(exact.peer, 1);
  const Error gathered = outcome_of(
      bounded(), [](Missing& one) { std::swap(one.sender, one.receiver); }, Path::gather);
  EXPECT_EQ(gathered.code, ErrorCode::corrupt);
  EXPECT_EQ(gathered.peer, 0);
}

}  // namespace
}  // namespace scant::gradient
