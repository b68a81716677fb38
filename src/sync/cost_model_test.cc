// The choices that the cost model makes on known links, and how it finds a link that it was told
// wrong.
#include "sync/cost_model.h"

#include <gtest/gtest.h>
#include <vector>

#include "base/rng.h"
#include "sync/schedule.h"

namespace scant::sync {
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

TEST(CostModel, ChoosesTheLeastPrediction) {
  const CostModel model(kGigabit);
  for (const OpKind kind :
       {OpKind::all_reduce, OpKind::reduce, OpKind::broadcast, OpKind::all_gather,
        OpKind::reduce_scatter, OpKind::all_to_all, OpKind::barrier}) {
    for (int size = 2; size < 20; ++size) {
      for (uint64_t bytes = 1; bytes < (uint64_t{1} << 30); bytes *= 8) {
        const double chosen = model.predict_s(kind, model.choose(kind, size, bytes), size, bytes);
        for (const Algorithm other : algorithms_for(kind)) {
          EXPECT_LE(chosen, model.predict_s(kind, other, size, bytes));
        }
      }
    }
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

TEST(CostModel, MeasuresNothingFromNothing) {
  const CostModel model(kGigabit);
  EXPECT_EQ(model.measured().alpha_s, kGigabit.alpha_s);
  EXPECT_EQ(model.measured().beta_s_per_byte, kGigabit.beta_s_per_byte);
}

}  // namespace
}  // namespace scant::sync
