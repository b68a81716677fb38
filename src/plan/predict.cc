#include "plan/predict.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>

#include "base/check.h"
#include "codec/rate/probe.h"
#include "collective/schedules/cost_model.h"
#include "gradient/step_core.h"

namespace scant::plan {
namespace {

// What a stage of a buffer costs, summed over its parts. Work is this rank's; ranks are taken to be
// alike, so that one owns a P-th of everything.
struct StageCost {
  double first_bytes = 0;
  double second_bytes = 0;
  double first_messages = 1;
  double add_s = 0;     // all_reduce: 0
  double decode_s = 0;  // split
};
struct BufferCost {
  StageCost basis;
  StageCost values;
};

codec::Point dense(codec::ValueKind kind) { return {1.0, kind}; }

// So many elements that go at `first` to owners or to all, and at `second` back.
void add_range(StageCost& cost, uint64_t n, codec::Point first, codec::Point second,
               gradient::Path path, int ranks, const WorkRates& work) {
  const double others = ranks - 1;
  const double bytes = codec::expected_record_bytes(n, first);
  const double added = add_s(work, n, first, ranks);
  if (path == gradient::Path::gather) {
    cost.first_bytes += others * bytes;
    cost.add_s += added;
    return;
  }
  cost.first_bytes += others / ranks * bytes;
  cost.second_bytes += others / ranks * codec::expected_record_bytes(n, second);
  cost.add_s += (added + encode_s(work, n, second)) / ranks;
  cost.decode_s += add_s(work, n, second, 1);
}

double product_s(const WorkRates& work, const gradient::Layout& layout, uint32_t part,
                 uint32_t rank) {
  return work.product_s * rank * static_cast<double>(layout.parts()[part].range.elements);
}

void add_factors(BufferCost& cost, uint32_t part, const gradient::PartPlan& points,
                 gradient::Path path, const gradient::Layout& layout, const WorkRates& work) {
  const codec::Shape matrix = layout.matrix_of(part);
  const uint32_t rank = points.first.rank;
  const codec::Point first = dense(points.first.factors);
  const codec::Point second = dense(points.second.factors);
  const int ranks = layout.ranks();
  add_range(cost.basis, rank * matrix.rows, first, second, path, ranks, work);
  add_range(cost.values, rank * matrix.columns, first, second, path, ranks, work);
  // The basis is made, and the average put together, when the last leg has come.
  const bool split = path == gradient::Path::split;
  (split ? cost.basis.decode_s : cost.basis.add_s) +=
      work.basis_s * rank * rank * static_cast<double>(matrix.rows);
  (split ? cost.values.decode_s : cost.values.add_s) += product_s(work, layout, part, rank);
}

BufferCost cost_of(const gradient::BufferPlan& buffer, const gradient::Layout& layout,
                   const WorkRates& work) {
  const int ranks = layout.ranks();
  BufferCost cost;
  double elements = 0;
  for (uint32_t i = 0; i < buffer.parts; ++i) {
    const gradient::PartLayout& part = layout.parts()[buffer.first_part + i];
    elements += static_cast<double>(part.range.elements);
    if (buffer.path == gradient::Path::all_reduce) continue;
    const gradient::PartPlan& points = buffer.points[i];
    if (points.first.rank > 0) {
      add_factors(cost, buffer.first_part + i, points, buffer.path, layout, work);
    }
    if (points.first.density == 0) continue;
    for (const gradient::SliceLayout& slice : layout.slices_of(part)) {
      add_range(cost.values, slice.range.elements, points.first, points.second, buffer.path, ranks,
                work);
    }
  }
  if (buffer.path == gradient::Path::all_reduce) {
    cost.values.first_bytes = collective::all_reduce_sent_bytes(elements * sizeof(float), ranks);
    cost.values.first_messages = messages_in_a_row(buffer.path, ranks, cost.values.first_bytes);
  }
  return cost;
}

struct Event {
  double at = 0;
  uint64_t order = 0;  // of equal times, the earlier made goes first
  bool ready = false;  // a part is there; else `job` is over
  gradient::StepCore::Job job;
  bool operator>(const Event& other) const {
    return at != other.at ? at > other.at : order > other.order;
  }
};

class Simulation {
 public:
  Simulation(const gradient::FusionPlan& plan, const gradient::Layout& layout,
             const Profile& profile)
      : plan_(plan), layout_(layout), profile_(profile) {
    for (const gradient::BufferPlan& buffer : plan.buffers) {
      costs_.push_back(cost_of(buffer, layout, profile.work));
    }
    core_.begin(plan);
    done_s_.resize(plan.buffers.size());
    for (uint32_t part = 0; part < layout.parts().size(); ++part) {
      push({profile.ready_s[part], 0, true, {gradient::StepCore::Kind::encode, 0, part}});
    }
  }

  // The end of the last buffer.
  double run() {
    while (!core_.done()) {
      if (!working_) start_work();
      SCANT_CHECK(!events_.empty(), "a step ends when all its events have happened");
      const Event event = events_.top();
      events_.pop();
      now_ = event.at;
      if (event.ready) {
        core_.part_ready(event.job.part);
      } else {
        if (!is_leg(event.job)) working_ = false;
        core_.finished(event.job);
        if (core_.is_done(event.job.buffer)) done_s_[event.job.buffer] = now_;
      }
    }
    return now_;
  }
  // What computing waits for averages: each part is waited for when it is needed.
  [[nodiscard]] double waited_s() const {
    if (profile_.needed_s.empty()) return std::max(0.0, now_ - profile_.backward_s);
    std::vector<uint32_t> parts(layout_.parts().size());
    std::iota(parts.begin(), parts.end(), 0u);
    std::ranges::stable_sort(parts, {}, [&](uint32_t part) { return profile_.needed_s[part]; });
    double waited = 0;
    for (const uint32_t part : parts) {
      const double computed = profile_.backward_s + profile_.needed_s[part];
      waited = std::max(waited, done_s_[core_.buffer_of(part)] - computed);
    }
    return waited;
  }
  [[nodiscard]] uint32_t begun_in_backward() const { return begun_in_backward_; }
  [[nodiscard]] double work_s() const { return work_s_; }
  [[nodiscard]] double link_s() const { return link_s_; }
  [[nodiscard]] double sending_s() const { return sending_s_; }
  [[nodiscard]] double sent_bytes() const { return sent_bytes_; }

 private:
  static bool is_leg(const gradient::StepCore::Job& job) {
    return job.kind == gradient::StepCore::Kind::begin_first ||
           job.kind == gradient::StepCore::Kind::begin_second;
  }
  void push(Event event) {
    event.order = made_++;
    events_.push(event);
  }

  // Legs begin at once; one job runs at a time.
  void start_work() {
    while (!working_) {
      const auto job = core_.next();
      if (!job) return;
      if (is_leg(*job)) {
        begin_leg(*job);
        continue;
      }
      const double seconds = work_of(*job);
      work_s_ += seconds;
      working_ = true;
      push({now_ + seconds, 0, false, *job});
    }
  }
  void begin_leg(const gradient::StepCore::Job& job) {
    const StageCost& cost = cost_of_stage(job);
    const bool first = job.kind == gradient::StepCore::Kind::begin_first;
    const double bytes = first ? cost.first_bytes : cost.second_bytes;
    const bool reduces = plan_.buffers[job.buffer].path == gradient::Path::all_reduce;
    const double slower = reduces ? 1 : profile_.in_steps;
    const double seconds =
        slower * bytes / (reduces ? profile_.link.reduced_bytes_per_s : profile_.link.bytes_per_s);
    const double begins = std::max(link_free_, now_);
    if (first && begins < profile_.backward_s) ++begun_in_backward_;
    link_free_ = begins + seconds;
    link_s_ += seconds;
    sent_bytes_ += bytes;
    const double messages = first ? cost.first_messages : 1;
    // In a ring each message has one receiver, in an exchange one for each other rank.
    const double exchanges = reduces ? messages / std::max(layout_.ranks() - 1, 1) : 1;
    sending_s_ += exchanges * profile_.link.cpu_s + bytes * profile_.link.cpu_s_per_byte;
    push({link_free_ + slower * profile_.link.alpha_s * messages, 0, false, job});
  }
  [[nodiscard]] double work_of(const gradient::StepCore::Job& job) const {
    if (job.kind == gradient::StepCore::Kind::add) return cost_of_stage(job).add_s;
    if (job.kind == gradient::StepCore::Kind::decode) return cost_of_stage(job).decode_s;
    const gradient::BufferPlan& buffer = plan_.buffers[job.buffer];
    if (buffer.path == gradient::Path::all_reduce) return 0;
    const codec::Point point = buffer.points[job.part - buffer.first_part].first;
    const WorkRates& work = profile_.work;
    const uint64_t side = factor_side(job, point);
    double seconds = 0;
    if (side > 0) {
      seconds += encode_s(work, side * point.rank, dense(point.factors));
      // A times the directions; then its transpose times the basis, and the rest.
      const int products = job.stage == gradient::Stage::basis ? 1 : 2;
      seconds += products * product_s(work, layout_, job.part, point.rank);
    }
    if (job.stage == gradient::Stage::basis || point.density == 0) return seconds;
    for (const gradient::SliceLayout& slice : layout_.slices_of(layout_.parts()[job.part])) {
      seconds += encode_s(work, slice.range.elements, point);
    }
    return seconds;
  }
  // Rows or columns of the factor that this job encodes; 0 where there is none.
  [[nodiscard]] uint64_t factor_side(const gradient::StepCore::Job& job, codec::Point point) const {
    if (point.rank == 0) return 0;
    const codec::Shape matrix = layout_.matrix_of(job.part);
    return job.stage == gradient::Stage::basis ? matrix.rows : matrix.columns;
  }
  [[nodiscard]] const StageCost& cost_of_stage(const gradient::StepCore::Job& job) const {
    const BufferCost& cost = costs_[job.buffer];
    return job.stage == gradient::Stage::basis ? cost.basis : cost.values;
  }

  const gradient::FusionPlan& plan_;
  const gradient::Layout& layout_;
  const Profile& profile_;
  std::vector<BufferCost> costs_;
  std::vector<double> done_s_;  // by buffer
  uint32_t begun_in_backward_ = 0;
  gradient::StepCore core_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t made_ = 0;
  double now_ = 0;
  double link_free_ = 0;
  bool working_ = false;
  double work_s_ = 0;
  double link_s_ = 0;
  double sending_s_ = 0;
  double sent_bytes_ = 0;
};

}  // namespace

double messages_in_a_row(gradient::Path path, int ranks, double bytes_sent) {
  constexpr double kRingFrom = 256.0 * 1024;
  if (path != gradient::Path::all_reduce || ranks <= 2) return 1;
  const double whole = bytes_sent / collective::all_reduce_sent_bytes(1, ranks);
  return whole >= kRingFrom ? 2.0 * (ranks - 1) : std::ceil(std::log2(ranks));
}

double encode_s(const WorkRates& work, uint64_t elements, codec::Point point) {
  const auto n = static_cast<double>(elements);
  const WorkRates::Kind& kind = work.encode[static_cast<size_t>(point.values)];
  if (point.density >= 1) return work.record_s + n * kind.dense_s;
  return work.record_s + n * work.scan_s + point.density * n * kind.entry_s;
}

double add_s(const WorkRates& work, uint64_t elements, codec::Point point, int records) {
  const auto n = static_cast<double>(elements);
  const WorkRates::Kind& kind = work.decode[static_cast<size_t>(point.values)];
  if (point.density >= 1) return records * (work.record_s + n * kind.dense_s);
  return n * work.clear_s + records * (work.record_s + point.density * n * kind.entry_s);
}

double beside_computing(double end_s, double exposed_s) {
  return end_s > 0 ? std::clamp(1 - exposed_s / end_s, 0.0, 1.0) : 1;
}

Prediction predict(const gradient::FusionPlan& plan, const gradient::Layout& layout,
                   const Profile& profile) {
  SCANT_CHECK(profile.ready_s.size() == layout.parts().size());
  SCANT_CHECK(profile.needed_s.empty() || profile.needed_s.size() == layout.parts().size());
  Simulation simulation(plan, layout, profile);
  const double end = simulation.run();
  Prediction prediction;
  prediction.work_s = simulation.work_s();
  prediction.link_s = simulation.link_s();
  prediction.sending_s = simulation.sending_s();
  prediction.sent_bytes = simulation.sent_bytes();
  prediction.end_s = end;
  prediction.begun_in_backward = simulation.begun_in_backward();
  // What contention adds moves the ends of buffers along with the end of backward.
  prediction.exposed_s = simulation.waited_s();
  prediction.backward_s = profile.backward_s +
                          profile.contention * beside_computing(end, prediction.exposed_s) *
                              (prediction.work_s + prediction.sending_s) +
                          profile.sending_s_per_byte * prediction.sent_bytes;
  prediction.step_s = profile.rest_s + prediction.backward_s + prediction.exposed_s;
  return prediction;
}

}  // namespace scant::plan
