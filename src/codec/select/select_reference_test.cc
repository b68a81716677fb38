// The other selections: each against what its name says, ties and NaN included.
#include "codec/select/select_reference.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "codec/quantise/rounding.h"
#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::printed_rng;
using Positions = std::vector<size_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Few distinct magnitudes, so that ties are common.
std::vector<float> with_ties(base::Rng& rng, size_t n) {
  std::vector<float> values(n);
  for (float& value : values) {
    value = static_cast<float>(rng.below(12)) * 0.25f;
    if (rng.chance(0.5)) value = -value;
  }
  return values;
}

// A stable sort of everything: another way to the same answer.
Positions sorted_top_k(std::span<const float> values, size_t count) {
  Positions order(values.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return magnitude_bits(values[a]) > magnitude_bits(values[b]);
  });
  order.resize(std::min(count, order.size()));
  std::sort(order.begin(), order.end());
  return order;
}

TEST(SelectReference, TopKKeepsTheLargestMagnitudes) {
  const std::vector<float> values = {0.5f, -3.0f, 2.0f, 0.0f, -2.0f, 3.0f, 1.0f};
  EXPECT_EQ(select_top_k(values, 0), Positions{});
  EXPECT_EQ(select_top_k(values, 1), Positions({1}));
  EXPECT_EQ(select_top_k(values, 3), Positions({1, 2, 5}));
  EXPECT_EQ(select_top_k(values, 4), Positions({1, 2, 4, 5}));
  EXPECT_EQ(select_top_k(values, 7).size(), 7u);
  EXPECT_EQ(select_top_k(values, 100).size(), 7u);
  EXPECT_EQ(select_top_k({}, 3), Positions{});
}

TEST(SelectReference, OfEqualMagnitudesTheLowestPositionsAreKept) {
  const std::vector<float> values = {1.0f, -1.0f, 1.0f, 1.0f, -2.0f};
  EXPECT_EQ(select_top_k(values, 3), Positions({0, 1, 4}));
  base::Rng rng = printed_rng(11);
  for (int round = 0; round < 200; ++round) {
    const auto random = with_ties(rng, rng.below(60));
    const size_t count = rng.below(random.size() + 3);
    ASSERT_EQ(select_top_k(random, count), sorted_top_k(random, count)) << "round " << round;
  }
}

TEST(SelectReference, NanAndInfinityComeFirst) {
  const std::vector<float> values = {5.0f, kInfinity, 1e38f, kNan, -kInfinity};
  EXPECT_EQ(select_top_k(values, 1), Positions({3}));
  EXPECT_EQ(select_top_k(values, 3), Positions({1, 3, 4}));
  EXPECT_EQ(select_threshold(values, 1e30f), Positions({1, 2, 3, 4}));
}

TEST(SelectReference, RowsSendTheSameNumberEach) {
  const std::vector<float> values = {9, 8, 7, 6, 0, 0, 0, 0, 1, -3, 2, 0};
  EXPECT_EQ(select_row_top_k(values, 4, 0.5), Positions({0, 1, 4, 5, 9, 10}));
  // 0.74 * 4 is 2.96: two.
  EXPECT_EQ(select_row_top_k(values, 4, 0.74), Positions({0, 1, 4, 5, 9, 10}));
  EXPECT_EQ(select_row_top_k(values, 4, 1.0).size(), values.size());
  EXPECT_EQ(select_row_top_k(values, values.size(), 0.25), select_top_k(values, 3));
}

TEST(SelectReference, RowsOfFewColumnsSendOneEach) {
  base::Rng rng = printed_rng(12);
  const auto values = with_ties(rng, 3 * 50);
  const Positions positions = select_row_top_k(values, 3, 0.01);  // a third, for one in a hundred
  ASSERT_EQ(positions.size(), 50u);
  for (size_t row = 0; row < 50; ++row) {
    const std::span<const float> of_row(values.data() + row * 3, 3);
    EXPECT_EQ(positions[row], row * 3 + sorted_top_k(of_row, 1)[0]);
  }
}

TEST(SelectReference, RandomKIsAFunctionOfSeedAndStep) {
  const Positions first = select_random_k(1000, 100, 7, 3);
  ASSERT_EQ(first.size(), 100u);
  EXPECT_TRUE(std::adjacent_find(first.begin(), first.end(), std::greater_equal<>()) ==
              first.end());
  EXPECT_LT(first.back(), 1000u);
  EXPECT_EQ(first, select_random_k(1000, 100, 7, 3));
  EXPECT_NE(first, select_random_k(1000, 100, 7, 4));
  EXPECT_NE(first, select_random_k(1000, 100, 8, 3));
  EXPECT_EQ(select_random_k(5, 9, 7, 0), Positions({0, 1, 2, 3, 4}));
  EXPECT_EQ(select_random_k(0, 9, 7, 0), Positions{});
}

TEST(SelectReference, RandomKPicksEachPositionEquallyOften) {
  constexpr size_t kElements = 50;
  constexpr size_t kCount = 10;
  constexpr uint64_t kSteps = 5000;
  std::printf("seed 13\n");
  std::vector<int> picked(kElements);
  for (uint64_t step = 0; step < kSteps; ++step)
    for (const size_t position : select_random_k(kElements, kCount, 13, step)) ++picked[position];
  // 1000 expected each, standard deviation 28: five of them.
  for (size_t i = 0; i < kElements; ++i) EXPECT_NEAR(picked[i], 1000, 142) << "position " << i;
}

TEST(SelectReference, ThresholdTakesWhateverPasses) {
  const std::vector<float> values = {0.5f, -3.0f, 2.0f, 0.0f, -2.0f, 1.9999f};
  EXPECT_EQ(select_threshold(values, 2.0f), Positions({1, 2, 4}));
  EXPECT_EQ(select_threshold(values, 0.0f).size(), values.size());
  EXPECT_EQ(select_threshold(values, kInfinity), Positions{});
  // With the k-th magnitude as threshold it is top-k, and ties beyond k.
  base::Rng rng = printed_rng(14);
  const auto random = with_ties(rng, 400);
  const Positions top = select_top_k(random, 100);
  float least = kInfinity;
  for (const size_t i : top) least = std::min(least, std::fabs(random[i]));
  const Positions passed = select_threshold(random, least);
  EXPECT_GE(passed.size(), top.size());
  EXPECT_TRUE(std::includes(passed.begin(), passed.end(), top.begin(), top.end()));
}

}  // namespace
}  // namespace scant::codec
