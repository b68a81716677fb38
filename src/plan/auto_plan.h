// Plans that follow what is measured: the user's handle on the agreements of docs/planner.md
// between the members of an averager. Owner: the user thread that runs the steps. The exchange and
// the averager must outlive this object.
#pragma once

#include <memory>
#include <optional>

#include "gradient/averager.h"
#include "gradient/exchange.h"
#include "plan/agreement.h"

namespace scant::plan {

struct AutoPlanOptions {
  TunerOptions tuning{};
  // Of this machine; empty: measured, once in a process, which takes about 0.1 s.
  std::optional<WorkRates> work{};
  Duration timeout = Duration::zero();  // of each operation; zero: the exchange's
};

class AutoPlan {
 public:
  // Every member of the exchange calls it with equal options; sets the averager's first plan.
  // The exchange calls `done` on a thread of its own.
  static Result<std::unique_ptr<AutoPlan>> create(gradient::Exchange& exchange,
                                                  gradient::Averager& averager,
                                                  const AutoPlanOptions& options);
  ~AutoPlan();
  AutoPlan(const AutoPlan&) = delete;
  AutoPlan& operator=(const AutoPlan&) = delete;

  // After each step, with its report. True: agree() has to follow before the next step.
  [[nodiscard]] bool step_done(const gradient::StepReport& report);
  // Nothing when it is not over within `limit`: call again. An error ends the plans.
  [[nodiscard]] std::optional<Result<void>> agree(Duration limit);
  // Of the last agreement, on the first member; nullptr on the others and before the first.
  [[nodiscard]] const Findings* findings() const;

 private:
  class Impl;
  explicit AutoPlan(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace scant::plan
