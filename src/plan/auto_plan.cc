#include "plan/auto_plan.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "plan/calibrate.h"

namespace scant::plan {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint64_t kFirstSounding = 16 << 10;
constexpr uint64_t kLastSounding = 4 << 20;
constexpr double kLongEnoughS = 0.008;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

class AutoPlan::Impl {
 public:
  Impl(Communicator& with, gradient::Averager& of, AutoPlanOptions how)
      : communicator(with), averager(of), options(std::move(how)), profiler(of.layout()) {}

  ~Impl() {
    if (group == kWorldGroup) return;
    static_cast<void>(communicator.release_group(group));
    // What is under way reads and writes this object's memory.
    if (work.valid()) static_cast<void>(work.wait());
    sounding.reset();
  }

  Result<void> start() {
    std::vector<Rank> members = options.members;
    if (members.empty()) {
      members.resize(static_cast<size_t>(communicator.size()));
      std::iota(members.begin(), members.end(), 0);
    }
    is_first = members.front() == communicator.rank();
    count = members.size();
    Result<GroupId> made = communicator.make_group(members, options.key);
    if (!made) return made.error();
    group = made.value();
    TunerOptions tuning = options.tuning;
    uint32_t sounding_bytes = 0;
    if (count > 1) {
      sounding.emplace(communicator, group, static_cast<int>(count), options.timeout);
      Result<FirstSounding> sounded = first_sounding();
      if (!sounded) return sounded.error();
      sounding_bytes = sounded.value().bytes;
      tuning.bytes_per_s = sounding_bytes / sounded.value().slowest_s;
    }
    if (is_first) {
      static const WorkRates rates = calibrate();
      tuner.emplace(averager.layout(), rates, tuning);
    }
    Decision first = Tuner::first(averager.layout(), tuning);
    first.sounding_bytes = sounding_bytes;
    return begin(std::move(first));
  }

  struct FirstSounding {
    uint32_t bytes = 0;
    double slowest_s = 0;  // of all ranks
  };

  // Ever more, until it takes long enough to tell the rate. Ranks decide by the slowest's time.
  Result<FirstSounding> first_sounding() {
    for (uint64_t bytes = kFirstSounding;; bytes *= 4) {
      sounding->begin(bytes);
      if (const auto sounded = sounding->poll(Duration::zero()); !sounded->ok()) {
        return sounded->error();
      }
      double slowest_s = sounding->times().exchange_s;
      const CallOptions call{.group = group, .timeout = options.timeout};
      const auto memory = std::as_writable_bytes(std::span(&slowest_s, 1));
      if (Result<void> agreed =
              communicator.all_reduce(memory, memory, DType::f64, ReduceOp::max, call).wait();
          !agreed) {
        return agreed.error();
      }
      if (slowest_s > kLongEnoughS || bytes >= kLastSounding) {
        return FirstSounding{static_cast<uint32_t>(bytes), std::max(slowest_s, 1e-9)};
      }
    }
  }

  Result<void> begin(Decision next) {
    if (Result<void> set = averager.set_plan(next.plan); !set) return set;
    decision = std::move(next);
    steps = 0;
    profiler.begin(decision.skipped);
    if (decision.curves && decision.steps == 1) averager.ask_for_curves();
    return {};
  }

  bool step_done(const gradient::StepReport& report) {
    std::optional<double> step_s;
    if (last_end) step_s = seconds_since(*last_end);
    last_end = Clock::now();
    profiler.add(report, step_s);
    ++steps;
    if (decision.curves && steps + 1 == decision.steps) averager.ask_for_curves();
    return steps >= decision.steps;
  }

  void begin_gather() {
    Measurement measured = profiler.finish();
    if (decision.sounding_bytes > 0) measured.sounding = sounding->times();
    mine.resize(measurement_bytes(measured.ready_s.size(), !measured.curves.empty()));
    write_measurement(measured, mine);
    std::vector<MutableBytes> parts;
    if (is_first) {
      all.resize(mine.size() * count);
      for (size_t i = 0; i < count; ++i) {
        parts.push_back(MutableBytes(all).subspan(i * mine.size(), mine.size()));
      }
    }
    work = communicator.gather(mine, std::move(parts), DType::u8, 0, call_options());
    stage = Stage::gathering;
  }

  Result<void> decide() {
    decided.assign(decision_bytes(averager.layout()), std::byte{0});
    if (is_first) {
      std::vector<Measurement> by_rank;
      for (size_t i = 0; i < count; ++i) {
        auto one = read_measurement(Bytes(all).subspan(i * mine.size(), mine.size()),
                                    averager.layout(), decision.curves);
        // The others wait for a decision: zeros are none, and end their steps too.
        if (!one) refused = one.error();
        if (one) by_rank.push_back(std::move(one).value());
      }
      if (!refused) {
        decided = serialise(tuner->decide(by_rank, agreement_s), averager.layout());
        agreed_once = true;
      }
    }
    work = communicator.broadcast(decided, DType::u8, 0, call_options());
    stage = Stage::telling;
    return {};
  }

  std::optional<Result<void>> agree(Duration limit) {
    if (stage == Stage::idle) {
      begun = Clock::now();
      stage = Stage::sounding;
      if (decision.sounding_bytes > 0) sounding->begin(decision.sounding_bytes);
    }
    if (stage == Stage::sounding) {
      if (decision.sounding_bytes > 0) {
        std::optional<Result<void>> sounded = sounding->poll(limit);
        if (!sounded || !sounded->ok()) return sounded;
      }
      begin_gather();
    }
    for (;;) {
      if (!work.wait(limit) && !work.done()) return std::nullopt;
      if (const Result<void> outcome = work.wait(); !outcome) return outcome;
      if (stage == Stage::telling) return obey();
      if (Result<void> decided_well = decide(); !decided_well) return decided_well;
    }
  }

  Result<void> obey() {
    stage = Stage::idle;
    if (refused) return *refused;
    Result<Decision> next = parse_decision(decided, averager.layout());
    if (!next) return next.error();
    agreement_s = seconds_since(begun);
    last_end = Clock::now();
    return begin(std::move(next).value());
  }

  [[nodiscard]] CallOptions call_options() const {
    return {.group = group, .timeout = options.timeout};
  }

  enum class Stage : uint8_t { idle, sounding, gathering, telling };

  Communicator& communicator;
  gradient::Averager& averager;
  const AutoPlanOptions options;
  GroupId group = kWorldGroup;
  bool is_first = false;
  size_t count = 1;
  std::optional<Tuner> tuner;  // on the first
  Profiler profiler;
  Decision decision;
  uint32_t steps = 0;
  std::optional<Clock::time_point> last_end;
  Clock::time_point begun;
  double agreement_s = 0;
  Stage stage = Stage::idle;
  std::optional<Sounding> sounding;  // of more than one rank
  Work work;
  std::optional<Error> refused;  // what the first could not read
  std::vector<std::byte> mine;
  std::vector<std::byte> all;
  std::vector<std::byte> decided;
  bool agreed_once = false;
};

AutoPlan::AutoPlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AutoPlan::~AutoPlan() = default;

Result<std::unique_ptr<AutoPlan>> AutoPlan::create(Communicator& communicator,
                                                   gradient::Averager& averager,
                                                   const AutoPlanOptions& options) {
  auto impl = std::make_unique<Impl>(communicator, averager, options);
  if (Result<void> started = impl->start(); !started) return started.error();
  return std::unique_ptr<AutoPlan>(new AutoPlan(std::move(impl)));
}

bool AutoPlan::step_done(const gradient::StepReport& report) { return impl_->step_done(report); }
std::optional<Result<void>> AutoPlan::agree(Duration limit) { return impl_->agree(limit); }
const Findings* AutoPlan::findings() const {
  return impl_->agreed_once ? &impl_->tuner->findings() : nullptr;
}

}  // namespace scant::plan
