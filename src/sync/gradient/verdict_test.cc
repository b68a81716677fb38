// Verdicts: their bytes, and what all ranks conclude from them.
#include "sync/gradient/verdict.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace scant::sync {
namespace {

std::vector<Verdict> alike(size_t ranks, size_t tensors) {
  return std::vector<Verdict>(ranks, Verdict{7, 99, 0, 5, 0, std::vector<bool>(tensors, true)});
}

TEST(Verdict, BytesGiveBackWhatWasWritten) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    Verdict verdict{rng.next(), rng.next(), rng.next(),
                    rng.next(), rng.next(), std::vector<bool>(rng.below(40))};
    for (size_t i = 0; i < verdict.present.size(); ++i) verdict.present[i] = rng.chance(0.5);
    std::vector<std::byte> bytes(verdict_bytes(verdict.present.size()), std::byte{0xff});
    write_verdict(verdict, bytes);
    const Verdict read = read_verdict(bytes, verdict.present.size());
    EXPECT_EQ(read.step, verdict.step);
    EXPECT_EQ(read.plan_hash, verdict.plan_hash);
    EXPECT_EQ(read.nonfinite, verdict.nonfinite);
    EXPECT_EQ(read.parameters_hash, verdict.parameters_hash);
    EXPECT_EQ(read.failure, verdict.failure);
    EXPECT_EQ(read.present, verdict.present);
  }
}

TEST(Verdict, ATensorThatNobodyHasIsNoError) {
  auto verdicts = alike(3, 4);
  for (Verdict& verdict : verdicts) verdict.present[2] = false;
  const auto judged = judge(verdicts, {});
  ASSERT_TRUE(judged.ok());
  EXPECT_EQ(judged.value().present, (std::vector<bool>{true, true, false, true}));
}

TEST(Verdict, ATensorThatSomeLackIsNamedWithItsRanks) {
  auto verdicts = alike(4, 3);
  verdicts[1].present[2] = verdicts[3].present[2] = false;
  const std::vector<std::string> names = {"a", "b", "head.bias"};
  const auto judged = judge(verdicts, {.names = names});
  ASSERT_FALSE(judged.ok());
  EXPECT_EQ(judged.error().code, ErrorCode::mismatch);
  EXPECT_EQ(judged.error().peer, 1);
  EXPECT_EQ(judged.error().message,
            "'head.bias' got no gradient on ranks 1 and 3 in step 7, but did on the other ranks");
  const auto allowed = judge(verdicts, {.missing_as_zeros = true});
  ASSERT_TRUE(allowed.ok());
  EXPECT_TRUE(allowed.value().present[2]);
}

TEST(Verdict, StepsAndPlansMustAgree) {
  auto steps = alike(3, 1);
  steps[2].step = 8;
  EXPECT_EQ(judge(steps, {}).error().message,
            "rank 2 is at step 8 of its gradients, rank 0 at step 7");
  auto plans = alike(3, 1);
  plans[1].plan_hash = 1;
  EXPECT_EQ(judge(plans, {}).error().message, "rank 1 and rank 0 use different plans in step 7");
  EXPECT_EQ(judge(plans, {}).error().code, ErrorCode::mismatch);
}

TEST(Verdict, TheRanksThatDifferFromTheMostAreNamed) {
  auto verdicts = alike(4, 1);
  verdicts[0].parameters_hash = 6;
  const auto judged = judge(verdicts, {});
  ASSERT_FALSE(judged.ok());
  EXPECT_EQ(judged.error().peer, 0);
  EXPECT_EQ(judged.error().message,
            "the parameters of rank 0 differ from those of the other ranks before step 7");
}

TEST(Verdict, AFailureIsToldToAllAndClosedSaysLeast) {
  auto verdicts = alike(3, 1);
  verdicts[0].failure = static_cast<uint64_t>(ErrorCode::closed) + 1;
  EXPECT_EQ(judge(verdicts, {}).error().code, ErrorCode::closed);
  verdicts[2].failure = static_cast<uint64_t>(ErrorCode::corrupt) + 1;
  const auto judged = judge(verdicts, {});
  ASSERT_FALSE(judged.ok());
  EXPECT_EQ(judged.error().code, ErrorCode::corrupt);
  EXPECT_EQ(judged.error().peer, 2);
  EXPECT_EQ(judged.error().message, "step 7 failed on rank 2 (corrupt)");
  verdicts[2].failure = 1000;
  EXPECT_EQ(judge(verdicts, {}).error().code, ErrorCode::corrupt);
}

TEST(Verdict, WhatIsNotFiniteIsAddedUpWithoutOverflow) {
  auto verdicts = alike(3, 1);
  verdicts[0].nonfinite = 3;
  verdicts[2].nonfinite = 4;
  EXPECT_EQ(judge(verdicts, {}).value().nonfinite, 7u);
  verdicts[1].nonfinite = UINT64_MAX;
  EXPECT_EQ(judge(verdicts, {}).value().nonfinite, UINT64_MAX);
}

}  // namespace
}  // namespace scant::sync
