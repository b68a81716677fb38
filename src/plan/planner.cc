#include "plan/planner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include "base/fault.h"
#include "codec/rate/allocate.h"
#include "plan/kept_share.h"
#include "plan/progress.h"

namespace scant::plan {
namespace {

constexpr size_t kBufferCounts[] = {1, 2, 3, 4, 6, 8, 12, 16};
constexpr double kEqualWorth = 0.003;
// In worth: what is exact loses nothing by a wrong prediction, and what ran needs none.
constexpr double kSurer = 1.03;
constexpr double kBudgetMost = 2.2;     // bytes an element: bf16 and its headers
constexpr double kBudgetLeast = 0.004;  // below, a step is worth next to nothing
constexpr double kBudgetRatio = 0.8;
constexpr double kFineRatio = 0.965;  // between two budgets around the best
constexpr size_t kFineCounts = 3;     // of buffers, those of the best
// What a byte of the part that is ready last is priced at, beyond one of the first: it hides least.
constexpr double kLateSurcharges[] = {0, 2};
constexpr double kNoEnergy = 1e-100;  // the least square of an f32 is 2e-90

using base::invalid;

std::string in_buffers(const char* what, const gradient::FusionPlan& plan) {
  const size_t count = plan.buffers.size();
  char text[128];
  std::snprintf(text, sizeof text, "%s in %zu buffer%s%s", what, count, count == 1 ? "" : "s",
                plan.reversed > 0 ? ", the last ones first" : "");
  return text;
}

std::vector<double> elements_of(const gradient::Layout& layout) {
  std::vector<double> all;
  for (const gradient::PartLayout& part : layout.parts())
    all.push_back(static_cast<double>(part.range.elements));
  return all;
}

gradient::FusionPlan plain_plan(const gradient::Layout& layout, size_t buffers) {
  gradient::FusionPlan plan;
  uint32_t first = 0;
  for (const uint32_t count : cut_into(elements_of(layout), buffers)) {
    plan.buffers.push_back(
        {.first_part = first, .parts = count, .path = gradient::Path::all_reduce});
    first += count;
  }
  return plan;
}

// Between two ranks a gather costs as many bytes as a split, loses nothing of the average, and is
// over after one leg.
gradient::FusionPlan compressed_plan(const gradient::Layout& layout,
                                     std::span<const codec::Point> points,
                                     std::span<const double> prices, size_t buffers) {
  const gradient::Path path = compressed_path(layout);
  std::vector<double> bytes;
  for (size_t p = 0; p < points.size(); ++p) {
    const uint64_t elements = layout.parts()[p].range.elements;
    const auto part = static_cast<uint32_t>(p);
    bytes.push_back(prices[p] * (codec::expected_record_bytes(elements, points[p]) +
                                 gradient::factor_bytes(part, points[p], layout)));
  }
  gradient::FusionPlan plan;
  uint32_t first = 0;
  for (const uint32_t count : cut_into(bytes, buffers)) {
    gradient::BufferPlan buffer{.first_part = first, .parts = count, .path = path};
    for (uint32_t i = 0; i < count; ++i)
      buffer.points.push_back({points[first + i], path == gradient::Path::split
                                                      ? points[first + i]
                                                      : gradient::kNoSecondLeg});
    plan.buffers.push_back(std::move(buffer));
    first += count;
  }
  return plan;
}

// What the parts with a gradient keep at each point, as a share of their energy, by elements.
std::vector<double> mean_shares(std::span<const codec::Curve> curves,
                                const gradient::Layout& layout) {
  std::vector<double> shares(codec::default_points().size());
  double elements = 0;
  for (size_t p = 0; p < curves.size(); ++p) {
    if (!(curves[p].energy > kNoEnergy) || curves[p].points.size() != shares.size()) continue;
    const auto n = static_cast<double>(layout.parts()[p].range.elements);
    elements += n;
    for (size_t i = 0; i < shares.size(); ++i) {
      shares[i] += n * curves[p].points[i].energy / curves[p].energy;
    }
  }
  if (elements == 0) return {};
  for (double& share : shares) share /= elements;
  return shares;
}

// Energies such that every element of every part has the same: Adam makes tensors with large and
// with small gradients equally important. A part that nobody had a gradient of is taken to be like
// the others. Nothing, where nobody had any.
std::vector<codec::Curve> by_elements(std::span<const codec::Curve> curves,
                                      const gradient::Layout& layout) {
  const std::vector<double> shares = mean_shares(curves, layout);
  if (shares.empty()) return {};
  std::vector<codec::Curve> all(curves.begin(), curves.end());
  for (size_t p = 0; p < all.size(); ++p) {
    const uint64_t n = layout.parts()[p].range.elements;
    const auto elements = static_cast<double>(n);
    const double energy = std::exchange(all[p].energy, elements);
    if (energy > kNoEnergy && !all[p].points.empty()) {
      for (codec::CurvePoint& point : all[p].points) point.energy *= elements / energy;
      for (double& held : all[p].held) held *= elements / energy;
      continue;
    }
    all[p].points.clear();
    all[p].held = {};
    for (size_t i = 0; i < shares.size(); ++i) {
      const codec::Point point = codec::default_points()[i];
      all[p].points.push_back(
          {point, codec::expected_record_bytes(n, point), shares[i] * elements});
    }
  }
  return all;
}

// Over both legs, by elements.
Kept kept_by(const gradient::FusionPlan& plan, std::span<const codec::Curve> even) {
  double elements[2] = {};  // of parts without factors, and with
  double kept[2] = {};
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    for (uint32_t i = 0; i < buffer.parts; ++i) {
      const double n = even.empty() ? 1 : even[buffer.first_part + i].energy;
      const bool whole = buffer.path == gradient::Path::all_reduce || n == 0 || even.empty();
      const size_t kind = !whole && buffer.points[i].first.rank > 0 ? 1 : 0;
      elements[kind] += n;
      kept[kind] +=
          whole ? n : n * kept_share(even[buffer.first_part + i], buffer.points[i], buffer.path);
    }
  }
  Kept result;
  if (elements[0] > 0) result.elements = kept[0] / elements[0];
  if (elements[1] > 0) {
    result.factors = kept[1] / elements[1];
    result.of_factors = elements[1] / (elements[0] + elements[1]);
  }
  return result;
}

std::string text_of(const gradient::FusionPlan& plan, const gradient::Layout& layout) {
  if (is_plain(plan)) return in_buffers("plain", plan);
  double bytes = 0;
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    for (uint32_t i = 0; i < buffer.parts; ++i) {
      const gradient::PartLayout& part = layout.parts()[buffer.first_part + i];
      if (buffer.path == gradient::Path::all_reduce) {
        bytes += 4.0 * static_cast<double>(part.range.elements);
        continue;
      }
      for (const gradient::SliceLayout& slice : layout.slices_of(part)) {
        bytes += codec::expected_record_bytes(slice.range.elements, buffer.points[i].first);
      }
      bytes += gradient::factor_bytes(buffer.first_part + i, buffer.points[i].first, layout);
    }
  }
  char what[48];
  std::snprintf(what, sizeof what, "%.3g bytes an element",
                bytes / static_cast<double>(layout.elements()));
  return in_buffers(what, plan);
}

class Ranking {
 public:
  Ranking(const gradient::Layout& layout, const Profile& profile,
          std::span<const codec::Curve> even, const PlannerOptions& options)
      : layout_(layout), profile_(profile), even_(even), options_(options) {}

  [[nodiscard]] Candidate weigh(gradient::FusionPlan plan) const {
    std::string text = text_of(plan, layout_);
    Candidate candidate;
    candidate.plan = std::move(plan);
    candidate.text = std::move(text);
    const Kept kept = kept_by(candidate.plan, even_);
    candidate.kept = kept.all();
    candidate.progress = progress(kept);
    Prediction& prediction = candidate.prediction;
    prediction = predict(candidate.plan, layout_, profile_);
    const auto known = std::ranges::find(options_.tried, candidate.plan, &TriedPlan::plan);
    candidate.tried = known != options_.tried.end();
    const double error = is_plain(candidate.plan) ? options_.plain_error
                                                  : options_.compressed_error * options_.optimism;
    const double step_s = candidate.tried ? known->step_s : prediction.step_s * error;
    prediction.exposed_s = std::max(0.0, prediction.exposed_s + step_s - prediction.step_s);
    prediction.step_s = step_s;
    candidate.worth = candidate.progress / prediction.step_s;
    return candidate;
  }
  // What it is worth; 0 below the floor.
  double look_at(gradient::FusionPlan plan) {
    const auto known = std::ranges::find(candidates_, plan, &Candidate::plan);
    if (known != candidates_.end()) return known->worth;
    Candidate candidate = weigh(std::move(plan));
    const double worth = candidate.worth;
    if (candidate.kept < options_.fidelity_min) return 0;
    candidates_.push_back(std::move(candidate));
    return worth;
  }
  // In order too, where the next forward does not wait for everything at once: what is left to send
  // after backward may then go in the order in which forward needs it.
  double look_at_orders(gradient::FusionPlan plan) {
    const bool one_by_one = std::ranges::any_of(profile_.needed_s, [](double s) { return s > 0; });
    const auto all = static_cast<uint32_t>(plan.buffers.size());
    gradient::FusionPlan turned = plan;
    if (one_by_one) {
      // From those that have not begun by the end of backward on, as long as more or fewer are
      // better.
      const Prediction in_order = predict(plan, layout_, profile_);
      double best_s = in_order.step_s;
      gradient::FusionPlan other = plan;
      const auto is_better = [&](uint32_t reversed) {
        other.reversed = reversed;
        const double step_s = predict(other, layout_, profile_).step_s;
        if (step_s >= best_s) return false;
        best_s = step_s;
        turned.reversed = reversed;
        return true;
      };
      const uint32_t first = std::max(2u, all - std::min(all, in_order.begun_in_backward));
      uint32_t more = first;
      while (more <= all && is_better(more)) ++more;
      uint32_t fewer = first - 1;
      while (fewer >= 2 && is_better(fewer)) --fewer;
    }
    const double worth = turned.reversed > 0 ? look_at(std::move(turned)) : 0;
    return std::max(worth, look_at(std::move(plan)));
  }

  // The most worth first; of those nearly equal to the best, and hardly slower, the one that keeps
  // most leads, and of several such that of the fewest buffers.
  std::vector<Candidate> ranked() && {
    const auto value = [](const Candidate& one) {
      return one.worth * (is_plain(one.plan) || one.tried ? kSurer : 1);
    };
    std::ranges::stable_sort(candidates_, std::greater<>{}, value);
    const double enough = value(candidates_.front()) * (1 - kEqualWorth);
    const double most_s = candidates_.front().prediction.step_s * (1 + kEqualWorth);
    auto best = candidates_.begin();
    for (auto other = best; other != candidates_.end() && value(*other) >= enough; ++other) {
      if (other->prediction.step_s > most_s) continue;
      const bool fewer = other->plan.buffers.size() < best->plan.buffers.size();
      if (other->kept > best->kept || (other->kept == best->kept && fewer)) best = other;
    }
    std::rotate(candidates_.begin(), best, best + 1);
    return std::move(candidates_);
  }

 private:
  const gradient::Layout& layout_;
  const Profile& profile_;
  const std::span<const codec::Curve> even_;
  const PlannerOptions& options_;
  std::vector<Candidate> candidates_;
};

// Compressed plans for budgets of bytes: far apart first, then close to the best of these, also
// with bytes of late parts priced higher.
class Budgets {
 public:
  Budgets(const gradient::Layout& layout, const Profile& profile,
          std::span<const codec::Curve> even, Ranking& ranking)
      : layout_(layout), profile_(profile), ranking_(ranking) {
    for (uint32_t part = 0; part < even.size(); ++part) {
      looked_at_.push_back(with_factors(even[part], part, layout));
    }
    price(0);
  }

  void look_around() {
    for (double budget = kBudgetMost; budget >= kBudgetLeast; budget *= kBudgetRatio) {
      if (!look_at(budget, kBufferCounts)) break;
    }
    std::ranges::stable_sort(found_, std::greater<>{}, &Found::worth);
  }
  void look_closer() {
    if (found_.empty()) return;
    const double best = found_.front().budget;
    std::vector<size_t> counts;
    for (const Found& one : found_) {
      if (one.budget == best && counts.size() < kFineCounts) counts.push_back(one.buffers);
    }
    for (const double surcharge : kLateSurcharges) {
      price(surcharge);
      const double least = best * kBudgetRatio;
      for (double budget = best / kBudgetRatio; budget > least; budget *= kFineRatio) {
        if (!look_at(budget, counts)) break;
      }
    }
  }

 private:
  struct Found {
    double worth = 0;
    double budget = 0;
    size_t buffers = 0;
  };

  void price(double late_surcharge) {
    priced_ = looked_at_;
    prices_.clear();
    elements_ = 0;
    for (size_t p = 0; p < priced_.size(); ++p) {
      const double late = profile_.ready_s[p] / std::max(profile_.backward_s, 1e-12);
      prices_.push_back(1 + late_surcharge * std::clamp(late, 0.0, 1.0));
      for (codec::CurvePoint& point : priced_[p].points) point.bytes *= prices_[p];
      elements_ += prices_[p] * static_cast<double>(layout_.parts()[p].range.elements);
    }
    before_.clear();
  }
  // False: the cheapest points cost more.
  bool look_at(double budget, std::span<const size_t> counts) {
    const auto allocated = codec::allocate(priced_, budget * elements_);
    if (!allocated) return false;
    if (allocated.value().choice == before_) return true;
    before_ = allocated.value().choice;
    std::vector<codec::Point> points;
    for (size_t p = 0; p < looked_at_.size(); ++p) {
      points.push_back(looked_at_[p].points[before_[p]].point);
    }
    for (const size_t buffers : counts) {
      if (buffers > points.size()) continue;
      const double worth =
          ranking_.look_at_orders(compressed_plan(layout_, points, prices_, buffers));
      found_.push_back({worth, budget, buffers});
    }
    return true;
  }

  const gradient::Layout& layout_;
  const Profile& profile_;
  std::vector<codec::Curve> looked_at_;  // by part, with points that have factors
  Ranking& ranking_;
  std::vector<double> prices_;        // of a byte, by part
  std::vector<codec::Curve> priced_;  // with bytes at these prices
  double elements_ = 0;               // each at the price of its part
  std::vector<size_t> before_;        // the choice that was looked at last
  std::vector<Found> found_;
};

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

gradient::Path compressed_path(const gradient::Layout& layout) {
  return layout.ranks() > 2 ? gradient::Path::split : gradient::Path::gather;
}

bool is_plain(const gradient::FusionPlan& plan) {
  return std::ranges::all_of(plan.buffers, [](const gradient::BufferPlan& buffer) {
    return buffer.path == gradient::Path::all_reduce;
  });
}

LastBuffer last_buffer(const gradient::FusionPlan& plan, const gradient::Layout& layout) {
  const gradient::BufferPlan& last = plan.buffers.back();
  double elements = 0;
  for (uint32_t i = 0; i < last.parts; ++i) {
    elements += static_cast<double>(layout.parts()[last.first_part + i].range.elements);
  }
  // A rank sends so many bytes for each that an element takes in a leg.
  const double ranks = layout.ranks();
  const double legs = 2 * std::max(ranks - 1, 1.0) / ranks;
  return {elements / static_cast<double>(layout.elements()),
          gradient::sent_bytes({.buffers = {last}}, layout) / (legs * elements)};
}

Candidate weigh(gradient::FusionPlan plan, const gradient::Layout& layout, const Profile& profile,
                std::span<const codec::Curve> curves, const PlannerOptions& options) {
  const std::vector<codec::Curve> even = by_elements(curves, layout);
  return Ranking(layout, profile, even, options).weigh(std::move(plan));
}

Result<std::vector<Candidate>> rank_plans(const gradient::Layout& layout, const Profile& profile,
                                          std::span<const codec::Curve> curves,
                                          const PlannerOptions& options) {
  const size_t parts = layout.parts().size();
  if (profile.ready_s.size() != parts) return invalid("profile: one ready_s a part is needed");
  if (!curves.empty() && curves.size() != parts) return invalid("curves: one a part is needed");
  const std::vector<codec::Curve> even = by_elements(curves, layout);
  Ranking ranking(layout, profile, even, options);
  for (const size_t buffers : kBufferCounts) {
    if (buffers <= parts) ranking.look_at_orders(plain_plan(layout, buffers));
  }
  if (even.empty()) return std::move(ranking).ranked();
  for (const TriedPlan& one : options.tried) {
    if (!is_plain(one.plan)) ranking.look_at(one.plan);
  }
  Budgets budgets(layout, profile, even, ranking);
  budgets.look_around();
  budgets.look_closer();
  return std::move(ranking).ranked();
}

}  // namespace scant::plan
