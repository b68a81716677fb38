// Plans that follow what is measured: the agreements of docs/planner.md between the ranks of an
// averager. Owner: the user thread that runs the steps. The communicator and the averager must
// outlive this object.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gradient/averager.h"
#include "plan/tuner.h"
#include "scant/communicator.h"

namespace scant::plan {

struct AutoPlanOptions {
  std::string key = "plans";    // of its group: equal on all ranks
  std::vector<Rank> members{};  // as the averager's
  TunerOptions tuning{};
  Duration timeout = Duration::zero();  // of each operation; zero: the communicator's
};

class AutoPlan {
 public:
  // Every member calls it with equal options; sets the averager's first plan. The first in a
  // process takes about 0.1 s.
  static Result<std::unique_ptr<AutoPlan>> create(Communicator& communicator,
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
