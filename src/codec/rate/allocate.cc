#include "codec/rate/allocate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <queue>
#include <string>

#include "base/fault.h"

namespace scant::codec {
namespace {

constexpr double kNoLimit = std::numeric_limits<double>::infinity();

using base::invalid;

std::string text(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.17g", value);
  return digits;
}

std::optional<Error> check(std::span<const Curve> curves) {
  for (size_t c = 0; c < curves.size(); ++c) {
    const std::vector<CurvePoint>& points = curves[c].points;
    if (points.empty()) return invalid("curve " + std::to_string(c) + " has no points");
    for (size_t p = 0; p < points.size(); ++p) {
      const bool valid = std::isfinite(points[p].bytes) && points[p].bytes >= 0 &&
                         std::isfinite(points[p].energy) && points[p].energy >= 0;
      if (!valid) {
        return invalid("point " + std::to_string(p) + " of curve " + std::to_string(c) + " has " +
                       text(points[p].bytes) + " bytes and an energy of " + text(points[p].energy));
      }
    }
  }
  return std::nullopt;
}

size_t cheapest(const Curve& curve) {
  const auto best = std::min_element(
      curve.points.begin(), curve.points.end(), [](const CurvePoint& a, const CurvePoint& b) {
        return a.bytes != b.bytes ? a.bytes < b.bytes : a.energy > b.energy;
      });
  return static_cast<size_t>(best - curve.points.begin());
}

// From where a curve stands to another of its points.
struct Step {
  double slope = 0;  // energy gained per byte
  size_t curve = 0;
  size_t to = 0;
  bool operator<(const Step& other) const {  // the largest slope first, then the first curve
    return slope != other.slope ? slope < other.slope : curve > other.curve;
  }
};

// The steepest step to a point of fewer bytes than `limit`: without a limit, the next corner of the
// upper convex hull. Of equal slopes the shortest.
std::optional<Step> steepest(const Curve& curve, size_t number, size_t from, double limit) {
  const CurvePoint& at = curve.points[from];
  std::optional<Step> best;
  for (size_t p = 0; p < curve.points.size(); ++p) {
    const CurvePoint& point = curve.points[p];
    if (point.bytes <= at.bytes || point.bytes >= limit || point.energy <= at.energy) continue;
    const double slope = (point.energy - at.energy) / (point.bytes - at.bytes);
    if (!best || slope > best->slope ||
        (slope == best->slope && point.bytes < curve.points[best->to].bytes))
      best = Step{slope, number, p};
  }
  return best;
}

}  // namespace

Result<Allocation> allocate(std::span<const Curve> curves, double budget_bytes) {
  if (auto wrong = check(curves)) return *std::move(wrong);
  if (std::isnan(budget_bytes)) return invalid("the budget is not a number");
  Allocation result;
  for (const Curve& curve : curves) {
    result.choice.push_back(cheapest(curve));
    result.bytes += curve.points[result.choice.back()].bytes;
    result.energy += curve.points[result.choice.back()].energy;
  }
  if (!(result.bytes <= budget_bytes)) {
    return invalid("a budget of " + text(budget_bytes) +
                   " bytes is below that of the cheapest points, " + text(result.bytes));
  }
  std::vector<double> limits(curves.size(), kNoLimit);
  std::priority_queue<Step> steps;
  const auto push = [&](size_t c) {
    if (const auto step = steepest(curves[c], c, result.choice[c], limits[c])) steps.push(*step);
  };
  for (size_t c = 0; c < curves.size(); ++c) push(c);
  std::optional<double> bound;
  while (!steps.empty()) {
    const Step step = steps.top();
    steps.pop();
    const CurvePoint& from = curves[step.curve].points[result.choice[step.curve]];
    const CurvePoint& to = curves[step.curve].points[step.to];
    const double cost = to.bytes - from.bytes;
    const double gain = to.energy - from.energy;
    const double left = budget_bytes - result.bytes;
    if (cost <= left) {
      result.choice[step.curve] = step.to;
      result.bytes += cost;
      result.energy += gain;
    } else {
      if (!bound) bound = result.energy + gain * (left / cost);
      limits[step.curve] = to.bytes;
    }
    push(step.curve);
  }
  result.energy_bound = bound.value_or(result.energy);
  return result;
}

}  // namespace scant::codec
