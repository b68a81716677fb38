// The choices that the cost model makes on known links, and how it finds a link that it was told
// wrong.
#include "collective/schedules/cost_model.h"

#include <bit>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <utility>

#include "base/rng.h"
#include "collective/schedules/schedule.h"

namespace scant::collective {
namespace {

constexpr CostParameters kGigabit{100e-6, 8e-9, 1.0 / 8e9};
constexpr CostParameters kLoopback{20e-6, 0.5e-9, 1.0 / 8e9};

TEST(CostModel, SmallVectorsTakeFewStepsAndLargeOnesFewBytes) {
  for (const CostParameters& link : {kGigabit, kLoopback}) {
    const CostModel model(link);
    for (const int size : {2, 3, 4, 8}) {
      const Algorithm small = model.choose(OpKind::all_reduce, size, 64);
      EXPECT_TRUE(small == Algorithm::direct || small == Algorithm::recursive_doubling)
          << name(small);
      const Algorithm large = model.choose(OpKind::all_reduce, size, 64 << 20);
      EXPECT_TRUE(large == Algorithm::ring || large == Algorithm::halving_doubling)
          << name(large) << size;
    }
    EXPECT_EQ(model.choose(OpKind::broadcast, 8, 64), Algorithm::direct);
    EXPECT_EQ(model.choose(OpKind::broadcast, 8, 64 << 20), Algorithm::ring);
    EXPECT_EQ(model.choose(OpKind::all_reduce, 3, 64 << 20),
              Algorithm::ring);  // folding would move more
  }
}

TEST(CostModel, ChoosesTheLeastPredictionAndAQuarterMoreForCrossingPartners) {
  const CostModel model(kGigabit);
  const auto cost = [&](OpKind kind, Algorithm algorithm, int size, uint64_t bytes) {
    const double predicted = model.predict_s(kind, algorithm, size, bytes);
    if (algorithm != Algorithm::halving_doubling) return predicted;
    const double core = std::bit_floor(static_cast<unsigned>(size));
    const double sent = 2 * (core - 1) / core + (core < size ? 2 : 0);
    return predicted + 0.25 * kGigabit.beta_s_per_byte * sent * static_cast<double>(bytes);
  };
  for (const OpKind kind :
       {OpKind::all_reduce, OpKind::reduce, OpKind::broadcast, OpKind::all_gather,
        OpKind::reduce_scatter, OpKind::all_to_all, OpKind::exchange, OpKind::barrier}) {
    for (int size = 2; size < 20; ++size) {
      for (uint64_t bytes = 1; bytes < (uint64_t{1} << 30); bytes *= 8) {
        const double chosen = cost(kind, model.choose(kind, size, bytes), size, bytes);
        for (const Algorithm other : algorithms_for(kind)) {
          EXPECT_LE(chosen, cost(kind, other, size, bytes) * (1 + 1e-12));
        }
      }
    }
  }
}

// Coefficients as docs/collectives.md (Choice) has them, for six ranks: l = 2, L = 3, C = 4, f = 1.
TEST(CostModel, PredictsTheTable) {
  struct Row {
    OpKind kind;
    Algorithm algorithm;
    double steps;
    double bytes;
    double combined;
  };
  constexpr uint64_t kBytes = 1200;
  constexpr Row kRows[] = {
      {OpKind::all_reduce, Algorithm::direct, 2, 6000, 6000},
      {OpKind::all_reduce, Algorithm::recursive_doubling, 4, 4800, 3600},
      {OpKind::all_reduce, Algorithm::halving_doubling, 6, 4200, 2100},
      {OpKind::all_reduce, Algorithm::ring, 10, 2000, 1000},
      {OpKind::reduce, Algorithm::direct, 2, 6000, 6000},
      {OpKind::reduce, Algorithm::tree, 3, 3600, 3600},
      {OpKind::reduce, Algorithm::ring, 5, 6000, 1200},
      {OpKind::reduce_scatter, Algorithm::direct, 2, 1000, 1000},
      {OpKind::reduce_scatter, Algorithm::ring, 5, 1000, 1000},
      {OpKind::all_gather, Algorithm::direct, 2, 1000, 0},
      {OpKind::all_gather, Algorithm::recursive_doubling, 3, 1000, 1200},
      {OpKind::all_gather, Algorithm::ring, 5, 1000, 0},
      {OpKind::broadcast, Algorithm::direct, 2, 6000, 0},
      {OpKind::broadcast, Algorithm::tree, 3, 3600, 0},
      {OpKind::broadcast, Algorithm::ring, 5, 6000, 0},
      {OpKind::gather, Algorithm::direct, 2, 1000, 0},
      {OpKind::scatter, Algorithm::direct, 2, 1000, 0},
      {OpKind::all_to_all, Algorithm::direct, 2, 1000, 0},
      {OpKind::exchange, Algorithm::direct, 2, 1000, 0},
      {OpKind::barrier, Algorithm::recursive_doubling, 3, 0, 0},
  };
  for (const Row& row : kRows) {
    SCOPED_TRACE(std::string(name(row.kind)) + " by " + name(row.algorithm));
    const auto predicted = [&](const CostParameters& with) {
      return CostModel(with).predict_s(row.kind, row.algorithm, 6, kBytes);
    };
    EXPECT_DOUBLE_EQ(predicted({1, 0, 0}), row.steps);
    EXPECT_DOUBLE_EQ(predicted({0, 1, 0}), row.bytes);
    EXPECT_DOUBLE_EQ(predicted({0, 0, 1}), row.combined);
    EXPECT_EQ(CostModel(kGigabit).predict_s(row.kind, row.algorithm, 1, kBytes), 0);
  }
}

TEST(CostModel, GathersSmallPartsOfManyRanksByDoubling) {
  for (const CostParameters& link : {kGigabit, kLoopback}) {
    const CostModel model(link);
    EXPECT_EQ(model.choose(OpKind::all_gather, 4, 64), Algorithm::direct);
    EXPECT_EQ(model.choose(OpKind::all_gather, 16, 1024), Algorithm::recursive_doubling);
    // Packing costs more than the steps that it saves.
    EXPECT_EQ(model.choose(OpKind::all_gather, 16, 64 << 20), Algorithm::direct);
  }
}

// Runs as a true link would make them, each slowed by up to 30 % and one in ten by a late peer.
void learn(CostModel& model, const CostModel& truth, uint64_t seed, int runs) {
  base::Rng rng(seed);
  for (int i = 0; i < runs; ++i) {
    const uint64_t bytes = uint64_t{1} << (8 + rng.below(17));
    const Algorithm algorithm = model.choose(OpKind::all_reduce, 4, bytes);
    const double late = rng.chance(0.1) ? 0.05 : 0;
    const double seconds =
        truth.predict_s(OpKind::all_reduce, algorithm, 4, bytes) * (1 + 0.3 * rng.uniform()) + late;
    model.observe(OpKind::all_reduce, algorithm, 4, bytes, seconds);
  }
}

TEST(CostModel, RecoversFromAWrongPrior) {
  constexpr uint64_t kSeed = 5;
  SCOPED_TRACE(kSeed);
  for (const auto& [prior, link] :
       {std::pair{kLoopback, kGigabit}, std::pair{kGigabit, kLoopback}}) {
    CostModel model(prior);
    const CostModel truth(link);
    for (int round = 0; round < 4; ++round) {
      learn(model, truth, kSeed + static_cast<uint64_t>(round), 128);
      model.set_agreed(model.measured());
    }
    EXPECT_NEAR(model.agreed().beta_s_per_byte / link.beta_s_per_byte, 1.1, 0.25);
    EXPECT_NEAR(model.agreed().alpha_s / link.alpha_s, 1.1, 0.35);
    for (uint64_t bytes = 64; bytes < (uint64_t{1} << 27); bytes *= 2) {
      const double chosen =
          truth.predict_s(OpKind::all_reduce, model.choose(OpKind::all_reduce, 4, bytes), 4, bytes);
      const double best =
          truth.predict_s(OpKind::all_reduce, truth.choose(OpKind::all_reduce, 4, bytes), 4, bytes);
      EXPECT_LE(chosen, best * 1.15) << bytes << " bytes";
    }
  }
}

TEST(CostModel, NoticesALinkThatBecameSlow) {
  CostModel model(kLoopback);
  learn(model, CostModel(kLoopback), 1, 500);
  learn(model, CostModel(kGigabit), 2, 3000);
  EXPECT_GT(model.measured().beta_s_per_byte, kGigabit.beta_s_per_byte / 2);
}

constexpr uint64_t kMebibyte = 1 << 20;

// One run that takes `slower` times what the link needs.
void run(CostModel& model, const CostParameters& link, OpKind kind, Algorithm algorithm,
         uint64_t bytes, double slower = 1) {
  const double seconds = CostModel(link).predict_s(kind, algorithm, 4, bytes);
  model.observe(kind, algorithm, 4, bytes, seconds * slower);
}

void run_rings(CostModel& model, const CostParameters& link, uint64_t bytes, int times,
               double slower = 1) {
  for (int i = 0; i < times; ++i)
    run(model, link, OpKind::all_reduce, Algorithm::ring, bytes, slower);
}

bool equal(const CostParameters& x, const CostParameters& y) {
  return x.alpha_s == y.alpha_s && x.beta_s_per_byte == y.beta_s_per_byte &&
         x.gamma_s_per_byte == y.gamma_s_per_byte;
}

TEST(CostModel, LearnsOnlyFromRunsWhoseEveryMemberWorksToTheEnd) {
  for (const OpKind kind : {OpKind::broadcast, OpKind::reduce, OpKind::gather, OpKind::scatter,
                            OpKind::all_to_all, OpKind::exchange, OpKind::send, OpKind::recv}) {
    CostModel model(kLoopback);
    run(model, kGigabit, kind, algorithms_for(kind).front(), kMebibyte);
    EXPECT_TRUE(equal(model.measured(), kLoopback)) << name(kind);
  }
  for (const OpKind kind : {OpKind::all_reduce, OpKind::all_gather, OpKind::reduce_scatter}) {
    CostModel model(kLoopback);
    run(model, kGigabit, kind, Algorithm::ring, 0);  // a barrier in truth
    EXPECT_TRUE(equal(model.measured(), kLoopback)) << name(kind);
    run(model, kGigabit, kind, Algorithm::ring, kMebibyte);
    EXPECT_GT(model.measured().beta_s_per_byte, 2 * kLoopback.beta_s_per_byte) << name(kind);
  }
  CostModel model(kLoopback);
  run(model, kGigabit, OpKind::barrier, Algorithm::recursive_doubling, 0);
  EXPECT_GT(model.measured().alpha_s, 2 * kLoopback.alpha_s);
  EXPECT_EQ(model.measured().gamma_s_per_byte, kLoopback.gamma_s_per_byte);
}

TEST(CostModel, IgnoresRunsThatTookNoTimeOrHadNoPeers) {
  CostModel model(kLoopback);
  for (const double seconds : {0.0, -1.0, std::numeric_limits<double>::quiet_NaN()})
    model.observe(OpKind::all_reduce, Algorithm::ring, 4, kMebibyte, seconds);
  model.observe(OpKind::all_reduce, Algorithm::ring, 1, kMebibyte, 1.0);
  EXPECT_TRUE(equal(model.measured(), kLoopback));
}

// Where measuring and agreeing lead to when nothing else happens: the prior has no say any more.
double settled_beta(CostModel model) {
  for (int round = 0; round < 32; ++round) model.set_agreed(model.measured());
  return model.agreed().beta_s_per_byte;
}

TEST(CostModel, OneLateRunChangesNextToNothing) {
  CostModel model(kGigabit);
  run_rings(model, kGigabit, 16 * kMebibyte, 1);
  run_rings(model, kGigabit, 16 * kMebibyte, 1, 1000);
  const double ratio = model.measured().beta_s_per_byte / kGigabit.beta_s_per_byte;
  EXPECT_GT(ratio, 1.05);  // the run was not lost either
  EXPECT_LT(ratio, 1.07);
}

TEST(CostModel, FollowsALinkSixteenTimesSlowerAfter46Runs) {
  CostParameters link = kGigabit;
  link.gamma_s_per_byte = 0;
  CostParameters slow = link;
  slow.beta_s_per_byte *= 16;
  CostModel model(link);
  const auto ratio = [&] { return settled_beta(model) / link.beta_s_per_byte; };
  run_rings(model, link, 256 * kMebibyte, 1);
  run_rings(model, slow, 256 * kMebibyte, 45);
  EXPECT_NEAR(ratio(), 15.3, 0.1);
  run_rings(model, slow, 256 * kMebibyte, 1);
  EXPECT_NEAR(ratio(), 16, 0.05);
  run_rings(model, slow, 256 * kMebibyte, 100);
  EXPECT_NEAR(ratio(), 16, 0.05);
  // Back at once: the faster run replaces the envelope.
  run_rings(model, link, 256 * kMebibyte, 1);
  EXPECT_NEAR(ratio(), 1, 0.01);
}

// Runs of one magnitude share an envelope though one has almost twice the bytes of another: none
// may pass for slow or fast by its length.
TEST(CostModel, ComparesRunsOfOneMagnitudePerPredictedSecond) {
  for (const bool long_first : {false, true}) {
    CostModel model(kGigabit);
    for (int i = 0; i < 64; ++i) {
      const bool is_long = (i % 2 == 0) == long_first;
      run_rings(model, kGigabit, is_long ? 2 * kMebibyte - 4 : kMebibyte, 1);
      EXPECT_NEAR(model.measured().beta_s_per_byte / kGigabit.beta_s_per_byte, 1, 1e-6) << i;
      EXPECT_NEAR(model.measured().alpha_s / kGigabit.alpha_s, 1, 1e-6) << i;
    }
  }
}

// An envelope of one length says one thing of the link, later runs of another length the opposite.
TEST(CostModel, EnvelopesOfLongAgoFade) {
  const CostParameters slow = {kGigabit.alpha_s, 4 * kGigabit.beta_s_per_byte,
                               kGigabit.gamma_s_per_byte};
  const auto ratio_after = [&](int later_runs) {
    CostModel model(kGigabit);
    run_rings(model, kGigabit, 64 * kMebibyte, 1);
    run_rings(model, slow, 256 * kMebibyte, later_runs);
    return settled_beta(model) / kGigabit.beta_s_per_byte;
  };
  const double both = ratio_after(255);
  EXPECT_GT(both, 1.1);
  EXPECT_LT(both, 2.5);
  EXPECT_EQ(ratio_after(1), both);  // nothing fades before half a life has passed
  double before = both;
  for (int half_lives = 1; half_lives <= 8; ++half_lives) {
    const double now = ratio_after(256 * half_lives);
    EXPECT_GT(now, before) << half_lives;
    before = now;
  }
  EXPECT_NEAR(ratio_after(16 * 256), 4, 0.05);
}

// After 64 half-lives too, when a doubled weight would not fit a word.
TEST(CostModel, FadedEnvelopesStayFaded) {
  CostModel model(kGigabit);
  run_rings(model, kLoopback, kMebibyte, 1);
  run_rings(model, kGigabit, 64 * kMebibyte, 64 * 256);
  EXPECT_NEAR(model.measured().beta_s_per_byte / kGigabit.beta_s_per_byte, 1, 0.01);
}

TEST(CostModel, MeasuresNothingFromNothing) {
  const CostModel model(kGigabit);
  EXPECT_EQ(model.measured().alpha_s, kGigabit.alpha_s);
  EXPECT_EQ(model.measured().beta_s_per_byte, kGigabit.beta_s_per_byte);
}

}  // namespace
}  // namespace scant::collective
