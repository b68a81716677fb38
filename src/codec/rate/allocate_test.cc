// The allocator against brute force: never above a budget or the bound it states, at most one step
// short of the bound, and never worse with more bytes.
#include "codec/rate/allocate.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::printed_rng;

// Whole numbers, so that sums are exact.
Curve random_curve(base::Rng& rng, size_t points) {
  Curve curve;
  for (size_t p = 0; p < points; ++p)
    curve.points.push_back({.point = {},
                            .bytes = static_cast<double>(rng.below(40)),
                            .energy = static_cast<double>(rng.below(100))});
  return curve;
}

// As measured curves are: each doubling of the bytes leaves a smaller share of the energy.
Curve concave_curve(base::Rng& rng, size_t points) {
  Curve curve;
  const double energy = std::exp(6 * rng.uniform());
  const double size = 100 + 1000 * rng.uniform();
  for (size_t p = 0; p < points; ++p) {
    const double share = (static_cast<double>(p) + rng.uniform()) / static_cast<double>(points);
    curve.points.push_back({.point = {},
                            .bytes = std::floor(size * share * share),
                            .energy = energy * std::sqrt(share)});
  }
  return curve;
}

double best_energy(std::span<const Curve> curves, double budget) {
  if (curves.empty()) return budget >= 0 ? 0 : -std::numeric_limits<double>::infinity();
  double best = -std::numeric_limits<double>::infinity();
  for (const CurvePoint& point : curves[0].points) {
    if (point.bytes <= budget)
      best = std::max(best, point.energy + best_energy(curves.subspan(1), budget - point.bytes));
  }
  return best;
}

double least_bytes(std::span<const Curve> curves) {
  double sum = 0;
  for (const Curve& curve : curves) {
    double least = std::numeric_limits<double>::infinity();
    for (const CurvePoint& point : curve.points) least = std::min(least, point.bytes);
    sum += least;
  }
  return sum;
}

double most_bytes(std::span<const Curve> curves) {
  double sum = 0;
  for (const Curve& curve : curves) {
    double most = 0;
    for (const CurvePoint& point : curve.points) most = std::max(most, point.bytes);
    sum += most;
  }
  return sum;
}

// The largest gain of a single step between neighbouring corners of an upper convex hull, found
// with the definition: no third point lies above the line of the two.
double largest_hull_step(std::span<const Curve> curves) {
  double largest = 0;
  for (const Curve& curve : curves) {
    for (const CurvePoint& a : curve.points) {
      for (const CurvePoint& b : curve.points) {
        if (b.bytes <= a.bytes || b.energy <= a.energy) continue;
        const bool edge =
            std::all_of(curve.points.begin(), curve.points.end(), [&](const CurvePoint& other) {
              const double line = (b.energy - a.energy) * (other.bytes - a.bytes);
              return (other.energy - a.energy) * (b.bytes - a.bytes) <= line + 1e-9;
            });
        if (edge) largest = std::max(largest, b.energy - a.energy);
      }
    }
  }
  return largest;
}

void expect_consistent(std::span<const Curve> curves, double budget, const Allocation& got) {
  ASSERT_EQ(got.choice.size(), curves.size());
  double bytes = 0;
  double energy = 0;
  for (size_t c = 0; c < curves.size(); ++c) {
    ASSERT_LT(got.choice[c], curves[c].points.size());
    bytes += curves[c].points[got.choice[c]].bytes;
    energy += curves[c].points[got.choice[c]].energy;
  }
  EXPECT_DOUBLE_EQ(got.bytes, bytes);
  EXPECT_NEAR(got.energy, energy, 1e-9 * energy);
  EXPECT_LE(got.bytes, budget);
  EXPECT_LE(got.energy, got.energy_bound * (1 + 1e-12));
}

struct Ratio {
  double sum = 0;
  double least = 1;
  int count = 0;
};

template <typename Make>
Ratio compare_with_brute_force(uint64_t seed, int rounds, const Make& make) {
  base::Rng rng = printed_rng(seed);
  Ratio ratio;
  for (int round = 0; round < rounds; ++round) {
    std::vector<Curve> curves;
    for (uint64_t c = 1 + rng.below(5); c > 0; --c) curves.push_back(make(rng, 1 + rng.below(6)));
    const double least = least_bytes(curves);
    const double budget = least + std::floor(rng.uniform() * (most_bytes(curves) - least + 2));
    const auto got = allocate(curves, budget);
    EXPECT_TRUE(got.ok()) << got.error().message;
    expect_consistent(curves, budget, got.value());
    const double best = best_energy(curves, budget);
    const double slack = 1e-9 * (best + 1);
    EXPECT_LE(best, got.value().energy_bound + slack) << "round " << round;
    EXPECT_LE(got.value().energy, best + slack) << "round " << round;
    const double missing = got.value().energy_bound - got.value().energy;
    if (missing > 0) {
      EXPECT_LT(missing, largest_hull_step(curves) + slack) << "round " << round;
    }
    if (best <= 0) continue;
    ratio.sum += got.value().energy / best;
    ratio.least = std::min(ratio.least, got.value().energy / best);
    ++ratio.count;
  }
  std::printf("energy by that of the best choice: mean %.4f, least %.4f of %d\n",
              ratio.sum / ratio.count, ratio.least, ratio.count);
  return ratio;
}

TEST(Allocate, AtMostOneHullStepShortOfTheBest) {
  const Ratio ratio = compare_with_brute_force(21, 2000, random_curve);
  EXPECT_GT(ratio.sum / ratio.count, 0.97);
}

TEST(Allocate, AtMostOneHullStepShortOnConcaveCurves) {
  const Ratio ratio = compare_with_brute_force(22, 2000, concave_curve);
  EXPECT_GT(ratio.sum / ratio.count, 0.97);
}

TEST(Allocate, NeverWorseWithALargerBudget) {
  base::Rng rng = printed_rng(23);
  for (int round = 0; round < 300; ++round) {
    std::vector<Curve> curves;
    for (uint64_t c = 1 + rng.below(6); c > 0; --c)
      curves.push_back(random_curve(rng, 1 + rng.below(8)));
    double before = 0;
    for (double budget = least_bytes(curves); budget <= most_bytes(curves); ++budget) {
      const auto got = allocate(curves, budget);
      ASSERT_TRUE(got.ok());
      ASSERT_GE(got.value().energy, before) << "round " << round << ", budget " << budget;
      before = got.value().energy;
    }
    double all = 0;
    for (const Curve& curve : curves) {
      double most = 0;
      for (const CurvePoint& point : curve.points) most = std::max(most, point.energy);
      all += most;
    }
    EXPECT_EQ(before, all) << "round " << round;
    EXPECT_EQ(allocate(curves, std::numeric_limits<double>::infinity()).value().energy, all);
  }
}

Curve curve_of(std::initializer_list<std::pair<double, double>> points) {
  Curve curve;
  for (const auto& [bytes, energy] : points)
    curve.points.push_back({.point = {}, .bytes = bytes, .energy = energy});
  return curve;
}

TEST(Allocate, OneCurveGetsItsBestPointThatFits) {
  // The fourth lies below the hull and fits where its neighbour does not.
  const std::vector<Curve> curves = {curve_of({{10, 1}, {30, 9}, {20, 2}, {25, 4}, {40, 8}})};
  EXPECT_EQ(allocate(curves, 10).value().choice, std::vector<size_t>{0});
  EXPECT_EQ(allocate(curves, 24).value().choice, std::vector<size_t>{2});
  EXPECT_EQ(allocate(curves, 29).value().choice, std::vector<size_t>{3});
  EXPECT_EQ(allocate(curves, 30).value().choice, std::vector<size_t>{1});
  EXPECT_EQ(allocate(curves, 1e9).value().choice, std::vector<size_t>{1});
  EXPECT_EQ(allocate(curves, 20).value().energy_bound, 5);
}

TEST(Allocate, OfEquallyCheapPointsTheOneThatKeepsMore) {
  const std::vector<Curve> curves = {curve_of({{5, 1}, {5, 3}, {5, 2}})};
  EXPECT_EQ(allocate(curves, 5).value().choice, std::vector<size_t>{1});
}

TEST(Allocate, IdenticalCurvesDifferByOneStep) {
  const Curve curve = curve_of({{0, 0}, {10, 10}, {20, 15}, {30, 17}});
  const std::vector<Curve> curves(7, curve);
  for (int budget = 0; budget <= 210; budget += 10) {
    const auto got = allocate(curves, budget);
    ASSERT_TRUE(got.ok());
    EXPECT_EQ(got.value().bytes, budget);
    EXPECT_EQ(got.value().energy, got.value().energy_bound);
    const auto [least, most] =
        std::minmax_element(got.value().choice.begin(), got.value().choice.end());
    EXPECT_LE(*most - *least, 1u) << "budget " << budget;
  }
}

TEST(Allocate, NothingToAllocate) {
  const auto got = allocate({}, 0);
  ASSERT_TRUE(got.ok());
  EXPECT_TRUE(got.value().choice.empty());
  EXPECT_EQ(got.value().energy, 0);
}

// A wrong order of growth would take minutes: 280,000 points.
TEST(Allocate, ThousandsOfCurves) {
  base::Rng rng = printed_rng(24);
  std::vector<Curve> curves;
  for (int c = 0; c < 5000; ++c) curves.push_back(concave_curve(rng, 56));
  const double least = least_bytes(curves);
  const double most = most_bytes(curves);
  for (const double share : {0.0, 0.01, 0.1, 0.5, 1.0}) {
    const double budget = least + share * (most - least);
    const auto got = allocate(curves, budget);
    ASSERT_TRUE(got.ok());
    expect_consistent(curves, budget, got.value());
    EXPECT_GT(got.value().energy, 0.9999 * got.value().energy_bound) << "share " << share;
  }
}

void expect_refused(std::span<const Curve> curves, double budget, const std::string& part) {
  const auto got = allocate(curves, budget);
  ASSERT_FALSE(got.ok()) << part;
  EXPECT_EQ(got.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(got.error().message.find(part), std::string::npos) << got.error().message;
}

TEST(Allocate, RefusesWhatIsNoCurveOrNoBudget) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const Curve good = curve_of({{3, 1}, {8, 2}});
  for (const double wrong : {kNan, kInfinity, -kInfinity, -1.0}) {
    expect_refused(std::vector{good, curve_of({{1, 1}, {wrong, 1}})}, 100, "point 1 of curve 1");
    expect_refused(std::vector{good, curve_of({{1, wrong}})}, 100, "point 0 of curve 1");
  }
  expect_refused(std::vector{good, Curve{}}, 100, "curve 1 has no points");
  expect_refused(std::vector{good, good}, 5, "cheapest points, 6");
  expect_refused(std::vector{good, good}, -1, "cheapest points, 6");
  expect_refused(std::vector{good}, kNan, "not a number");
  EXPECT_TRUE(allocate(std::vector{good, good}, 6).ok());
}

}  // namespace
}  // namespace scant::codec
