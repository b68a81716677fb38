// Arithmetic of thresholds: credit, corrections, the rows' turns and the histogram.
#include "codec/select/threshold.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numbers>

#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::printed_rng;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint64_t sent_over(ThresholdState& state, double density, uint64_t elements, int steps) {
  uint64_t sent = 0;
  for (int step = 0; step < steps; ++step) {
    const uint64_t now = begin_step(state, density, elements);
    end_step(state, now);
    sent += now;
  }
  return sent;
}

TEST(Credit, FractionsAreCarried) {
  for (const auto& [density, elements, sent] :
       {std::tuple{0.01, 64, 640.0}, {0.001, 1, 1.0}, {0.3, 1, 300.0}, {0.0125, 1001, 12512.5}}) {
    ThresholdState state;
    EXPECT_NEAR(
        static_cast<double>(sent_over(state, density, static_cast<uint64_t>(elements), 1000)), sent,
        1)
        << density << " of " << elements;
  }
}

TEST(Credit, WholeSharesAreSentAtOnce) {
  ThresholdState state;
  for (int step = 0; step < 100; ++step) {
    EXPECT_EQ(begin_step(state, 0.01, 100'000), 1000u);
    end_step(state, 1000);
  }
}

TEST(Credit, WhatIsNotSentIsKeptInPart) {
  ThresholdState state;
  for (int step = 0; step < 50; ++step) {  // nothing passes
    EXPECT_LE(begin_step(state, 0.01, 100'000), 1050u);
    end_step(state, 0);
  }
  EXPECT_EQ(begin_step(state, 0.01, 100'000), 1050u);
  ThresholdState small;
  for (int step = 0; step < 50; ++step) {
    EXPECT_LE(begin_step(small, 0.01, 64), 1u);
    end_step(small, 0);
  }
  EXPECT_EQ(begin_step(small, 0.01, 64), 1u);  // 1.64
}

TEST(Credit, WhatIsSentTooMuchIsPaidBack) {
  ThresholdState state;
  EXPECT_EQ(begin_step(state, 0.01, 10'000), 100u);
  end_step(state, 350);
  EXPECT_EQ(begin_step(state, 0.01, 10'000), 0u);  // of 250 too many 100 count
  end_step(state, 0);
  EXPECT_EQ(begin_step(state, 0.01, 10'000), 100u);
  end_step(state, 130);
  EXPECT_EQ(begin_step(state, 0.01, 10'000), 70u);
}

TEST(Credit, SmallDebtsArePaidInFull) {
  ThresholdState state;
  uint64_t sent = 0;
  for (int step = 0; step < 1000; ++step) {
    const uint64_t wanted = begin_step(state, 0.01, 64);  // 0.64
    const uint64_t more = step % 10 == 0 ? 2 : 0;         // whatever the credit says
    sent += wanted + more;
    end_step(state, wanted + more);
  }
  EXPECT_NEAR(static_cast<double>(sent), 640.0, 4.0);
}

TEST(Credit, NeverMoreThanThereAre) {
  ThresholdState state;
  EXPECT_EQ(begin_step(state, 0.999, 1), 0u);
  end_step(state, 0);
  EXPECT_EQ(begin_step(state, 0.999, 1), 1u);
  state.credit = 1e9;
  EXPECT_EQ(begin_step(state, 0.999, 10), 10u);
  EXPECT_EQ(begin_step(state, 0.5, 0), 0u);
}

// Counts that fall as threshold^-slope: one correction is exact within its reach.
TEST(Correction, ExactOnAPowerLaw) {
  const auto count_at = [](float threshold, double slope) {
    return 1000 * std::pow(static_cast<double>(threshold), -slope);
  };
  for (const float slope : {1.0f, 3.0f, 7.0f, 30.0f}) {
    for (const double wanted : {260.0, 900.0, 1000.0, 1100.0, 3900.0}) {
      const float found = corrected(1.0f, slope, 1000, wanted);
      const double passed = count_at(found, static_cast<double>(slope));
      EXPECT_NEAR(passed / wanted, 1, 1e-4) << "slope " << slope << ", wanted " << wanted;
    }
  }
  EXPECT_EQ(corrected(0.5f, 7.0f, 100, 100), 0.5f);
}

TEST(Correction, AtMostAFactorOfFourInCounts) {
  const float up = corrected(1.0f, 2.0f, 1e6, 100);
  EXPECT_FLOAT_EQ(up, 2.0f);
  EXPECT_FLOAT_EQ(corrected(1.0f, 2.0f, 0, 1e6), 0.5f);
  EXPECT_FLOAT_EQ(corrected(1.0f, 2.0f, 10, 0), 2.0f);
  EXPECT_EQ(corrected(1.0f, 2.0f, 0, 0), 1.0f);
  EXPECT_EQ(corrected(kSmallestMagnitude, 1.0f, 0, 100), kSmallestMagnitude);
}

TEST(Slope, FittedToTwoCounts) {
  for (const double slope : {1.5, 4.0, 7.0, 25.0}) {
    const double ratio = 1.125;
    const double count = 1e5;
    const double above = count * std::pow(ratio, -slope);
    EXPECT_NEAR(static_cast<double>(fitted_slope(count, above, 1.125f, 9.0f)), slope, 1e-4);
  }
  EXPECT_EQ(fitted_slope(1e5, 99'999, 1.125f, 9.0f), 1.0f);  // hardly falls
  EXPECT_EQ(fitted_slope(1e9, 64, 1.125f, 9.0f), 32.0f);     // falls at once
}

TEST(Slope, KeptWhereCountsSayTooLittle) {
  EXPECT_EQ(fitted_slope(1000, 63, 1.125f, 9.0f), 9.0f);
  EXPECT_EQ(fitted_slope(1000, 1000, 1.125f, 9.0f), 9.0f);
  EXPECT_EQ(fitted_slope(100, 1000, 1.125f, 9.0f), 9.0f);
  EXPECT_EQ(fitted_slope(1000, 500, 1.0f, 9.0f), 9.0f);
  EXPECT_EQ(fitted_slope(1000, 500, std::numeric_limits<float>::quiet_NaN(), 9.0f), 9.0f);
}

// Counts of a range whose entries fall as threshold^-slope, the threshold for 1 % being `scale`.
uint64_t power_law_count(double threshold, double scale, double slope, uint64_t elements) {
  return static_cast<uint64_t>(0.01 * static_cast<double>(elements) *
                               std::pow(threshold / scale, -slope));
}

constexpr uint64_t kLearnElements = 100'000'000;

// Residuals grow for a while: thresholds rise by a like factor from step to step.
TEST(Learning, FollowsAThresholdThatMovesSteadily) {
  for (const double growth : {1.05, 0.97, 1.0}) {
    ThresholdState state{.density = 0.01};
    double scale = 1;
    float used = 1.3f;  // a first guess
    for (int step = 0; step < 30; ++step) {
      const uint64_t count = power_law_count(static_cast<double>(used), scale, 7.0, kLearnElements);
      if (step >= 20) {
        EXPECT_NEAR(static_cast<double>(count), 1e6, 5e3) << growth << ", step " << step;
      }
      learn(state, used, count, 1'000'000, kLearnElements);
      scale *= growth;
      used = predicted_threshold(state, 1'000'000, kLearnElements);
    }
    EXPECT_NEAR(static_cast<double>(state.trend), std::log(growth), 1e-3);
  }
}

// Whatever a step was to send, what is learnt stands for the density; credit and debts come on top.
TEST(Learning, AimsAtTheDensityAndPredictsForTheStep) {
  for (const uint64_t wanted : {uint64_t{500'000}, uint64_t{1'000'000}, uint64_t{1'050'000}}) {
    ThresholdState state{.density = 0.01};
    const auto count = power_law_count(1.1, 1, 7.0, kLearnElements);
    learn(state, 1.1f, count, wanted, kLearnElements);
    EXPECT_NEAR(static_cast<double>(state.threshold), 1.0, 1e-5);
    const float next = predicted_threshold(state, wanted, kLearnElements);
    EXPECT_NEAR(
        static_cast<double>(power_law_count(static_cast<double>(next), 1, 7.0, kLearnElements)),
        static_cast<double>(wanted), 1e-4 * static_cast<double>(wanted));
  }
  EXPECT_EQ(predicted_threshold({.density = 0.01}, 100, kLearnElements), 0.0f);
}

TEST(Learning, IsSettledOnlyWhileCountsAreNear) {
  for (const auto& [count, settled] :
       {std::pair{1'000'000, 3u}, {1'012'000, 3u}, {988'000, 3u}, {1'014'000, 0u}, {986'000, 0u}}) {
    ThresholdState state{.density = 0.01, .threshold = 1, .settled = 3};
    learn(state, 1.0f, static_cast<uint64_t>(count), 1'000'000, kLearnElements);
    EXPECT_EQ(state.settled, settled) << count;
  }
}

TEST(Sweep, ForcedEntriesAreAtMostASixtyFourthOfTheSent) {
  for (const double density : {1e-6, 0.001, 0.01, 0.1, 0.25, 0.999}) {
    for (const uint64_t columns : {1u, 3u, 64u, 1000u, 65536u}) {
      const uint64_t steps = sweep_steps(density, columns);
      EXPECT_GE(steps, 32u);
      const double sent_a_row = density * static_cast<double>(columns);
      EXPECT_LE(1.0 / static_cast<double>(steps), sent_a_row / 64 * (1 + 1e-9));
      // And no more steps than that needs.
      if (steps > 32) {
        EXPECT_GE(1.0 / static_cast<double>(steps - 1), sent_a_row / 64 * (1 - 1e-9));
      }
    }
  }
  EXPECT_EQ(sweep_steps(0.01, 0), sweep_steps(0.01, 1));
  EXPECT_GE(sweep_steps(1e-300, 1), uint64_t{1} << 62);
}

// Also when the number of steps changes from step to step: within the largest of them.
TEST(Sweep, EveryRowHasItsTurnInAnySoManySteps) {
  base::Rng rng = printed_rng(51);
  for (int round = 0; round < 100; ++round) {
    const uint64_t rows = 1 + rng.below(round % 2 == 0 ? 50 : 5000);
    const uint64_t steps = 32 + rng.below(round % 3 == 0 ? 10 : 400);
    ThresholdState state;
    std::vector<uint64_t> last(rows);
    uint64_t visits = 0;
    for (uint64_t step = 1; step <= 4 * steps; ++step) {
      const uint64_t now = round % 5 == 0 && step % 2 == 0 ? (steps + 32) / 2 : steps;
      const RowWindow window = take_turns(state, rows, now);
      ASSERT_LE(window.begin, window.end);
      ASSERT_LE(window.end - window.begin, rows / std::min(now, steps) + 2);
      for (uint64_t row = window.begin; row < window.end; ++row, ++visits) {
        ASSERT_LE(step - last[row % rows], steps) << "row " << row % rows << " of " << rows;
        last[row % rows] = step;
      }
    }
    for (const uint64_t step : last) ASSERT_LE(4 * steps - step, steps);
    if (round % 5 != 0) {
      ASSERT_NEAR(static_cast<double>(visits), static_cast<double>(4 * rows), 1.0);
    }
    ASSERT_GE(state.sweeps, 4u);
  }
}

// One sweep in sixteen gives turns: no row waits longer because a step reaches into the next sweep,
// by more or less than the last time.
TEST(Sweep, EveryRowHasItsTurnInOneSweepOfSixteen) {
  constexpr uint32_t kEvery = 16;
  base::Rng rng = printed_rng(52);
  for (int round = 0; round < 60; ++round) {
    const uint64_t rows = 1 + rng.below(round % 2 == 0 ? 50 : 2000);
    const uint64_t steps = 32 + rng.below(100);
    const uint64_t fewer = 32 + rng.below(steps - 31);
    ThresholdState state;
    std::vector<uint64_t> last(rows);
    uint64_t visits = 0;
    const uint64_t total = 3 * kEvery * steps;
    for (uint64_t step = 1; step <= total; ++step) {
      const RowWindow window = take_turns(state, rows, rng.chance(0.5) ? steps : fewer, kEvery);
      ASSERT_LE(window.begin, window.end);
      for (uint64_t row = window.begin; row < window.end; ++row, ++visits) {
        ASSERT_LE(step - last[row % rows], kEvery * steps)
            << "row " << row % rows << " of " << rows;
        last[row % rows] = step;
      }
    }
    for (const uint64_t step : last) ASSERT_LE(total - step, kEvery * steps);
    ASSERT_LE(visits, (state.sweeps / kEvery + 1) * rows);  // nor is one given more
  }
}

TEST(Sweep, RoundingMakesNoSweepLonger) {
  for (const uint64_t rows : {1u, 3u, 10u, 49u}) {
    for (uint64_t steps = 32; steps < 400; ++steps) {
      ThresholdState state;
      for (uint32_t sweep = 1; sweep <= 4; ++sweep) {
        for (uint64_t step = 0; step < steps; ++step)
          static_cast<void>(take_turns(state, rows, steps));
        ASSERT_EQ(state.sweeps, sweep) << rows << " rows, " << steps << " steps";
      }
    }
  }
}

// Also from a state that no step leaves behind.
TEST(Sweep, AWindowIsNeverMoreThanAllRows) {
  constexpr uint64_t kRows = 10;
  for (const double turn :
       {0.0, 9.0, std::nextafter(1.0, 0.0), std::nextafter(10.0, 0.0), 10.0, 1e6}) {
    for (const uint64_t steps : {1u, 2u, 32u}) {
      ThresholdState state;
      state.turn = turn;
      std::vector<int> visits(kRows);
      for (uint64_t step = 0; step < steps; ++step) {
        const RowWindow window = take_turns(state, kRows, steps);
        ASSERT_LT(window.begin, kRows) << turn;
        ASSERT_LE(window.end - window.begin, kRows) << turn;
        for (uint64_t row = window.begin; row < window.end; ++row) ++visits[row % kRows];
      }
      EXPECT_GE(*std::min_element(visits.begin(), visits.end()), 1) << turn;
    }
  }
}

TEST(Sweep, AStepThatEndsWithTheLastRowEndsTheSweep) {
  ThresholdState state;
  static_cast<void>(take_turns(state, 32, 32));
  state.turn = 32 - state.turn;  // as far from the end as one step goes
  static_cast<void>(take_turns(state, 32, 32));
  EXPECT_EQ(state.sweeps, 1u);
  EXPECT_EQ(take_turns(state, 32, 32).begin, 0u);
}

TEST(Sweep, NoRowsHaveNoTurns) {
  ThresholdState state;
  const RowWindow window = take_turns(state, 0, 32);
  EXPECT_EQ(window.begin, window.end);
}

uint64_t passed(std::span<const float> values, float threshold) {
  return static_cast<uint64_t>(std::count_if(values.begin(), values.end(),
                                             [&](float v) { return !(std::abs(v) < threshold); }));
}

TEST(Histogram, PassesWhatIsWantedOfAGaussian) {
  base::Rng rng = printed_rng(52);
  std::vector<float> values(200'000);
  for (float& value : values) {
    const double radius = std::sqrt(-2 * std::log(1 - rng.uniform()));
    value = static_cast<float>(radius * std::cos(2 * std::numbers::pi * rng.uniform()));
  }
  MagnitudeHistogram histogram;
  histogram.add({values.data(), 70'000});
  histogram.add({values.data() + 70'000, 130'000});
  for (const double wanted : {1.0, 20.0, 200.0, 2000.0, 20'000.0, 100'000.0, 199'000.0}) {
    const float threshold = histogram.threshold(wanted);
    const auto count = static_cast<double>(passed(values, threshold));
    const double bin = histogram.near(threshold);
    EXPECT_LE(std::abs(count - wanted), bin) << "wanted " << wanted;
    // Within the bin a line: what is left is the noise of so many draws.
    EXPECT_LE(std::abs(count - wanted), 2 + 2 * std::sqrt(bin)) << "wanted " << wanted;
  }
}

TEST(Histogram, NearCountsItsBinAlone) {
  const std::vector<float> values = {1.0f, -1.003f, 1.0078125f, 0.9999f, 0.0f, -0.0f};
  MagnitudeHistogram histogram;
  histogram.add(values);
  EXPECT_EQ(histogram.near(1.0f), 2u);
  EXPECT_EQ(histogram.near(-1.001f), 2u);
  EXPECT_EQ(histogram.near(1.01f), 1u);
  EXPECT_EQ(histogram.near(0.998f), 1u);
  EXPECT_EQ(histogram.near(0.0f), 2u);
  EXPECT_EQ(histogram.near(2.0f), 0u);
}

// No threshold can tell them apart: it lies in their bin, and near() says how many share it.
TEST(Histogram, AllEqual) {
  const std::vector<float> values(1000, -0.7f);
  MagnitudeHistogram histogram;
  histogram.add(values);
  for (const double wanted : {1.0, 10.0, 500.0, 999.0}) {
    const float threshold = histogram.threshold(wanted);
    EXPECT_NEAR(static_cast<double>(threshold), 0.7, 0.7 / 128) << "wanted " << wanted;
    EXPECT_EQ(histogram.near(threshold), 1000u);
  }
  EXPECT_EQ(passed(values, histogram.threshold(1000)), 1000u);
}

TEST(Histogram, FewerThanWanted) {
  const std::vector<float> values = {3.0f, -1e-3f, 1e-30f};
  MagnitudeHistogram histogram;
  EXPECT_EQ(histogram.threshold(1), kSmallestMagnitude);
  EXPECT_EQ(histogram.count(1.0f), 0);
  EXPECT_EQ(histogram.near(1.0f), 0u);
  histogram.add(values);
  EXPECT_EQ(histogram.threshold(4), kSmallestMagnitude);
  EXPECT_EQ(passed(values, histogram.threshold(3)), 3u);
}

TEST(Histogram, ZerosDoNotPass) {
  std::vector<float> values(1000, 0.0f);
  MagnitudeHistogram zeros;
  zeros.add(values);
  EXPECT_GT(zeros.threshold(10), 0.0f);
  values[3] = 2.0f;
  values[500] = -1e-20f;
  MagnitudeHistogram histogram;
  histogram.add(values);
  EXPECT_EQ(passed(values, histogram.threshold(10)), 2u);
  EXPECT_EQ(passed(values, histogram.threshold(1e6)), 2u);
}

TEST(Histogram, InfinitiesPassAndLeaveAFiniteThreshold) {
  std::vector<float> values(100, 0.5f);
  values[7] = kInfinity;
  values[8] = -kInfinity;
  values[9] = std::numeric_limits<float>::quiet_NaN();
  MagnitudeHistogram histogram;
  histogram.add(values);
  for (const double wanted : {1.0, 2.0, 3.0}) {
    const float threshold = histogram.threshold(wanted);
    EXPECT_TRUE(std::isfinite(threshold));
    EXPECT_EQ(passed(values, threshold), 3u) << "wanted " << wanted;
  }
  EXPECT_EQ(passed(values, histogram.threshold(100)), 100u);
}

TEST(Histogram, Denormals) {
  std::vector<float> values;
  for (int i = 1; i <= 64; ++i) values.push_back(std::ldexp(static_cast<float>(i), -132));
  MagnitudeHistogram histogram;
  histogram.add(values);
  for (const double wanted : {1.0, 16.0, 48.0}) {
    const float threshold = histogram.threshold(wanted);
    EXPECT_GT(threshold, 0.0f);
    EXPECT_LE(std::abs(static_cast<double>(passed(values, threshold)) - wanted),
              histogram.near(threshold));
  }
  MagnitudeHistogram least;
  least.add(std::vector<float>(10, kSmallestMagnitude));
  EXPECT_GE(least.threshold(5), kSmallestMagnitude);
}

}  // namespace
}  // namespace scant::codec
