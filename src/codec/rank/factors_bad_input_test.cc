// Matrices that no good gradient is: numbers that are not finite, products that overflow or
// vanish, ranks that the sides do not have. Exact results, or an error that says what is wrong.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <optional>
#include <vector>

#include "codec/rank/basis.h"
#include "codec/rank/factors.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// One member without a residual, whose own factors are the average.
class Alone {
 public:
  Alone(Shape shape, uint32_t rank, std::vector<float> values)
      : gradient(std::move(values)),
        factors(shape, {0, shape.elements()}, 1),
        slices_{{.encoder = nullptr, .range = {0, shape.elements()}, .gradient = gradient}} {
    EXPECT_TRUE(workspace_.start(1));
    EXPECT_TRUE(factors.set_rank(rank));
  }
  std::vector<float> project() {
    std::vector<float> left(factors.left_elements());
    EXPECT_TRUE(factors.project(slices_, workspace_, left));
    return left;
  }
  // Nothing: they cannot be used.
  std::optional<std::vector<float>> coefficients() {
    std::vector<float> right(factors.right_elements());
    const Result<bool> usable = factors.coefficients(slices_, workspace_, right);
    EXPECT_TRUE(usable.ok());
    if (!usable.value()) return std::nullopt;
    return right;
  }
  void subtract(std::span<const float> right) {
    factors.add(right, -1, slices_[0].range, gradient, workspace_);
  }
  void add(std::span<const float> right, std::span<float> out) {
    factors.add(right, 1, slices_[0].range, out, workspace_);
  }
  [[nodiscard]] std::vector<float> basis() const {
    std::vector<float> columns(factors.left_elements());
    factors.read_basis(columns);
    return columns;
  }

  std::vector<float> gradient;
  Factors factors;

 private:
  Workspace workspace_;
  std::vector<MatrixSlice> slices_;
};

bool all_finite(std::span<const float> values) {
  return std::ranges::all_of(values, [](float value) { return std::isfinite(value); });
}

double largest(std::span<const float> values) {
  double most = 0;
  for (const float value : values) most = std::max(most, std::fabs(static_cast<double>(value)));
  return most;
}

constexpr Shape kShape{24, 300};

// u vᵀ and a little more, with no element above 1.
std::vector<float> strong() {
  std::vector<float> values = draw_values(Family::dyadic, kShape.elements(), 8);
  for (uint64_t i = 0; i < values.size(); ++i) {
    const bool minus = (i / kShape.columns) % 2 != (i % kShape.columns) % 3 % 2;
    values[i] = (minus ? -0.75f : 0.75f) + values[i] * 0x1p-4f;
  }
  return values;
}

// Their directions are those of the same matrix within range, to the bit.
TEST(FactorsOfBadInput, ProductsThatOverflowFindTheDirections) {
  std::vector<float> values = strong();
  Alone small(kShape, 4, values);
  small.factors.set_basis(small.project());
  for (float& value : values) value *= 0x1p127f;
  ASSERT_TRUE(all_finite(values));
  Alone huge(kShape, 4, values);
  const std::vector<float> left = huge.project();
  ASSERT_TRUE(all_finite(left));
  EXPECT_LT(largest(left), 0x1p100);
  EXPECT_GE(largest(left), 0x1p99);
  huge.factors.set_basis(left);
  EXPECT_EQ(huge.basis(), small.basis());
  EXPECT_GT(largest(huge.basis()), 0);
  // Coefficients cannot be scaled: who has no rest has to be told.
  EXPECT_FALSE(huge.coefficients());
}

TEST(FactorsOfBadInput, LargeValuesWithinReachAreExact) {
  for (const float times : {0x1p40f, 0x1p80f, 0x1p90f}) {
    std::vector<float> values = strong();
    Alone one(kShape, 4, values);
    one.factors.set_basis(one.project());
    const auto right = one.coefficients();
    ASSERT_TRUE(right);
    for (float& value : values) value *= times;
    Alone large(kShape, 4, values);
    large.factors.set_basis(large.project());
    const auto scaled = large.coefficients();
    ASSERT_TRUE(scaled);
    for (size_t i = 0; i < right->size(); ++i) EXPECT_EQ((*scaled)[i], (*right)[i] * times);
  }
}

TEST(FactorsOfBadInput, WhatIsNotFiniteStaysSo) {
  for (const float value : {kNan, kInfinity, -kInfinity}) {
    std::vector<float> values = strong();
    values[777] = value;
    Alone one(kShape, 4, values);
    const std::vector<float> left = one.project();
    EXPECT_FALSE(all_finite(left));
    one.factors.set_basis(left);
    EXPECT_EQ(one.basis(), std::vector<float>(left.size(), 0.0f));
    EXPECT_FALSE(one.coefficients());
  }
}

// As they come from others.
TEST(FactorsOfBadInput, FactorsThatAreNotFinite) {
  for (const float value : {kNan, kInfinity, -kInfinity}) {
    Alone one(kShape, 4, strong());
    std::vector<float> left = one.project();
    left[left.size() - 1] = value;
    one.factors.set_basis(left);
    EXPECT_EQ(one.basis(), std::vector<float>(left.size(), 0.0f));
    const auto right = one.coefficients();
    ASSERT_TRUE(right);
    EXPECT_EQ(largest(*right), 0);

    one.factors.set_basis(one.project());
    std::vector<float> wrong(one.factors.right_elements(), value);
    std::vector<float> mean(one.gradient.size());
    one.add(wrong, mean);
    for (size_t i = 0; i < mean.size(); ++i) EXPECT_FALSE(std::isfinite(mean[i])) << i;
    one.factors.learn(wrong);
    const std::span<const float> directions = one.factors.directions();
    EXPECT_TRUE(all_finite(directions));
    EXPECT_GT(largest(directions), 0);
  }
}

TEST(FactorsOfBadInput, RankBeyondTheSides) {
  Factors factors(kShape, {0, kShape.elements()}, 1);
  EXPECT_EQ(factors.set_rank(25).error().message,
            "rank 25 of a matrix of 24 x 300: it must lie in 0 to 24");
  Factors wide({300, 400}, {0, 120'000}, 1);
  EXPECT_EQ(wide.set_rank(257).error().message,
            "rank 257 of a matrix of 300 x 400: it must lie in 0 to 256");
  EXPECT_EQ(point_for({0, ValueKind::f32, false, 500, ValueKind::q4}, {600, 700}, 420'000).rank,
            256);
  EXPECT_EQ(rank_max({1, 400}), 0u);
  EXPECT_EQ(rank_max({400, 7}), 7u);
}

TEST(FactorsOfBadInput, Rank256) {
  const Shape shape{280, 900};
  Alone one(shape, kRankMax, draw_values(Family::normal, shape.elements(), 3));
  const std::vector<float> before = one.gradient;
  one.factors.set_basis(one.project());
  std::vector<float> basis = one.basis();
  EXPECT_EQ(orthonormalise(basis, shape.rows), kRankMax);
  const auto right = one.coefficients();
  ASSERT_TRUE(right);
  one.subtract(*right);
  std::vector<float> back = one.gradient;
  one.add(*right, back);
  for (size_t i = 0; i < back.size(); ++i) EXPECT_NEAR(back[i], before[i], 1e-6);
  // 256 of 280 directions hold most.
  double rest = 0;
  double all = 0;
  for (size_t i = 0; i < back.size(); ++i) {
    rest += std::pow(static_cast<double>(one.gradient[i]), 2);
    all += std::pow(static_cast<double>(before[i]), 2);
  }
  EXPECT_LT(rest, 0.1 * all);
}

// Of rank 2, exactly: whole numbers.
TEST(FactorsOfBadInput, RankDeficientIsSentWhole) {
  std::vector<float> values(kShape.elements());
  for (uint64_t i = 0; i < values.size(); ++i) {
    const auto row = static_cast<float>(i / kShape.columns);
    const auto column = static_cast<float>(i % kShape.columns);
    values[i] = row - 2 * column;
  }
  Alone one(kShape, 6, values);
  std::vector<float> left = one.project();
  one.factors.set_basis(left);
  EXPECT_EQ(orthonormalise(left, kShape.rows), 2u);
  const auto right = one.coefficients();
  ASSERT_TRUE(right);
  one.subtract(*right);
  EXPECT_LT(largest(one.gradient), 1e-3);
  one.factors.learn(*right);
  for (uint32_t k = 0; k < 6; ++k) {  // those of which nothing was left were drawn anew
    const auto column = one.factors.directions().subspan(k * kShape.columns, kShape.columns);
    double length = 0;
    for (const float value : column) length += std::pow(static_cast<double>(value), 2);
    EXPECT_NEAR(length, 1, 1e-5);
  }
}

// Whatever vanishes stays in the rest, to the last unit of what can vanish.
TEST(FactorsOfBadInput, ProductsThatVanishLoseNothing) {
  for (const Family family : {Family::denormal, Family::tiny, Family::zero}) {
    Alone one(kShape, 4, draw_values(family, kShape.elements(), 5));
    const std::vector<float> before = one.gradient;
    const std::vector<float> left = one.project();
    EXPECT_TRUE(all_finite(left));
    one.factors.set_basis(left);
    EXPECT_TRUE(all_finite(one.basis()));
    const auto right = one.coefficients();
    ASSERT_TRUE(right);
    one.subtract(*right);
    std::vector<float> back = one.gradient;
    one.add(*right, back);
    const double unit = std::max(largest(before) * 0x1p-20, 8 * 0x1p-149);
    for (size_t i = 0; i < back.size(); ++i) EXPECT_NEAR(back[i], before[i], unit);
    one.factors.learn(*right);
    EXPECT_TRUE(all_finite(one.factors.directions()));
  }
}

}  // namespace
}  // namespace scant::codec
