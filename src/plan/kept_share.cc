#include "plan/kept_share.h"

#include <algorithm>
#include <array>
#include <vector>

namespace scant::plan {
namespace {

using codec::Curve;
using codec::CurvePoint;
using codec::Point;
using codec::ValueKind;

// The basis is that of all ranks' mean. Of what the mean keeps it holds so much of what a rank's
// own best one would: docs/decisions/progress.md.
constexpr double kCommonBasis = 0.9;

constexpr std::array kFactorKinds = {ValueKind::q8, ValueKind::q4};
constexpr std::array kRests = {
    codec::kKeepAll,           Point{0.01, ValueKind::q4}, Point{0.05, ValueKind::q4},
    Point{1.0, ValueKind::q1}, Point{1.0, ValueKind::q2},  Point{1.0, ValueKind::q3}};

// Of elements alone.
double share_at(const Curve& curve, Point point) {
  if (point.density >= 1 && point.values == ValueKind::f32) return 1;
  // Of points that nobody looked at the nearest below stands for it: f16 has the bits of bf16 and
  // more, and by row as many entries are kept.
  const bool half = point.values == ValueKind::f16;
  const ValueKind values = half ? ValueKind::bf16 : point.values;
  double most = 0;
  for (const CurvePoint& one : curve.points) {
    if (one.point.rank == 0 && one.point.values == values && one.point.density <= point.density) {
      most = std::max(most, one.energy);
    }
  }
  return std::clamp(most / curve.energy, 0.0, 1.0);
}

// Of ranks that nobody looked at the nearest below stands for it.
double held_share(const Curve& curve, uint32_t rank) {
  double held = 0;
  for (size_t i = 0; i < codec::kHeldRanks.size(); ++i) {
    if (codec::kHeldRanks[i] <= rank) held = curve.held[i];
  }
  return std::clamp(kCommonBasis * held / curve.energy, 0.0, 1.0);
}

double rest_share(const Curve& curve, Point point) {
  return point.density > 0 ? share_at(curve, codec::rest_of(point)) : 0;
}

double bytes_at(uint32_t part, Point point, const gradient::Layout& layout) {
  const uint64_t elements = layout.parts()[part].range.elements;
  return codec::expected_record_bytes(elements, point) +
         gradient::factor_bytes(part, point, layout);
}

// Those of which no mixture of two others keeps as much for as few bytes; `all` ascend by bytes.
std::vector<CurvePoint> hull_of(const std::vector<CurvePoint>& all) {
  std::vector<CurvePoint> hull;
  const auto gain = [](const CurvePoint& from, const CurvePoint& to) {
    return (to.energy - from.energy) / std::max(to.bytes - from.bytes, 1e-9);
  };
  for (const CurvePoint& next : all) {
    if (!hull.empty() && next.energy <= hull.back().energy) continue;
    while (hull.size() >= 2 &&
           gain(hull[hull.size() - 2], hull.back()) <= gain(hull.back(), next)) {
      hull.pop_back();
    }
    hull.push_back(next);
  }
  return hull;
}

}  // namespace

double kept_share(const Curve& curve, const gradient::PartPlan& points, gradient::Path path) {
  const bool back = path == gradient::Path::split;
  const Point first = points.first;
  const Point second = points.second;
  const double rest = rest_share(curve, first) * (back ? rest_share(curve, second) : 1);
  if (first.rank == 0) return rest;
  const double held = held_share(curve, first.rank);
  const double factors =
      share_at(curve, {1.0, first.factors}) * (back ? share_at(curve, {1.0, second.factors}) : 1);
  return held * factors + (1 - held) * rest;
}

Curve with_factors(Curve curve, uint32_t part, const gradient::Layout& layout) {
  const uint64_t most = layout.rank_max(part);
  if (!(curve.energy > 0) || !(curve.held.back() > 0) || curve.points.empty()) return curve;
  std::vector<CurvePoint> all = curve.points;
  for (const uint16_t rank : codec::kHeldRanks) {
    if (rank > most) break;
    for (const ValueKind factors : kFactorKinds) {
      for (Point point : kRests) {
        point.rank = rank;
        point.factors = factors;
        const double kept = kept_share(curve, {point, {}}, gradient::Path::gather);
        all.push_back({point, bytes_at(part, point, layout), kept * curve.energy});
      }
    }
  }
  std::ranges::stable_sort(all, {}, &CurvePoint::bytes);
  for (const CurvePoint& one : hull_of(all)) {
    if (one.point.rank > 0) curve.points.push_back(one);
  }
  return curve;
}

}  // namespace scant::plan
