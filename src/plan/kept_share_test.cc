// What points with factors keep, and when a planner takes them.
#include "plan/kept_share.h"

#include <algorithm>
#include <gtest/gtest.h>

#include "plan/planner.h"
#include "plan/testing/tuner_world.h"

namespace scant::plan {
namespace {

using codec::Point;
using codec::ValueKind;
using gradient::Path;

gradient::Layout layout_of(const std::vector<codec::Shape>& shapes) {
  return gradient::Layout::create(shapes, 4).value();
}

// Of a matrix whose first 1, 2, 4 ... directions hold these shares.
codec::Curve curve_of_matrix(uint64_t elements, const std::vector<double>& shares) {
  codec::Curve curve = curve_of(elements);
  for (size_t i = 0; i < shares.size(); ++i) curve.held[i] = shares[i] * curve.energy;
  return curve;
}
const std::vector<double> kStrong = {0.3, 0.45, 0.65, 0.8, 0.9, 0.95};

Point ranked(uint16_t rank, ValueKind factors, Point rest) {
  rest.rank = rank;
  rest.factors = factors;
  return rest;
}

TEST(KeptShare, FactorsKeepWhatDirectionsHoldAndTheRestItsShareOfTheOther) {
  const codec::Curve curve = curve_of_matrix(512 * 512, kStrong);
  const auto one_leg = [&](Point point) { return kept_share(curve, {point, {}}, Path::gather); };
  const double q1 = one_leg({1, ValueKind::q1});
  const double alone = one_leg(ranked(8, ValueKind::f32, codec::kKeepAll));
  EXPECT_GT(alone, 0.6);
  EXPECT_LT(alone, 0.8);
  EXPECT_NEAR(one_leg(ranked(8, ValueKind::f32, {1, ValueKind::q1})), alone + (1 - alone) * q1,
              1e-12);
  // Between two ranks that were looked at, the lower one counts.
  EXPECT_EQ(one_leg(ranked(12, ValueKind::f32, codec::kKeepAll)), alone);
  EXPECT_LT(one_leg(ranked(8, ValueKind::q1, codec::kKeepAll)), alone);
  // The second leg loses of the rest, and next to nothing of the factors.
  const Point point = ranked(8, ValueKind::f32, {1, ValueKind::q1});
  EXPECT_NEAR(kept_share(curve, {point, point}, Path::split), alone + (1 - alone) * q1 * q1, 1e-12);
}

TEST(KeptShare, PointsWithFactorsStandOnTheCurveWhereTheyKeepMore) {
  const gradient::Layout layout = layout_of({{512, 512}, {1, 512 * 512}});
  const codec::Curve strong = curve_of_matrix(512 * 512, kStrong);
  const codec::Curve weak = curve_of_matrix(512 * 512, {0.002, 0.004, 0.008, 0.016, 0.03, 0.06});
  const auto with_rank = [](const codec::Curve& curve) {
    return std::ranges::count_if(curve.points,
                                 [](const codec::CurvePoint& one) { return one.point.rank > 0; });
  };
  EXPECT_GT(with_rank(with_factors(strong, 0, layout)), 3);
  EXPECT_EQ(with_rank(with_factors(weak, 0, layout)), 0);
  EXPECT_EQ(with_rank(with_factors(strong, 1, layout)), 0);  // a vector
  EXPECT_EQ(with_rank(with_factors(curve_of(512 * 512), 0, layout)), 0);
}

// Many matrices, which a slow link makes wait.
struct Case {
  gradient::Layout layout = layout_of(std::vector<codec::Shape>(12, {512, 512}));
  Profile profile;
  std::vector<codec::Curve> curves;
  explicit Case(double bytes_per_s, const std::vector<double>& held) {
    for (double p = 1; p <= 12; ++p) profile.ready_s.push_back(0.02 * p);
    profile.backward_s = 0.24;
    profile.rest_s = 0.1;
    profile.work = rates();
    profile.link = {1e-4, bytes_per_s, bytes_per_s};
    curves.assign(12, curve_of_matrix(512 * 512, held));
  }
  [[nodiscard]] Candidate best() const {
    return rank_plans(layout, profile, curves, {}).value().front();
  }
};

size_t parts_with_factors(const gradient::FusionPlan& plan) {
  size_t count = 0;
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    for (const gradient::PartPlan& points : buffer.points) count += points.first.rank > 0 ? 1 : 0;
  }
  return count;
}

TEST(KeptShare, APlannerTakesFactorsOnASlowLinkAlone) {
  const Case slow(3e6, kStrong);
  const Candidate best = slow.best();
  EXPECT_GT(parts_with_factors(best.plan), 6u) << best.text;
  EXPECT_TRUE(gradient::validate(best.plan, slow.layout));
  const Candidate without = Case(3e6, {}).best();
  EXPECT_EQ(parts_with_factors(without.plan), 0u);
  EXPECT_GT(best.worth, 1.05 * without.worth);
  EXPECT_EQ(parts_with_factors(Case(1e10, kStrong).best().plan), 0u);
}

TEST(KeptShare, APredictionSendsWhatThePlanDoes) {
  const Case one(1e7, kStrong);
  for (const Path path : {Path::split, Path::gather}) {
    for (const Point rest : {codec::kKeepAll, Point{1, ValueKind::q1}}) {
      const gradient::FusionPlan plan = gradient::uniform_plan(
          {.path = path, .point = ranked(8, ValueKind::q4, rest)}, one.layout);
      const Prediction predicted = predict(plan, one.layout, one.profile);
      EXPECT_NEAR(predicted.sent_bytes, gradient::sent_bytes(plan, one.layout),
                  1e-6 * predicted.sent_bytes);
      EXPECT_GT(predicted.work_s, 0);
    }
  }
}

}  // namespace
}  // namespace scant::plan
