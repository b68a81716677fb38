// A world that a table describes, for tests: what ranks would measure by a plan follows from true
// rates, which the tuner does not know.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "plan/tuner.h"

namespace scant::plan {

inline WorkRates rates(double factor = 1) {
  WorkRates work;
  for (auto* kinds : {&work.encode, &work.decode}) {
    for (WorkRates::Kind& kind : *kinds) kind = {0.5e-9 * factor, 2e-9 * factor};
  }
  work.scan_s = 0.3e-9 * factor;
  work.clear_s = 0.3e-9 * factor;
  work.record_s = 2e-6 * factor;
  work.product_s = 0.05e-9 * factor;
  work.basis_s = 1e-9 * factor;
  return work;
}

// As of Gaussian gradients, roughly.
inline codec::Curve curve_of(uint64_t elements) {
  codec::Curve curve;
  curve.energy = static_cast<double>(elements);
  for (const codec::Point point : codec::default_points()) {
    const double density = std::min(1.0, 2.2 * std::pow(point.density, 0.6));
    const double bits = codec::bits(point.values);
    const double value = std::max(0.3, 1 - 2.5 * std::pow(4.0, -bits));
    curve.points.push_back(
        {point, codec::expected_record_bytes(elements, point), curve.energy * density * value});
  }
  return curve;
}

// What the ranks measure: the prediction with the world's true rates, which the tuner does not
// know. `hidden` is what no model knows: a factor on compressed plans.
class World {
 public:
  explicit World(const std::vector<uint64_t>& sizes, int ranks = 4) {
    std::vector<codec::Shape> shapes;
    for (const uint64_t n : sizes) shapes.push_back({1, n});
    layout_.emplace(gradient::Layout::create(shapes, ranks).value());
    const auto parts = static_cast<double>(layout_->parts().size());
    truth.backward_s = 0.2;
    truth.rest_s = 0.1;
    for (double p = 1; p <= parts; ++p) truth.ready_s.push_back(truth.backward_s * p / parts);
    truth.contention = 0.4;
    truth.work = rates(1.7);
    set_link(1e-4, 1e8);
  }

  void set_link(double alpha_s, double bytes_per_s) {
    truth.link = {alpha_s, bytes_per_s, bytes_per_s};
  }
  [[nodiscard]] const gradient::Layout& layout() const { return *layout_; }

  std::vector<Measurement> measure(const Decision& decision) const {
    const Prediction step = predict(decision.plan, layout(), truth);
    const double factor = is_plain(decision.plan) ? 1 : hidden;
    Measurement one;
    one.steps = decision.steps - decision.skipped;
    one.step_s = step.step_s * factor + hidden_s(decision.plan);
    one.backward_s = step.backward_s;
    one.exposed_s = step.exposed_s + (factor - 1) * step.step_s + hidden_s(decision.plan);
    one.encode_s = step.work_s;
    one.end_s = std::max(step.end_s, one.backward_s + one.exposed_s);
    one.overlapped_work_s = step.work_s * beside_computing(one.end_s, one.exposed_s);
    one.sent_bytes = step.sent_bytes * (is_plain(decision.plan) ? 1 : more_bytes);
    one.kept = is_plain(decision.plan) ? 1 : kept;
    one.ready_s = truth.ready_s;
    one.needed_s = truth.needed_s;
    one.needed_s.resize(truth.ready_s.size());
    // The first size is not the tuner's to choose.
    one.sounding = sound(std::max(decision.sounding_bytes, 100'000u));
    if (decision.curves) {
      for (const gradient::PartLayout& part : layout().parts()) {
        one.curves.push_back(curve_of(part.range.elements));
      }
    }
    return std::vector<Measurement>(static_cast<size_t>(layout().ranks()), one);
  }

  [[nodiscard]] double hidden_s(const gradient::FusionPlan& plan) const {
    const bool costs = gradient::sent_bytes(plan, layout()) > hidden_from;
    return costs ? hidden_large_s : 0;
  }

  Profile truth;
  double hidden = 1;
  // Nor this: plans that send more bytes take so much longer.
  double hidden_from = 0;
  double hidden_large_s = 0;
  double kept = 0.9;
  double more_bytes = 1;  // of compressed plans, than the law of independent positions has it

 private:
  [[nodiscard]] SoundingTimes sound(double bytes) const {
    SoundingTimes times;
    times.small_s = truth.link.alpha_s;
    times.exchange_bytes = times.reduce_bytes = bytes;
    times.exchange_s = truth.link.alpha_s + bytes / truth.link.bytes_per_s;
    times.reduce_s = truth.link.alpha_s *
                         messages_in_a_row(gradient::Path::all_reduce, layout().ranks(), bytes) +
                     bytes / truth.link.reduced_bytes_per_s;
    return times;
  }
  std::optional<gradient::Layout> layout_;
};

}  // namespace scant::plan
