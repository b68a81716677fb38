#include "sync/plan/planner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "codec/allocate.h"
#include "sync/plan/progress.h"

namespace scant::sync {
namespace {

constexpr size_t kBufferCounts[] = {1, 2, 3, 4, 6, 8, 12, 16};
constexpr double kEqualWorth = 0.01;
constexpr double kBudgetMost = 2.2;     // bytes an element: bf16 and its headers
constexpr double kBudgetLeast = 0.004;  // below, a step is worth next to nothing
constexpr double kBudgetRatio = 0.8;

Error invalid(std::string message) {
  return Error{.code = ErrorCode::invalid_argument, .message = std::move(message)};
}

std::string format(const char* pattern, double value, size_t count) {
  char text[96];
  std::snprintf(text, sizeof text, pattern, value, count, count == 1 ? "" : "s");
  return text;
}

std::vector<double> elements_of(const Layout& layout) {
  std::vector<double> all;
  for (const PartLayout& part : layout.parts())
    all.push_back(static_cast<double>(part.range.elements));
  return all;
}

FusionPlan plain_plan(const Layout& layout, size_t buffers) {
  FusionPlan plan;
  uint32_t first = 0;
  for (const uint32_t count : cut_into(elements_of(layout), buffers)) {
    plan.buffers.push_back({.first_part = first, .parts = count, .path = Path::all_reduce});
    first += count;
  }
  return plan;
}

FusionPlan split_plan(const Layout& layout, std::span<const codec::Point> points, size_t buffers) {
  std::vector<double> bytes;
  for (size_t p = 0; p < points.size(); ++p) {
    bytes.push_back(codec::expected_record_bytes(layout.parts()[p].range.elements, points[p]));
  }
  FusionPlan plan;
  uint32_t first = 0;
  for (const uint32_t count : cut_into(bytes, buffers)) {
    BufferPlan buffer{.first_part = first, .parts = count, .path = Path::split};
    for (uint32_t i = 0; i < count; ++i)
      buffer.points.push_back({points[first + i], points[first + i]});
    plan.buffers.push_back(std::move(buffer));
    first += count;
  }
  return plan;
}

class Ranking {
 public:
  Ranking(const Layout& layout, const Profile& profile, const PlannerOptions& options)
      : layout_(layout), profile_(profile), options_(options) {}

  void look_at(FusionPlan plan, double kept, std::string text) {
    if (kept < options_.fidelity_min) return;
    Candidate candidate{std::move(plan), std::move(text), {}, kept, 0};
    candidate.prediction = predict(candidate.plan, layout_, profile_);
    candidate.worth = progress(kept) / candidate.prediction.step_s;
    candidates_.push_back(std::move(candidate));
  }

  // The most worth first; of those nearly equal to the best, the one that keeps most leads.
  std::vector<Candidate> ranked() && {
    std::ranges::stable_sort(candidates_, std::greater<>{}, &Candidate::worth);
    const double enough = candidates_.front().worth * (1 - kEqualWorth);
    auto best = candidates_.begin();
    for (auto other = best; other != candidates_.end() && other->worth >= enough; ++other) {
      if (other->kept > best->kept) best = other;
    }
    std::rotate(candidates_.begin(), best, best + 1);
    return std::move(candidates_);
  }

 private:
  const Layout& layout_;
  const Profile& profile_;
  const PlannerOptions& options_;
  std::vector<Candidate> candidates_;
};

// What the points of one budget keep, both legs: what the second loses is lost of the average.
double kept_by(std::span<const codec::Curve> curves, std::span<const size_t> choice) {
  double energy = 0;
  double kept = 0;
  for (size_t p = 0; p < curves.size(); ++p) {
    energy += curves[p].energy;
    kept += curves[p].points[choice[p]].energy;
  }
  const double share = energy > 0 ? std::clamp(kept / energy, 0.0, 1.0) : 1;
  return share * share;
}

}  // namespace

std::vector<uint32_t> cut_into(std::span<const double> bytes_of_part, size_t buffers) {
  const double total = std::accumulate(bytes_of_part.begin(), bytes_of_part.end(), 0.0);
  const size_t wanted = std::min(buffers, bytes_of_part.size());
  std::vector<uint32_t> counts;
  double sum = 0;
  uint32_t count = 0;
  for (size_t p = 0; p < bytes_of_part.size(); ++p) {
    sum += bytes_of_part[p];
    ++count;
    const size_t parts_left = bytes_of_part.size() - p - 1;
    const size_t buffers_left = wanted - counts.size() - 1;
    const double limit =
        total * static_cast<double>(counts.size() + 1) / static_cast<double>(wanted);
    if (buffers_left > 0 && (sum >= limit || parts_left == buffers_left)) {
      counts.push_back(count);
      count = 0;
    }
  }
  counts.push_back(count);
  return counts;
}

Result<std::vector<Candidate>> rank_plans(const Layout& layout, const Profile& profile,
                                          std::span<const codec::Curve> curves,
                                          const PlannerOptions& options) {
  const size_t parts = layout.parts().size();
  if (profile.ready_s.size() != parts) return invalid("profile: one ready_s a part is needed");
  if (!curves.empty() && curves.size() != parts) return invalid("curves: one a part is needed");
  Ranking ranking(layout, profile, options);
  for (const size_t buffers : kBufferCounts) {
    if (buffers > parts) break;
    ranking.look_at(plain_plan(layout, buffers), 1,
                    format("plain in %2$zu buffer%3$s", 0, buffers));
  }
  if (curves.empty()) return std::move(ranking).ranked();
  // A part that nobody had a gradient of has no curve: nothing is to be kept of it.
  std::vector<codec::Curve> known(curves.begin(), curves.end());
  for (size_t p = 0; p < parts; ++p) {
    if (!known[p].points.empty()) continue;
    for (const codec::Point point : codec::default_points()) {
      const uint64_t n = layout.parts()[p].range.elements;
      known[p].points.push_back({point, codec::expected_record_bytes(n, point), 0});
    }
  }
  const auto elements = static_cast<double>(layout.elements());
  for (double budget = kBudgetMost; budget >= kBudgetLeast; budget *= kBudgetRatio) {
    const auto allocated = codec::allocate(known, budget * elements);
    if (!allocated) break;  // the cheapest points cost more
    const std::vector<size_t>& choice = allocated.value().choice;
    std::vector<codec::Point> points;
    for (size_t p = 0; p < parts; ++p) points.push_back(known[p].points[choice[p]].point);
    const double kept = kept_by(known, choice);
    for (const size_t buffers : kBufferCounts) {
      if (buffers > parts) break;
      ranking.look_at(split_plan(layout, points, buffers), kept,
                      format("%1$.3g bytes an element in %2$zu buffer%3$s",
                             allocated.value().bytes / elements, buffers));
    }
  }
  return std::move(ranking).ranked();
}

}  // namespace scant::sync
