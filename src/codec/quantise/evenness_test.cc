// Evenness in ranges that are not scanned as a whole: blocks have thresholds of their own, and the
// density holds all the same.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using testing::make;
using testing::many_gaussians;
using testing::step;

constexpr uint64_t kSeed = 20261123;
constexpr uint64_t kBlock = 65536;
constexpr uint64_t kBlocks = 72;  // more than 2^22 elements
constexpr uint64_t kElements = kBlocks * kBlock;
constexpr double kWanted = 0.01 * static_cast<double>(kElements);

// Blocks whose sizes differ by a factor of up to eight.
std::vector<float> uneven_blocks(const std::vector<float>& base, uint64_t t) {
  const auto begin = base.begin() + static_cast<ptrdiff_t>(64 * t);
  std::vector<float> gradient(begin, begin + static_cast<ptrdiff_t>(kElements));
  for (uint64_t i = 0; i < kElements; ++i) gradient[i] *= static_cast<float>(1 + i / kBlock % 8);
  return gradient;
}

// The largest count of a block by the smallest.
double spread(const std::vector<float>& decoded) {
  double least = HUGE_VAL;
  double most = 0;
  for (auto block = decoded.begin(); block < decoded.end(); block += kBlock) {
    const auto count =
        static_cast<double>(std::count_if(block, block + kBlock, [](float v) { return v != 0; }));
    least = std::min(least, count);
    most = std::max(most, count);
  }
  return most / std::max(least, 1.0);
}

TEST(Evenness, HoldsTheDensityInOnePass) {
  Workspace workspace;
  constexpr uint64_t kSteps = 20;
  const auto base = many_gaussians(kElements + 64 * kSteps, kSeed, 1);
  for (const float evenness : {0.5f, 1.0f}) {
    Encoder encoder =
        make({kBlocks, kBlock}, {.residual = ResidualKind::none, .evenness = evenness});
    double last = 0;  // of the last ten steps
    for (uint64_t t = 0; t < kSteps; ++t) {
      const auto stepped = step(encoder, uneven_blocks(base, t), {0.01, ValueKind::f32}, workspace);
      const auto count = static_cast<double>(stepped.report.entries);
      EXPECT_NEAR(count / kWanted, 1.0, 0.05) << evenness << ", step " << t;
      last += t >= kSteps - 10 ? count : 0;
      if (t + 1 == kSteps && evenness == 1.0f) {
        EXPECT_LT(spread(stepped.decoded), 1.2);
      }
    }
    EXPECT_NEAR(last / (10 * kWanted), 1.0, 0.01) << evenness;
  }
}

// Half of the way is half of the way in thresholds too: counts, which fall as a power of them,
// differ by the square root.
TEST(Evenness, OfOneHalfMeetsInTheMiddle) {
  Workspace workspace;
  const auto ratio = [&](float evenness) {
    Encoder encoder = make({4, kBlock}, {.residual = ResidualKind::none, .evenness = evenness});
    double small = 0;
    double large = 0;
    for (uint64_t t = 0; t < 30; ++t) {
      auto gradient = many_gaussians(4 * kBlock, kSeed, t);
      for (uint64_t i = 0; i < gradient.size(); ++i)
        gradient[i] *= i / kBlock % 2 == 0 ? 1.0f : 1.15f;
      const auto decoded = step(encoder, gradient, {0.01, ValueKind::f32}, workspace).decoded;
      for (uint64_t i = 0; t >= 15 && i < decoded.size(); ++i)
        (i / kBlock % 2 == 0 ? small : large) += decoded[i] != 0 ? 1 : 0;
    }
    return large / small;
  };
  const double one_threshold = ratio(0);
  EXPECT_GT(one_threshold, 2);
  EXPECT_NEAR(ratio(0.5f) / std::sqrt(one_threshold), 1, 0.08);
  EXPECT_NEAR(ratio(1), 1, 0.05);
}

// The common threshold is the one value that there is: blocks must not drift apart by what chance
// took of each.
TEST(Evenness, LeavesTiesAlone) {
  Workspace workspace;
  Encoder encoder = make({kBlocks, kBlock}, {.residual = ResidualKind::none, .evenness = 1.0f});
  const std::vector<float> gradient(kElements, 0.5f);
  for (int t = 0; t < 5; ++t) {
    const auto stepped = step(encoder, gradient, {0.01, ValueKind::f32}, workspace);
    EXPECT_NEAR(static_cast<double>(stepped.report.entries) / kWanted, 1.0, 0.05) << t;
    EXPECT_LT(spread(stepped.decoded), 1.5) << t;
  }
}

// One value in blocks whose thresholds differ: what ties is its share of a block's own threshold.
TEST(Evenness, HoldsTheDensityWithTiesInUnevenBlocks) {
  Workspace workspace;
  Encoder encoder = make({kBlocks, kBlock}, {.residual = ResidualKind::none, .evenness = 1.0f});
  const auto base = many_gaussians(kElements + 64 * 5, kSeed, 1);
  for (uint64_t t = 0; t < 5; ++t)
    step(encoder, uneven_blocks(base, t), {0.01, ValueKind::f32}, workspace);
  const std::vector<float> gradient(kElements, -0.37f);
  for (int t = 0; t < 4; ++t) {
    const auto count = static_cast<double>(
        step(encoder, gradient, {0.01, ValueKind::f32}, workspace).report.entries);
    EXPECT_NEAR(count / kWanted, 1.0, 0.05) << t;
  }
}

// Shares of a small threshold may overflow: finite all the same, so they are not sent for that.
TEST(Evenness, SendsNoMoreOfHugeValues) {
  Workspace workspace;
  Encoder encoder = make({4, kBlock}, {.residual = ResidualKind::none, .evenness = 1.0f});
  for (uint64_t t = 0; t < 12; ++t) {
    auto gradient = many_gaussians(4 * kBlock, kSeed, t);
    for (uint64_t i = 0; i < gradient.size(); ++i) {
      gradient[i] *= i < kBlock ? 0.05f : 1.0f;
      if (t >= 10) gradient[i] = std::copysign(1e38f + 1e37f * std::abs(gradient[i]), gradient[i]);
    }
    const auto sent = step(encoder, gradient, {0.01, ValueKind::f32}, workspace).report.entries;
    EXPECT_LE(sent, 4 * kBlock / 100 + 1) << t;
  }
}

}  // namespace
}  // namespace scant::codec
