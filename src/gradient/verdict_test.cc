// Verdicts: their bytes, and what all ranks conclude from them.
#include "gradient/verdict.h"

#include <algorithm>
#include <gtest/gtest.h>

#include "base/rng.h"

namespace scant::gradient {
namespace {

std::vector<Verdict> alike(size_t ranks, size_t tensors) {
  return std::vector<Verdict>(ranks, Verdict{.step = 7,
                                             .plan_hash = 99,
                                             .parameters_hash = 5,
                                             .members_hash = 3,
                                             .present = std::vector<bool>(tensors, true),
                                             .not_finite = std::vector<bool>(tensors)});
}

TEST(Verdict, BytesGiveBackWhatWasWritten) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const size_t tensors = rng.below(40);
    Verdict verdict{.version = rng.next(),
                    .step = rng.next(),
                    .plan_hash = rng.next(),
                    .nonfinite = rng.next(),
                    .parameters_hash = rng.next(),
                    .failure = rng.next(),
                    .members_hash = rng.next(),
                    .samples = rng.next(),
                    .residual_energy = rng.uniform() * 1e300,
                    .present = std::vector<bool>(tensors),
                    .not_finite = std::vector<bool>(tensors)};
    for (size_t i = 0; i < tensors; ++i) {
      verdict.present[i] = rng.chance(0.5);
      verdict.not_finite[i] = rng.chance(0.5);
    }
    std::vector<std::byte> bytes(verdict_bytes(verdict.present.size()), std::byte{0xff});
    write_verdict(verdict, bytes);
    const Verdict read = read_verdict(bytes, verdict.present.size());
    EXPECT_EQ(read.version, verdict.version);
    EXPECT_EQ(read.members_hash, verdict.members_hash);
    EXPECT_EQ(read.samples, verdict.samples);
    EXPECT_EQ(read.residual_energy, verdict.residual_energy);
    EXPECT_EQ(read.step, verdict.step);
    EXPECT_EQ(read.plan_hash, verdict.plan_hash);
    EXPECT_EQ(read.nonfinite, verdict.nonfinite);
    EXPECT_EQ(read.parameters_hash, verdict.parameters_hash);
    EXPECT_EQ(read.failure, verdict.failure);
    EXPECT_EQ(read.present, verdict.present);
    EXPECT_EQ(read.not_finite, verdict.not_finite);
  }
}

TEST(Opening, WhatDiffersIsNamed) {
  const Verdict own{.step = 7, .plan_hash = 9, .members_hash = 3};
  const auto compared = [&](const Verdict& other) {
    const Result<void> outcome = compare_openings(std::vector<Verdict>{own, other});
    return outcome ? std::string() : outcome.error().message;
  };
  EXPECT_EQ(compared(own), "");
  Verdict other = own;
  other.step = 8;
  EXPECT_NE(compared(other).find("rank 1 is at step 8"), std::string::npos);
  other = own;
  other.plan_hash = 10;
  EXPECT_NE(compared(other).find("different plans in step 7"), std::string::npos);
  other = own;
  other.members_hash = 4;
  EXPECT_NE(compared(other).find("different members in step 7"), std::string::npos);
  other = own;
  other.version = 3;
  EXPECT_NE(compared(other).find("verdicts of version 3"), std::string::npos);
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

TEST(Verdict, VersionsAreComparedBeforeAllElse) {
  EXPECT_EQ(alike(1, 1)[0].version, 2u);
  auto verdicts = alike(3, 1);
  verdicts[2].version = 3;
  verdicts[1].step = 99;  // may mean something else there
  const auto judged = judge(verdicts, {});
  ASSERT_FALSE(judged.ok());
  EXPECT_EQ(judged.error().code, ErrorCode::mismatch);
  EXPECT_EQ(judged.error().peer, 2);
  EXPECT_EQ(judged.error().message,
            "rank 2 sends verdicts of version 3, rank 0 of version 2: install one version of Scant "
            "on all ranks");
}

TEST(Verdict, DifferentMembersAreNamed) {
  auto verdicts = alike(4, 1);
  verdicts[3].members_hash = 4;
  const auto judged = judge(verdicts, {});
  ASSERT_FALSE(judged.ok());
  EXPECT_EQ(judged.error().code, ErrorCode::mismatch);
  EXPECT_EQ(judged.error().peer, 3);
  EXPECT_EQ(judged.error().message, "rank 3 and rank 0 have different members in step 7");
}

TEST(Verdict, EveryRankLearnsWhatEachKeepsAndCounted) {
  auto verdicts = alike(3, 1);
  for (size_t rank = 0; rank < 3; ++rank) {
    verdicts[rank].residual_energy = 0.5 * static_cast<double>(rank);
    verdicts[rank].samples = 10 * rank;
  }
  const auto judged = judge(verdicts, {});
  ASSERT_TRUE(judged.ok());
  ASSERT_EQ(judged.value().accounts.size(), 3u);
  EXPECT_EQ(judged.value().accounts[2].residual_energy, 1.0);
  EXPECT_EQ(judged.value().accounts[2].samples, 20u);
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

TEST(Verdict, WhatIsNotFiniteIsNamedWithItsRanks) {
  auto verdicts = alike(4, 5);
  EXPECT_TRUE(judge(verdicts, {}).value().not_finite.empty());
  verdicts[1].not_finite[3] = verdicts[3].not_finite[3] = verdicts[0].not_finite[4] = true;
  verdicts[2].present[4] = false;
  verdicts[2].not_finite[4] = true;  // of a gradient that it says it has not
  const auto judged = judge(verdicts, {.missing_as_zeros = true});
  ASSERT_TRUE(judged.ok());
  const std::vector<NotFinite>& found = judged.value().not_finite;
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].tensor, 3u);
  EXPECT_EQ(found[0].ranks, (std::vector<Rank>{1, 3}));
  EXPECT_EQ(found[1].tensor, 4u);
  EXPECT_EQ(found[1].ranks, (std::vector<Rank>{0}));
}

// Whatever stands in them, and however many bits the last byte of a row has to spare.
TEST(Verdict, AnyBytesAreReadAndJudged) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const size_t tensors = rng.below(20);
    std::vector<Verdict> verdicts;
    for (int rank = 0; rank < 3; ++rank) {
      std::vector<std::byte> bytes(verdict_bytes(tensors));
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.below(256));
      std::fill_n(bytes.begin(), 24, std::byte{1});  // one version, one step, one plan
      std::fill_n(bytes.begin() + 48, 8, std::byte{1});
      if (rng.chance(0.5)) std::fill_n(bytes.begin() + 32, 16, std::byte{0});
      verdicts.push_back(read_verdict(bytes, tensors));
      EXPECT_EQ(verdicts.back().present.size(), tensors);
      EXPECT_EQ(verdicts.back().not_finite.size(), tensors);
    }
    const auto judged = judge(verdicts, {.missing_as_zeros = true});
    if (!judged.ok()) continue;
    for (const NotFinite& one : judged.value().not_finite) {
      EXPECT_LT(one.tensor, tensors);
      EXPECT_FALSE(one.ranks.empty());
    }
  }
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
}  // namespace scant::gradient
