// Owners that change within a round, on a fake exchange whose operations end in any order: whose
// bits they are, what is kept where, what is refused, and rounds that fail after the change.
#include <cstring>
#include <gtest/gtest.h>

#include "gradient/testing/round_of_members.h"

namespace scant::gradient {
namespace {

using testing::expect_mass;
using testing::FakeNetwork;
using testing::first_stations;
using testing::kept_by;
using testing::Member;
using testing::RoundOfMembers;
using testing::small_layout;

std::vector<SliceDuty> drawn_duties(base::Rng& rng, const Layout& layout, int members) {
  std::vector<SliceDuty> duties = duties_for(layout, members);
  for (SliceDuty& duty : duties) {
    duty.owner = static_cast<Rank>(rng.below(static_cast<uint64_t>(members)));
  }
  return duties;
}

FusionPlan small_plan(const Layout& layout, Path path, double density = 1.0,
                      codec::ValueKind values = codec::ValueKind::q4) {
  return uniform(layout, path, density, values, 3000);
}

Layout layout_of_many(int ranks) {
  std::vector<codec::Shape> shapes;
  for (uint64_t i = 0; i < 9; ++i) shapes.push_back({1 + i % 3, 50 + 40 * i});
  return Layout::create(shapes, ranks, {.slice_elements_min = 64}).value();
}

// A buffer for each part, most of them `split`.
FusionPlan plan_of_many(base::Rng& rng, const Layout& layout) {
  FusionPlan plan;
  for (uint32_t part = 0; part < layout.parts().size(); ++part) {
    const Path path = rng.chance(0.8) ? Path::split : static_cast<Path>(rng.below(kPathCount));
    BufferPlan buffer{.first_part = part, .parts = 1, .path = path, .points = {}};
    if (path != Path::all_reduce) buffer.points.resize(1);
    for (PartPlan& points : buffer.points) {
      points.first = {rng.chance(0.5) ? 1.0 : 0.3, codec::ValueKind::q4};
      if (path == Path::split) points.second = {1.0, codec::ValueKind::q8};
    }
    plan.buffers.push_back(std::move(buffer));
  }
  const uint64_t reversed = rng.below(plan.buffers.size() + 1);
  if (reversed != 1) plan.reversed = static_cast<uint32_t>(reversed);
  return plan;
}

void expect_alike_and_well(RoundOfMembers& rounds) {
  for (Member& member : rounds.all()) {
    ASSERT_TRUE(member.outcome) << "station " << member.station << " waits for ever";
    ASSERT_TRUE(member.outcome->ok()) << member.outcome->error().to_string();
    ASSERT_EQ(member.arena, rounds.at(0).arena) << "station " << member.station;
    const std::vector<AveragedBuffer> averaged = member.step->averaged();
    for (size_t i = 0; i < averaged.size(); ++i) {
      const AveragedBuffer first = rounds.at(0).step->averaged()[i];
      ASSERT_TRUE(std::ranges::equal(averaged[i].messages, first.messages,
                                     [](Bytes a, Bytes b) { return std::ranges::equal(a, b); }));
    }
    ASSERT_EQ(member.outcome->value().changed_buffers,
              rounds.at(0).outcome->value().changed_buffers);
  }
}

// Owners' residuals are those of a round's owners, once it has begun.
void expect_owners_alone_keep(RoundOfMembers& rounds) {
  for (Member& member : rounds.all()) {
    const GradientStep& step = *member.step;
    for (uint32_t slice = 0; slice < step.layout().slices().size(); ++slice) {
      if (step.seat().owns(slice)) continue;
      ASSERT_EQ(step.residuals().owner_if_made(slice), nullptr)
          << "station " << member.station << ", slice " << slice;
    }
  }
}

// Buffer by buffer the bits of a round that began with the owners that it has: the last buffers, in
// the order of their turns, have the new ones.
TEST(OwnerChange, ABufferHasTheBitsOfARoundThatBeganWithItsOwners) {
  size_t changed = 0;
  size_t left = 0;
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 2 + static_cast<int>(rng.below(3));
    const Layout layout = layout_of_many(ranks);
    const FusionPlan plan = plan_of_many(rng, layout);
    const std::vector<SliceDuty> others = drawn_duties(rng, layout, ranks);
    const StepOptions options{.verdict_last = rng.chance(0.3)};
    const auto arena_of = [&](const std::vector<SliceDuty>& duties) {
      FakeNetwork network(ranks);
      RoundOfMembers rounds(network, layout, ranks, options);
      rounds.set_plan(plan);
      rounds.duties = duties;
      rounds.run(1, first_stations(ranks), 1, seed);
      return rounds.at(0).arena;
    };
    const std::vector<float> with_first = arena_of({});
    const std::vector<float> with_others = arena_of(others);
    FakeNetwork network(ranks);
    RoundOfMembers rounds(network, layout, ranks, options);
    rounds.set_plan(plan);
    rounds.owner_changes = {others};
    rounds.run(1, first_stations(ranks), 1, seed + 500);
    ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
    uint32_t to_go = rounds.at(0).outcome->value().changed_buffers;
    changed += to_go;
    for (auto turn = static_cast<uint32_t>(plan.buffers.size()); turn-- > 0;) {
      const BufferPlan& buffer = plan.buffers[buffer_at(plan, turn)];
      const PartLayout& first = layout.parts()[buffer.first_part];
      const PartLayout& last = layout.parts()[buffer.first_part + buffer.parts - 1];
      bool differ = false;
      for (uint32_t slice = first.first_slice; slice < last.first_slice + last.slices; ++slice) {
        differ = differ || others[slice].owner != layout.slices()[slice].owner;
      }
      const bool split_and_differ = buffer.path == Path::split && differ;
      const std::vector<float>& wanted = split_and_differ && to_go > 0 ? with_others : with_first;
      if (split_and_differ) to_go > 0 ? static_cast<void>(--to_go) : static_cast<void>(++left);
      const uint64_t begin = layout.arena_offset(first.tensor, first.range);
      const uint64_t end = layout.arena_offset(last.tensor, last.range) + last.range.elements;
      ASSERT_EQ(
          std::memcmp(&wanted[begin], &rounds.at(0).arena[begin], (end - begin) * sizeof(float)), 0)
          << "turn " << turn;
    }
    EXPECT_EQ(to_go, 0u);
  }
  EXPECT_GT(changed, 40u);
  EXPECT_GT(left, 10u);
}

// Rounds with changes and without, one after the other: all that was there is applied or kept, and
// the next round begins with its own owners.
TEST(OwnerChange, NothingIsLostWhateverThePlansAreAndTheOrderIs) {
  size_t changed = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 1 + static_cast<int>(rng.below(5));
    const Layout layout = layout_of_many(ranks);
    FakeNetwork network(ranks);
    RoundOfMembers rounds(network, layout, ranks, {.verdict_last = rng.chance(0.5)});
    const std::vector<Rank> all = first_stations(ranks);
    for (uint64_t round = 1; round <= 5; ++round) {
      rounds.set_plan(rng.chance(0.5) ? random_plan(rng, layout) : plan_of_many(rng, layout));
      rounds.duties.clear();
      if (rng.chance(0.3)) rounds.duties = drawn_duties(rng, layout, ranks);
      rounds.owner_changes.clear();
      for (uint64_t n = rng.below(4); n > 0; --n) {
        rounds.owner_changes.push_back(drawn_duties(rng, layout, ranks));
      }
      const std::vector<double> before = kept_by(rounds, all);
      rounds.begin(round, all, 1, seed * 10 + round);
      ASSERT_NO_FATAL_FAILURE(expect_owners_alone_keep(rounds));
      rounds.drive(seed * 10 + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, all, before, 5e-5));
      changed += rounds.at(0).outcome->value().changed_buffers;
    }
  }
  EXPECT_GT(changed, 200u);
}

// What an owner kept stays with it while another one adds its slices up. It owns them again in the
// next round, or its own gradient takes it in.
TEST(OwnerChange, WhatTheFirstOwnerKeptWaitsForTheNextRound) {
  for (const bool owns_again : {true, false}) {
    const Layout layout = small_layout(2);
    FakeNetwork network(2);
    RoundOfMembers rounds(network, layout, 2);
    rounds.set_plan(small_plan(layout, Path::split, 1.0, codec::ValueKind::q2));
    rounds.run(1, {0, 1}, 1, 1);
    const std::vector<double> owner = rounds.at(1).kept(true);
    std::vector<SliceDuty> duties = duties_for(layout, 2);
    for (SliceDuty& duty : duties) duty.owner = 0;
    rounds.begin(2, {0, 1}, 1, 2);
    for (Member& member : rounds.all()) ASSERT_TRUE(member.step->change_owners(duties).ok());
    rounds.drive(2);
    ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
    EXPECT_GT(rounds.at(0).outcome->value().changed_buffers, 0u);
    Member& member = rounds.at(1);
    EXPECT_EQ(member.kept(true), owner);
    EXPECT_EQ(member.step->seat().duties, duties_for(layout, 2));
    const std::vector<double> worker = member.kept(false);
    if (!owns_again) rounds.duties = duties;
    rounds.begin(3, {0, 1}, 1, 3);
    if (owns_again) {
      EXPECT_EQ(member.kept(true), owner);
      EXPECT_EQ(member.kept(false), worker);
      continue;
    }
    EXPECT_EQ(member.step->residuals().owner_energy(), 0);
    const std::vector<double> now = member.kept(false);
    for (size_t i = 0; i < now.size(); ++i) ASSERT_NEAR(now[i], worker[i] + 2 * owner[i], 1e-6);
  }
}

// Any time is early enough while no member's round is over: after verdicts, too, where buffers of a
// reversed plan have not begun.
TEST(OwnerChange, MayComeAfterTheVerdict) {
  size_t after_verdicts = 0;
  for (uint64_t when = 0; when < 120; ++when) {
    SCOPED_TRACE(::testing::Message() << "when " << when);
    base::Rng rng(when);
    const Layout layout = layout_of_many(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3);
    FusionPlan plan = plan_of_many(rng, layout);
    plan.reversed = static_cast<uint32_t>(plan.buffers.size());
    rounds.set_plan(plan);
    rounds.run(1, {0, 1, 2}, 1, when);
    const std::vector<double> before = kept_by(rounds, {0, 1, 2});
    const std::vector<SliceDuty> duties = drawn_duties(rng, layout, 3);
    bool sent = false;
    rounds.begin(2, {0, 1, 2}, 1, when);
    RoundOfMembers::drive_all(network, {&rounds}, when, [&](uint64_t number) {
      const auto over = [](const Member& member) { return member.step->idle(); };
      if (number != when || std::ranges::any_of(rounds.all(), over)) return;
      sent = std::ranges::all_of(rounds.all(), &Member::verdict_sent);
      for (Member& member : rounds.all()) ASSERT_TRUE(member.step->change_owners(duties).ok());
    });
    ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
    ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, {0, 1, 2}, before, 5e-5));
    if (sent && rounds.at(0).outcome->value().changed_buffers > 0) ++after_verdicts;
  }
  EXPECT_GT(after_verdicts, 5u);
}

TEST(OwnerChange, WhatDoesNotArriveReturnsToWhoSentIt) {
  size_t lost = 0;
  size_t changed = 0;
  StepOptions options;
  options.first_leg = options.second_leg = {.exact = false, .share = 0.5};
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const int ranks = 2 + static_cast<int>(rng.below(3));
    const Layout layout = layout_of_many(ranks);
    FakeNetwork network(ranks);
    network.lose = [&](const Lane&, Rank, Rank, const Operation::Piece& piece) {
      if (rng.chance(0.6)) return std::vector<codec::Range>{};
      ++lost;
      if (rng.chance(0.5)) return std::vector<codec::Range>{piece.range};
      const uint64_t skipped = rng.below(piece.range.elements);
      return std::vector<codec::Range>{
          {piece.range.first + skipped, 1 + rng.below(piece.range.elements - skipped)}};
    };
    RoundOfMembers rounds(network, layout, ranks, options);
    const std::vector<Rank> all = first_stations(ranks);
    for (uint64_t round = 1; round <= 3; ++round) {
      rounds.set_plan(plan_of_many(rng, layout));
      rounds.owner_changes = {drawn_duties(rng, layout, ranks)};
      const std::vector<double> before = kept_by(rounds, all);
      rounds.run(round, all, 1, seed * 7 + round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, all, before, 5e-5));
      changed += rounds.at(0).outcome->value().changed_buffers;
    }
  }
  EXPECT_GT(lost, 200u);
  EXPECT_GT(changed, 50u);
}

// Whatever fails, before the change, in it or after it: records are back, first owners hold what
// they held, and nobody waits.
TEST(OwnerChange, ARoundThatFailsGivesAllBack) {
  size_t by_others = 0;  // averages that were encoded
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    for (const Leg leg : {Leg::first, Leg::second, Leg::owners}) {
      SCOPED_TRACE(::testing::Message() << "seed " << seed << ", leg " << static_cast<int>(leg));
      base::Rng rng(seed);
      const Layout layout = layout_of_many(3);
      FakeNetwork network(3);
      RoundOfMembers rounds(network, layout, 3, {.verdict_last = true});
      rounds.set_plan(plan_of_many(rng, layout));
      rounds.run(1, {0, 1, 2}, 1, seed);
      std::vector<std::vector<double>> worker;
      std::vector<std::vector<double>> owner;
      for (Member& member : rounds.all()) {
        worker.push_back(member.kept(false));
        owner.push_back(member.kept(true));
      }
      rounds.owner_changes = {drawn_duties(rng, layout, 3)};
      network.fail_next(leg, {.code = ErrorCode::io, .message = "the test wants it"});
      rounds.run(2, {0, 1, 2}, 1, seed + 1);
      for (size_t rank = 0; rank < 3; ++rank) {
        const Member& member = rounds.at(static_cast<Rank>(rank));
        ASSERT_TRUE(member.outcome) << "rank " << rank << " waits for ever";
        ASSERT_EQ(member.outcome->error().code, ErrorCode::io);
        EXPECT_TRUE(member.step->idle());
        EXPECT_EQ(member.step->under_way(), 0u);
        const std::vector<double> worker_now = member.kept(false);
        const std::vector<double> owner_now = member.kept(true);
        for (uint32_t n = 0; n < layout.slices().size(); ++n) {
          const SliceLayout& slice = layout.slices()[n];
          const bool of_other = slice.owner != member.station;
          if (of_other && member.step->residuals().owner_if_made(n) != nullptr) ++by_others;
          const uint64_t at = layout.arena_offset(layout.parts()[slice.part].tensor, slice.range);
          bool with = true;
          bool without = true;
          for (uint64_t i = at; i < at + slice.range.elements; ++i) {
            const double more = worker_now[i] - worker[rank][i];
            with = with && std::abs(more - member.gradient[i]) < 1e-5;
            without = without && std::abs(more) < 1e-5;
            ASSERT_NEAR(owner_now[i], owner[rank][i], 1e-5) << "owner, element " << i;
          }
          ASSERT_TRUE(with || without) << "rank " << rank << ", elements from " << at;
        }
      }
      // They go on as members of a later epoch, with the owners of that round.
      rounds.owner_changes.clear();
      const std::vector<double> before = kept_by(rounds, {0, 1, 2});
      rounds.begin(3, {0, 1, 2}, 2, seed);
      ASSERT_NO_FATAL_FAILURE(expect_owners_alone_keep(rounds));
      rounds.drive(seed);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, {0, 1, 2}, before, 5e-5));
    }
  }
  EXPECT_GT(by_others, 100u);
}

TEST(OwnerChange, AMemberThatIsLostEndsTheRoundOfTheOthers) {
  size_t failed = 0;
  for (uint64_t seed = 1; seed <= 80; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const Layout layout = layout_of_many(4);
    FakeNetwork network(4);
    RoundOfMembers rounds(network, layout, 4, {.verdict_last = rng.chance(0.5)});
    rounds.set_plan(plan_of_many(rng, layout));
    rounds.owner_changes = {drawn_duties(rng, layout, 4), drawn_duties(rng, layout, 4)};
    rounds.begin(1, {0, 1, 2, 3}, 1, seed);
    const auto victim = static_cast<Rank>(rng.below(4));
    const uint64_t when = rng.below(60);
    RoundOfMembers::drive_all(network, {&rounds}, seed, [&](uint64_t number) {
      if (number != when) return;
      rounds.at(victim).gone = true;
      network.lose_station(victim);
    });
    std::vector<Rank> left = {0, 1, 2, 3};
    std::erase(left, victim);
    for (const Rank station : left) {
      ASSERT_TRUE(rounds.at(station).outcome) << "station " << station << " waits for ever";
      if (!rounds.at(station).outcome->ok()) ++failed;
    }
    rounds.owner_changes = {drawn_duties(rng, layout, 3)};
    for (SliceDuty& duty : rounds.owner_changes[0]) duty.weight = duties_for(layout, 3)[0].weight;
    rounds.run(2, left, 2, seed);
    for (const Rank station : left) EXPECT_TRUE(rounds.at(station).outcome->ok());
    Member& gone = rounds.at(victim);
    gone.step->abort({.code = ErrorCode::closed, .message = "the test ends"});
    gone.to_come.clear();
    gone.to_finish = gone.gone = false;
    gone.changes_to_come = 0;
    rounds.drive(seed);
    EXPECT_TRUE(gone.step->idle());
  }
  EXPECT_GT(failed, 80u);
}

TEST(OwnerChange, DifferentChangesAreAMismatchOnEveryRank) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const Layout layout = small_layout(3);
    FakeNetwork network(3);
    RoundOfMembers rounds(network, layout, 3);
    rounds.set_plan(small_plan(layout, Path::split));
    rounds.begin(1, {0, 1, 2}, 1, seed);
    for (Member& member : rounds.all()) {
      std::vector<SliceDuty> duties = duties_for(layout, 3);
      duties[3].owner = member.station;
      ASSERT_TRUE(member.step->change_owners(duties).ok());
    }
    rounds.drive(seed);
    for (Member& member : rounds.all()) {
      ASSERT_TRUE(member.outcome && !member.outcome->ok());
      EXPECT_EQ(member.outcome->error().code, ErrorCode::mismatch);
      EXPECT_NE(member.outcome->error().message.find("changed its owners differently"),
                std::string::npos)
          << member.outcome->error().to_string();
    }
  }
}

TEST(OwnerChange, WhatCannotBeIsRefusedByNameAndChangesNothing) {
  const Layout layout = small_layout(2);
  FakeNetwork network(2);
  RoundOfMembers rounds(network, layout, 2);
  rounds.set_plan(small_plan(layout, Path::split));
  const std::vector<SliceDuty> usual = duties_for(layout, 2);
  GradientStep& step = *rounds.at(0).step;
  const auto expect_refused = [&](const std::vector<SliceDuty>& duties, const char* what) {
    const Result<void> refused = step.change_owners(duties);
    ASSERT_FALSE(refused.ok()) << what;
    EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(refused.error().message.find(what), std::string::npos) << refused.error().message;
  };
  expect_refused(usual, "none is under way");
  rounds.begin(1, {0, 1}, 1, 1);
  std::vector<SliceDuty> duties = usual;
  duties.pop_back();
  expect_refused(duties, "duties, the layout has");
  for (const Rank nobody : {-1, 2}) {
    duties = usual;
    duties[2].owner = nobody;
    expect_refused(duties, "slice 2 is none of the 2 members");
  }
  for (const float weight : {0.25f, std::numeric_limits<float>::quiet_NaN()}) {
    duties = usual;
    duties[1].weight = weight;
    expect_refused(duties, "the weight of slice 1");
  }
  rounds.drive(1);
  ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
  EXPECT_EQ(rounds.at(0).outcome->value().changed_buffers, 0u);
  rounds.begin(2, {0, 1}, 1, 2);
  for (Member& member : rounds.all()) {
    for (size_t n = 0; n < GradientStep::kOwnerChangesMax; ++n) {
      ASSERT_TRUE(member.step->change_owners(usual).ok());
    }
  }
  expect_refused(usual, "at most 8 times");
  rounds.drive(2);
  ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
  EXPECT_EQ(rounds.at(0).outcome->value().changed_buffers, 0u) << "the same owners are no others";
  expect_refused(usual, "none is under way");
}

// No buffer of these two paths has an owner.
TEST(OwnerChange, OtherPathsStayAsTheyAre) {
  for (const Path path : {Path::all_reduce, Path::gather}) {
    const Layout layout = small_layout(3);
    std::vector<std::vector<float>> arenas;
    for (const bool changes : {false, true}) {
      FakeNetwork network(3);
      RoundOfMembers rounds(network, layout, 3);
      rounds.set_plan(small_plan(layout, Path::split, 1.0, codec::ValueKind::q2));
      rounds.run(1, {0, 1, 2}, 1, 1);
      rounds.set_plan(small_plan(layout, path));
      base::Rng rng(7);
      if (changes) rounds.owner_changes = {drawn_duties(rng, layout, 3)};
      rounds.run(2, {0, 1, 2}, 1, 2);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds));
      EXPECT_EQ(rounds.at(0).outcome->value().changed_buffers, 0u);
      arenas.push_back(rounds.at(0).arena);
    }
    EXPECT_EQ(arenas[0], arenas[1]);
  }
}

}  // namespace
}  // namespace scant::gradient
