#include "plan/auto_plan.h"

#include <time.h>
#include <utility>

#include "base/queue.h"
#include "plan/calibrate.h"

namespace scant::plan {
namespace {

using gradient::Operation;

double process_cpu_s() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// The machine stays the same while the process lives, so one of its clocks is enough. What failed
// is tried again at the next call.
Result<WorkRates> rates_of_this_machine(const gradient::Exchange& exchange) try {
  static const WorkRates rates = [&] {
    Result<WorkRates> measured = calibrate([&exchange] { return exchange.now(); });
    if (!measured) throw measured.error();
    return measured.value();
  }();
  return rates;
} catch (const Error& error) {
  return error;
}

}  // namespace

class AutoPlan::Impl {
 public:
  Impl(gradient::Exchange& with, gradient::Averager& of, const AutoPlanOptions& how)
      : exchange(with),
        averager(of),
        work(how.work),
        agreement(of.layout(), {.tuning = how.tuning, .timeout = how.timeout}) {}

  ~Impl() {
    if (agreement.state() == Agreement::State::idle) return;
    exchange.cancel(agreement.members(), agreement.lane());
    // What is under way reads and writes this object's memory.
    if (agreement.under_way()) static_cast<void>(outcomes.pop());
  }

  Result<void> start() {
    const gradient::Members members = exchange.members();
    if (members.self == kNoRank) {
      return Error{.code = ErrorCode::invalid_argument,
                   .message = "automatic plans: this rank is none of the exchange's members"};
    }
    if (members.self == 0 && !work) {
      Result<WorkRates> measured = rates_of_this_machine(exchange);
      if (!measured) return measured.error();
      work = measured.value();
    }
    submit(agreement.begin(members, work.value_or(WorkRates{}), moment()));
    return *drive(Duration::max());
  }

  bool step_done(const gradient::StepReport& report) {
    const bool due = agreement.step_done(report, exchange.now());
    if (agreement.curves_wanted()) averager.ask_for_curves();
    return due;
  }

  std::optional<Result<void>> agree(Duration limit) {
    if (!agreement.under_way()) submit(agreement.agree(moment()));
    return drive(limit);
  }

  // Until the agreement is over, or nothing came within `limit`.
  std::optional<Result<void>> drive(Duration limit) {
    while (agreement.under_way()) {
      const std::optional<Result<void>> outcome = outcomes.pop(limit);
      if (!outcome) return std::nullopt;
      submit(agreement.done(*outcome, moment()));
    }
    if (agreement.error()) return *agreement.error();
    if (Result<void> set = averager.set_plan(agreement.decision().plan); !set) return set;
    if (agreement.curves_wanted()) averager.ask_for_curves();
    return Result<void>();
  }

  void submit(std::optional<Operation> operation) {
    if (!operation) return;
    exchange.submit(agreement.members(), std::move(*operation),
                    [this](const gradient::Outcome& outcome) { outcomes.push(outcome.result); });
  }

  [[nodiscard]] Moment moment() const { return {exchange.now(), process_cpu_s()}; }

  gradient::Exchange& exchange;
  gradient::Averager& averager;
  std::optional<WorkRates> work;
  Agreement agreement;
  base::BoundedQueue<Result<void>> outcomes{1};  // of the one operation that is under way
};

AutoPlan::AutoPlan(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AutoPlan::~AutoPlan() = default;

Result<std::unique_ptr<AutoPlan>> AutoPlan::create(gradient::Exchange& exchange,
                                                   gradient::Averager& averager,
                                                   const AutoPlanOptions& options) {
  auto impl = std::make_unique<Impl>(exchange, averager, options);
  if (Result<void> started = impl->start(); !started) return started.error();
  return std::unique_ptr<AutoPlan>(new AutoPlan(std::move(impl)));
}

bool AutoPlan::step_done(const gradient::StepReport& report) { return impl_->step_done(report); }
std::optional<Result<void>> AutoPlan::agree(Duration limit) { return impl_->agree(limit); }
const Findings* AutoPlan::findings() const { return impl_->agreement.findings(); }

}  // namespace scant::plan
