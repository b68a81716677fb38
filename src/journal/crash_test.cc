// The crash-point simulator: a journal is written, taken up and taken back while the power goes, or
// the process is killed, at each operation on the disk in turn. Whatever is found then is what was
// written, nothing that was acknowledged is missing, and the journal goes on from there.
#include <gtest/gtest.h>
#include <set>
#include <string>

#include "journal/testing/crash_training.h"

namespace scant::journal {
namespace {

using testing::Restart;
using testing::Training;
using testing::Truth;
using testing::verify;
using Operation = SimulatedDisk::Operation;

constexpr uint64_t kSeed = 20261122;
constexpr uint64_t kSeeds = 6;  // power cuts at each operation

// A job's whole life: bases named at once and while steps go on, segments that fill, a restart that
// goes on, one that takes steps back to the newest base and one to an older.
Result<void> play_all(SimulatedDisk& disk, Truth& truth) {
  struct Life {
    size_t exact;
    const char* script;
  };
  for (const Life& life : {Life{0, "bzeeseeeesebeseezeesbz"}, Life{0, "eeseeebzeese"},
                           Life{1, "eesbezes"}, Life{2, "eesees"}, Life{1, "eebzees"}}) {
    Training training(disk, truth);
    if (Result<void> begun = training.begin(life.exact); !begun) return begun;
    if (Result<void> played = training.play(life.script); !played) return played;
  }
  return {};
}

// A run that is cut at `operation`, and what the folder then held.
struct Cut {
  SimulatedDisk disk;
  Truth truth;
  explicit Cut(uint64_t operation) {
    disk.cut_power_at(operation);
    const Result<void> played = play_all(disk, truth);
    EXPECT_EQ(played.ok(), operation == 0) << (played ? "" : played.error().to_string());
  }
};

// The journal goes on from what was found, is cut a second time, and goes on to an end.
void go_on(SimulatedDisk& disk, Truth& truth, base::Rng& rng) {
  const size_t exact = rng.below(3);
  const char* script = rng.chance(0.5) ? "eesebesz" : "bzeese";
  // Often while it takes the journal up.
  disk.cut_power_at(disk.operations() + 1 + rng.below(rng.chance(0.5) ? 8 : 60));
  Training second(disk, truth);
  Result<void> went = second.begin(exact);
  if (went) went = second.play(script);
  const bool off = disk.is_off();
  ASSERT_TRUE(went.ok() || off) << went.error().to_string();
  if (rng.chance(0.8)) {
    disk.restart(rng);
    ASSERT_EQ(verify(disk, truth, Restart::power), "") << "second, by power";
  } else {
    disk.restart_process();
    ASSERT_EQ(verify(disk, truth, Restart::killed), "") << "second, killed";
  }
  Training third(disk, truth);
  went = third.begin();
  ASSERT_TRUE(went.ok()) << went.error().to_string();
  went = third.play("eebzesbeesze");
  ASSERT_TRUE(went.ok()) << went.error().to_string();
  ASSERT_EQ(verify(disk, truth, Restart::killed), "") << "third";
}

// The newest base damaged: the one before it and its log give the same step.
void lose_newest_base(SimulatedDisk& disk, const Truth& truth, base::Rng& rng) {
  const auto contents = look(disk);
  ASSERT_TRUE(contents.ok());
  const auto& bases = contents.value().bases;
  ASSERT_GE(bases.size(), 2U);
  const std::string model = bases.front().folder + "/model";
  const auto sum = disk.sum(model);
  ASSERT_TRUE(sum.ok());
  ASSERT_TRUE(disk.flip_bit(model, rng.below(sum.value().bytes * 8)));
  ASSERT_EQ(verify(disk, truth, Restart::killed, true), "") << "the newest base damaged";
  const auto after = look(disk);
  ASSERT_TRUE(after.ok());
  ASSERT_EQ(after.value().problems.size(), 1U);
  ASSERT_NE(after.value().problems[0].find(bases.front().folder), std::string::npos);
}

TEST(Crash, WithoutOneEverythingIsFound) {
  Cut all(0);
  EXPECT_EQ(verify(all.disk, all.truth, Restart::killed), "");
  std::set<Operation> kinds(all.disk.done().begin(), all.disk.done().end());
  for (const Operation kind :
       {Operation::append, Operation::sync, Operation::create, Operation::make_folder,
        Operation::rename, Operation::remove, Operation::sync_file, Operation::sync_folder}) {
    EXPECT_TRUE(kinds.contains(kind)) << static_cast<int>(kind);
  }
  base::Rng rng(kSeed);
  lose_newest_base(all.disk, all.truth, rng);
}

TEST(Crash, AtEachOperationThePowerGoes) {
  const uint64_t operations = Cut(0).disk.operations();
  std::printf("%llu operations\n", static_cast<unsigned long long>(operations));
  for (uint64_t operation = 1; operation <= operations; ++operation) {
    for (uint64_t seed = kSeed; seed < kSeed + kSeeds; ++seed) {
      SCOPED_TRACE("operation " + std::to_string(operation) + ", seed " + std::to_string(seed));
      Cut cut(operation);
      base::Rng rng(seed, operation);
      cut.disk.restart(rng);
      cut.truth.appended = cut.truth.durable;
      ASSERT_EQ(verify(cut.disk, cut.truth, Restart::power), "");
      go_on(cut.disk, cut.truth, rng);
      if (::testing::Test::HasFatalFailure()) return;
      lose_newest_base(cut.disk, cut.truth, rng);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Crash, AtEachOperationTheProcessIsKilled) {
  const uint64_t operations = Cut(0).disk.operations();
  for (uint64_t operation = 1; operation <= operations; ++operation) {
    for (uint64_t seed = kSeed; seed < kSeed + kSeeds; ++seed) {
      SCOPED_TRACE("operation " + std::to_string(operation) + ", seed " + std::to_string(seed));
      Cut cut(operation);
      cut.disk.restart_process();
      ASSERT_EQ(verify(cut.disk, cut.truth, Restart::killed), "");
      base::Rng rng(seed, operation);
      go_on(cut.disk, cut.truth, rng);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace scant::journal
