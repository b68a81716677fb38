// A step through failures of allocations, at places that a seed draws: all ranks get an error or
// none does, nothing waits for ever, and nothing of the gradients is lost.
#include <cmath>
#include <gtest/gtest.h>

#include "base/buffer.h"
#include "base/testing/replaced_new.h"
#include "gradient/testing/round_of_members.h"

namespace {

// Of the calls into one member's step. One thread.
bool armed = false;
uint64_t allocations = 0;
uint64_t failing = UINT64_MAX;  // the one that fails

bool persists = false;  // and all that follow

bool fails() {
  if (!armed) return false;
  const uint64_t number = allocations++;
  return number == failing || (persists && number > failing);
}

}  // namespace

bool scant::base::testing::allocation_fails() { return fails(); }

namespace scant::gradient {
namespace {

using testing::FakeNetwork;
using testing::kept_by;
using testing::Member;
using testing::RoundOfMembers;
using testing::small_layout;

constexpr int kRanks = 3;
const std::vector<Rank> kAll = {0, 1, 2};

enum class Fails { once, from_there_on };
struct Case {
  Path path = Path::split;
  double density = 1.0;
  bool verdict_last = false;
  bool changes_owners = false;  // within the step
  uint16_t rank = 0;            // of matrices; with density 0 they send no rest
};

FusionPlan plan_without_factors(const Layout& layout, Path path, double density) {
  return uniform(layout, path, density, codec::ValueKind::q4, 3000);
}

FusionPlan plan_of(const Layout& layout, const Case& of) {
  if (of.rank == 0) return plan_without_factors(layout, of.path, of.density);
  codec::Point point = codec::kKeepAll;
  if (of.density > 0) point = {of.density, codec::ValueKind::q4};
  point.rank = of.rank;
  point.factors = codec::ValueKind::q4;
  return uniform_plan({.path = of.path,
                       .point = point,
                       .buffer_bytes = 3000,
                       .first_buffer_bytes = 100,
                       .small_elements = 0},
                      layout);
}

std::vector<SliceDuty> next_owners(const Layout& layout) {
  std::vector<SliceDuty> duties = duties_for(layout, kRanks);
  for (SliceDuty& duty : duties) duty.owner = (duty.owner + 1) % kRanks;
  return duties;
}

// The second of two steps; the first is `split`, so that workers and owners have residuals. Counts
// what `victim` allocates.
struct Trial {
  Trial(uint64_t seed, const Case& of)
      : layout(small_layout(kRanks)),
        network(kRanks),
        rounds(network, layout, kRanks, {.verdict_last = of.verdict_last}) {
    const double density = of.density > 0 ? of.density : 1.0;
    rounds.set_plan(plan_without_factors(layout, Path::split, density));
    rounds.run(1, kAll, 1, seed);
    rounds.set_plan(plan_of(layout, of));
    if (of.changes_owners) rounds.owner_changes = {next_owners(layout)};
    for (Member& member : rounds.all()) {
      worker.push_back(member.kept(false));
      owner.push_back(member.kept(true));
    }
    sum = kept_by(rounds, kAll);
  }
  void run(Rank victim, uint64_t place, Fails how, uint64_t seed) {
    allocations = 0;
    failing = place;
    persists = how == Fails::from_there_on;
    base::set_allocation_gate(&base::testing::buffer_may_allocate);
    rounds.wrap = [victim](Rank station, const std::function<void()>& call) {
      armed = station == victim;
      call();
      armed = false;
    };
    rounds.run(2, kAll, 1, seed);
    rounds.wrap = nullptr;
    base::set_allocation_gate(nullptr);
    failing = UINT64_MAX;
    persists = false;
  }

  const Layout layout;
  FakeNetwork network;
  RoundOfMembers rounds;
  std::vector<std::vector<double>> worker;
  std::vector<std::vector<double>> owner;
  std::vector<double> sum;  // of both, over all ranks
};

// After an error: of each slice either nothing happened, or its gradient was taken in, never a part
// of it. `gather` takes in what an owner kept, too, and so does a matrix without a rest.
void expect_whole(Trial& trial, const Case& of) {
  for (size_t rank = 0; rank < kAll.size(); ++rank) {
    const Member& member = trial.rounds.at(kAll[rank]);
    const std::vector<double> worker = member.kept(false);
    const std::vector<double> owner = member.kept(true);
    for (const SliceLayout& slice : trial.layout.slices()) {
      const uint64_t at =
          trial.layout.arena_offset(trial.layout.parts()[slice.part].tensor, slice.range);
      bool untouched = true;
      bool taken = true;
      for (uint64_t i = at; i < at + slice.range.elements; ++i) {
        const double before = trial.worker[rank][i] + kRanks * trial.owner[rank][i];
        const double now = worker[i] + kRanks * owner[i];
        const auto gradient = static_cast<double>(member.gradient[i]);
        untouched = untouched && std::abs(now - before) < 2e-5;
        taken = taken && std::abs(now - before - gradient) < 2e-5;
        if (of.path == Path::gather || of.density == 0) continue;
        ASSERT_NEAR(owner[i], trial.owner[rank][i], 1e-5) << "owner " << rank << ", element " << i;
      }
      ASSERT_TRUE(untouched || taken) << "rank " << rank << ", elements from " << at;
    }
  }
}

// Without one: all have the same average, and it and what is kept hold all that there was.
void expect_averaged(Trial& trial) {
  const std::vector<double> after = kept_by(trial.rounds, kAll);
  const std::vector<float>& average = trial.rounds.at(0).arena;
  for (const Member& member : trial.rounds.all()) ASSERT_EQ(member.arena, average);
  for (size_t i = 0; i < after.size(); ++i) {
    double wanted = trial.sum[i];
    for (const Member& member : trial.rounds.all()) wanted += member.gradient[i];
    ASSERT_NEAR(after[i] + kRanks * static_cast<double>(average[i]), wanted, 5e-5) << i;
  }
}

size_t errors_of(RoundOfMembers& rounds) {
  size_t count = 0;
  for (Member& member : rounds.all()) {
    EXPECT_TRUE(member.outcome) << "rank " << member.station << " waits for ever";
    EXPECT_TRUE(member.step->idle());
    EXPECT_EQ(member.step->under_way(), 0u);
    count += member.outcome && member.outcome->ok() ? 0 : 1;
  }
  return count;
}

void expect_errors_that_name_memory(Trial& trial, Rank victim) {
  for (Member& member : trial.rounds.all()) {
    const Error error = member.outcome->error();
    // Where the victim could not even begin, the others' lanes were cancelled.
    const bool cancelled = member.station != victim && error.code == ErrorCode::closed;
    EXPECT_TRUE(error.code == ErrorCode::resource || cancelled) << error.to_string();
  }
}

struct Counts {
  size_t failed = 0;   // on all ranks
  size_t went_on = 0;  // on all ranks, with what was set aside
  size_t alone = 0;    // some ranks have an error, some not
};

void try_place(const Case& of, Fails how, base::Rng& rng, Counts& counts) {
  const uint64_t seed = rng.next();
  const auto victim = static_cast<Rank>(rng.below(kRanks));
  Trial counted(seed, of);
  counted.run(victim, UINT64_MAX, Fails::once, seed);
  ASSERT_EQ(errors_of(counted.rounds), 0u);
  const uint64_t all = allocations;
  const uint64_t place = rng.below(all);
  SCOPED_TRACE(::testing::Message() << "seed " << seed << ", rank " << victim << ", allocation "
                                    << place << " of " << all);
  Trial trial(seed, of);
  trial.run(victim, place, how, seed);
  const size_t errors = errors_of(trial.rounds);
  ASSERT_FALSE(::testing::Test::HasFailure());
  ++(errors == 0 ? counts.went_on : errors == kRanks ? counts.failed : counts.alone);
  if (errors == 0) return expect_averaged(trial);
  ASSERT_FALSE(trial.rounds.at(victim).outcome->ok());
  if (errors == kRanks) expect_errors_that_name_memory(trial, victim);
  // What an all_reduce took in is not kept; nor can what finds no memory at all be given back.
  if (errors == kRanks && how == Fails::once && of.path != Path::all_reduce) {
    ASSERT_NO_FATAL_FAILURE(expect_whole(trial, of));
  }
  // All can go on, as members of a later epoch.
  trial.rounds.owner_changes.clear();
  trial.rounds.run(3, kAll, 2, seed);
  ASSERT_EQ(errors_of(trial.rounds), 0u);
}

Counts try_places(const Case& of, Fails how, int places) {
  base::Rng rng(static_cast<uint64_t>(places), static_cast<uint64_t>(of.path));
  Counts counts;
  for (int n = 0; n < places && !::testing::Test::HasFailure(); ++n) {
    try_place(of, how, rng, counts);
  }
  ::testing::Test::RecordProperty("failed", static_cast<int>(counts.failed));
  ::testing::Test::RecordProperty("went_on", static_cast<int>(counts.went_on));
  ::testing::Test::RecordProperty("alone", static_cast<int>(counts.alone));
  return counts;
}

// An all_reduce allocates next to nothing once a step has begun, so no place may give an error.
void expect_all_or_none(const Case& of, int places) {
  const Counts counts = try_places(of, Fails::once, places);
  EXPECT_EQ(counts.alone, 0u);
  EXPECT_EQ(counts.failed + counts.went_on, static_cast<size_t>(places));
  if (of.path != Path::all_reduce) {
    EXPECT_GE(counts.failed, static_cast<size_t>(places / 5));
  }
}

// A thousand places with the verdict in the middle of the step, as it is by default.
TEST(Allocation, AFailureIsAnErrorOnEveryRankOrOnNone) {
  expect_all_or_none({Path::split, 1.0}, 400);
}
TEST(Allocation, LikewiseOfSparseRecords) { expect_all_or_none({Path::split, 0.1}, 300); }
TEST(Allocation, LikewiseWhereAllGatherAll) { expect_all_or_none({Path::gather, 1.0}, 100); }
TEST(Allocation, LikewiseWhereAllGatherSparse) { expect_all_or_none({Path::gather, 0.1}, 100); }
TEST(Allocation, LikewiseOfWhatIsReduced) { expect_all_or_none({Path::all_reduce, 1.0}, 100); }

// Factors with a dense rest, with a sparse one, and alone.
TEST(Allocation, LikewiseOfFactors) {
  for (const double density : {1.0, 0.1, 0.0}) {
    SCOPED_TRACE(::testing::Message() << "density " << density);
    expect_all_or_none({.path = Path::split, .density = density, .rank = 3}, 300);
    expect_all_or_none({.path = Path::gather, .density = density, .rank = 3}, 100);
  }
}
TEST(Allocation, LikewiseOfFactorsWhereOwnersChange) {
  for (const double density : {1.0, 0.0}) {
    expect_all_or_none({.path = Path::split, .density = density, .changes_owners = true, .rank = 3},
                       200);
  }
}

// A member that has no memory for other owners keeps them from changing, and the step goes on.
TEST(Allocation, LikewiseWhereOwnersChange) {
  expect_all_or_none({.path = Path::split, .density = 1.0, .changes_owners = true}, 400);
  expect_all_or_none({.path = Path::split, .density = 0.1, .changes_owners = true}, 300);
}

// Of what a member allocates to begin a change the n-th fails, before its verdict or after it.
// False when it allocates no more than that.
bool fails_while_owners_change(bool after_verdicts, uint64_t place, bool& changed) {
  constexpr uint64_t kSeed = 1;  // in its order some buffers have begun nowhere after the verdicts
  Trial trial(kSeed, {});
  FusionPlan plan;
  for (uint32_t part = 0; part < trial.layout.parts().size(); ++part) {
    plan.buffers.push_back({.first_part = part, .parts = 1, .path = Path::split, .points = {{}}});
  }
  plan.reversed = static_cast<uint32_t>(plan.buffers.size());
  trial.rounds.set_plan(plan);
  bool begun = false;
  const auto change = [&](uint64_t) {
    const auto sent = [](const Member& member) { return member.verdict_sent; };
    if (begun || std::ranges::all_of(trial.rounds.all(), sent) != after_verdicts) return;
    begun = true;
    for (Member& member : trial.rounds.all()) {
      ASSERT_TRUE(member.step->change_owners(next_owners(trial.layout)).ok());
    }
    allocations = 0;
    failing = place;
    base::set_allocation_gate(&base::testing::buffer_may_allocate);
    trial.rounds.wrap = [](Rank station, const std::function<void()>& call) {
      armed = station == 1;
      call();
      armed = false;
    };
    trial.rounds.pump(trial.rounds.at(1));
    trial.rounds.wrap = nullptr;
    base::set_allocation_gate(nullptr);
    failing = UINT64_MAX;
  };
  trial.rounds.begin(2, kAll, 1, kSeed);
  RoundOfMembers::drive_all(trial.network, {&trial.rounds}, kSeed, change);
  EXPECT_TRUE(begun);
  EXPECT_EQ(errors_of(trial.rounds), 0u);
  if (::testing::Test::HasFailure()) return false;
  expect_averaged(trial);
  changed = trial.rounds.at(1).outcome->value().changed_buffers > 0;
  return allocations > place;
}

TEST(Allocation, OwnersStayWhereAMemberHasNoMemoryForOthers) {
  for (const bool after_verdicts : {false, true}) {
    uint64_t place = 0;
    bool changed = false;
    while (fails_while_owners_change(after_verdicts, place, changed)) {
      EXPECT_FALSE(changed) << "place " << place;
      ++place;
    }
    EXPECT_TRUE(changed) << "without a failure";
    EXPECT_GT(place, 10u);
  }
}

// With all legs held back and verdicts last nothing but the lane of the change tells the others.
TEST(Allocation, NobodyWaitsInAChangeForAMemberThatHasFailed) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    Trial trial(seed, {.verdict_last = true, .changes_owners = true});
    trial.rounds.begin(2, kAll, 1, seed);
    Member& failed = trial.rounds.at(1);
    failed.changes_to_come = 0;
    failing = 0;
    persists = true;
    trial.rounds.wrap = [&](Rank station, const std::function<void()>& call) {
      armed = station == 1 && !failed.step->failed();
      call();
      armed = false;
    };
    trial.rounds.drive(seed);
    failing = UINT64_MAX;
    persists = false;
    ASSERT_EQ(errors_of(trial.rounds), 3u);
    expect_errors_that_name_memory(trial, 1);
  }
}

TEST(Allocation, WithTheVerdictLastMostFailuresAreErrors) {
  const std::vector<Case> cases = {
      {.density = 1.0, .verdict_last = true},
      {.density = 0.1, .verdict_last = true},
      {.density = 0.1, .verdict_last = true, .rank = 3},
      {.density = 0.0, .verdict_last = true, .rank = 3},
  };
  for (const Case& of : cases) {
    const Counts counts = try_places(of, Fails::once, 200);
    EXPECT_EQ(counts.alone, 0u);
    EXPECT_GT(counts.failed, 100u);
  }
}

// Where nothing is ever free again a rank may fail alone, after its verdict; nobody waits for it.
TEST(Allocation, WithoutAnyMemoryFromThereOnNobodyWaits) {
  const Counts counts = try_places({Path::split, 0.1}, Fails::from_there_on, 200);
  EXPECT_EQ(counts.went_on, 0u);
  EXPECT_GT(counts.failed, 50u);
  const Case factors{.path = Path::split, .density = 0.1, .rank = 3};
  EXPECT_EQ(try_places(factors, Fails::from_there_on, 200).went_on, 0u);
}

}  // namespace
}  // namespace scant::gradient
