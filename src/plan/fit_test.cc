// What soundings and periods say of the link and of contention, on made-up numbers.
#include "plan/fit.h"

#include <gtest/gtest.h>
#include <vector>

namespace scant::plan {
namespace {

TEST(FitLink, TakesTheMeanOfTheRanksThatAsked) {
  const SoundingTimes slow{2e-4, 2.2e-3, 2e6, 5.2e-3, 2e6};
  const SoundingTimes fast{0, 0, 0, 0, 0};
  const std::vector<SoundingTimes> by_rank = {slow, slow, fast};
  const LinkRate fitted = fit_link(by_rank, 4, {});
  EXPECT_DOUBLE_EQ(fitted.alpha_s, 2e-4);
  EXPECT_NEAR(fitted.bytes_per_s, 1e9, 1);
  EXPECT_NEAR(fitted.reduced_bytes_per_s, 2e6 / (5.2e-3 - 6 * 2e-4), 1);
  const LinkRate before{1, 2, 3};
  EXPECT_EQ(fit_link(std::vector<SoundingTimes>(4), 4, before).bytes_per_s, 2);
}

TEST(FitLink, WhatMessagesTakeOfTheCores) {
  const SoundingTimes one{2e-4, 2.2e-3, 2e6, 5.2e-3, 2e6, 1e-4, 1.1e-3};
  const LinkRate fitted = fit_link(std::vector<SoundingTimes>(4, one), 4, {});
  EXPECT_DOUBLE_EQ(fitted.cpu_s, 1e-4);
  EXPECT_NEAR(fitted.cpu_s_per_byte, 5e-10, 1e-15);
}

TEST(FitContention, TellsWorkFromComputing) {
  const double per_work = 0.8;
  std::vector<ComputeSample> samples;
  for (const double work : {0.01, 0.05, 0.1}) samples.push_back({0.2 + per_work * work, work, 0});
  const Contention fitted = fit_contention(samples);
  EXPECT_NEAR(fitted.per_work, per_work, 0.15);
  EXPECT_NEAR(fitted.compute_s, 0.2, 0.02);
}

}  // namespace
}  // namespace scant::plan
