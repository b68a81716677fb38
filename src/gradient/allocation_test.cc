// A step through failures of allocations, at places that a seed draws: every rank gets an error or
// none does, nothing waits for ever, and all that was sent of a failed step is back where it was.
#include <cstdlib>
#include <gtest/gtest.h>
#include <new>

#include "gradient/testing/round_of_members.h"

namespace {

// Of the calls into one member's step. One thread.
bool armed = false;
uint64_t allocations = 0;
uint64_t failing = UINT64_MAX;  // the one that fails

void* allocate(size_t size) {
  if (armed && allocations++ == failing) throw std::bad_alloc();
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(size_t size) { return allocate(size); }
void* operator new[](size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace scant::gradient {
namespace {

using testing::FakeNetwork;
using testing::Member;
using testing::RoundOfMembers;
using testing::small_layout;

constexpr int kRanks = 3;
const std::vector<Rank> kAll = {0, 1, 2};

// The second of two steps, the first with the same plan; counts what `victim` allocates in it.
struct Trial {
  Trial(uint64_t seed, Path path, double density, bool verdict_last)
      : layout(small_layout(kRanks)),
        network(kRanks),
        rounds(network, layout, kRanks, {.verdict_last = verdict_last}) {
    rounds.set_plan(uniform(layout, path, density, codec::ValueKind::q4, 3000));
    rounds.run(1, kAll, 1, seed);
    for (Member& member : rounds.all()) {
      worker.push_back(member.kept(false));
      owner.push_back(member.kept(true));
    }
  }
  void run(Rank victim, uint64_t place, uint64_t seed) {
    allocations = 0;
    failing = place;
    rounds.wrap = [victim](Rank station, const std::function<void()>& call) {
      armed = station == victim;
      call();
      armed = false;
    };
    rounds.run(2, kAll, 1, seed);
    rounds.wrap = nullptr;
    failing = UINT64_MAX;
  }

  const Layout layout;
  FakeNetwork network;
  RoundOfMembers rounds;
  std::vector<std::vector<double>> worker;
  std::vector<std::vector<double>> owner;
};

// Of each slice either nothing happened, or its gradient was taken in: never a part of it.
void expect_whole(Trial& trial) {
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
        const double before = trial.worker[rank][i];
        const auto gradient = static_cast<double>(member.gradient[i]);
        untouched = untouched && std::abs(worker[i] - before) < 1e-5;
        taken = taken && std::abs(worker[i] - before - gradient) < 1e-5;
        ASSERT_NEAR(owner[i], trial.owner[rank][i], 1e-5) << "owner " << rank << ", element " << i;
      }
      ASSERT_TRUE(untouched || taken) << "rank " << rank << ", elements from " << at;
    }
  }
}

size_t count_of(bool ok, RoundOfMembers& rounds) {
  size_t count = 0;
  for (Member& member : rounds.all()) count += member.outcome && member.outcome->ok() == ok ? 1 : 0;
  return count;
}

void try_places(Path path, double density, bool verdict_last, int places) {
  base::Rng rng(static_cast<uint64_t>(places), static_cast<uint64_t>(path));
  size_t failed = 0;
  for (int n = 0; n < places; ++n) {
    const uint64_t seed = rng.next();
    const auto victim = static_cast<Rank>(rng.below(kRanks));
    Trial counted(seed, path, density, verdict_last);
    counted.run(victim, UINT64_MAX, seed);
    ASSERT_EQ(count_of(true, counted.rounds), size_t{kRanks});
    const uint64_t place = rng.below(allocations);
    SCOPED_TRACE(::testing::Message() << "seed " << seed << ", rank " << victim << ", allocation "
                                      << place << " of " << allocations);
    Trial trial(seed, path, density, verdict_last);
    trial.run(victim, place, seed);
    for (Member& member : trial.rounds.all()) {
      ASSERT_TRUE(member.outcome) << "rank " << member.station << " waits for ever";
      EXPECT_EQ(member.step->under_way(), 0u);
    }
    const size_t errors = count_of(false, trial.rounds);
    if (errors == 0) continue;  // what was tried once more
    ++failed;
    ASSERT_FALSE(trial.rounds.at(victim).outcome->ok());
    EXPECT_EQ(trial.rounds.at(victim).outcome->error().code, ErrorCode::resource);
    if (verdict_last && errors == kRanks) {
      ASSERT_NO_FATAL_FAILURE(expect_whole(trial));
    }
    // All can go on, as members of a later epoch.
    trial.rounds.run(3, kAll, 2, seed);
    ASSERT_EQ(count_of(true, trial.rounds), size_t{kRanks});
  }
  EXPECT_GT(failed, static_cast<size_t>(places) / 2);
}

TEST(Allocation, AFailureBeforeTheVerdictIsAnErrorOnEveryRank) {
  try_places(Path::split, 1.0, true, 500);
}
TEST(Allocation, LikewiseOfSparseRecords) { try_places(Path::split, 0.1, true, 150); }
TEST(Allocation, LikewiseWhereAllGatherAll) { try_places(Path::gather, 1.0, true, 150); }
TEST(Allocation, LikewiseWithTheVerdictInTheMiddle) { try_places(Path::split, 1.0, false, 200); }

}  // namespace
}  // namespace scant::gradient
