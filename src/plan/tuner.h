// Rank 0's side of docs/planner.md: what all ranks measured over a period becomes the decision for
// the next. A protocol core: no thread, clock or memory of others. It also tells what it saw and
// why it decided so, for the run log.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan/decision.h"
#include "plan/fit.h"
#include "plan/measurement.h"
#include "plan/planner.h"

namespace scant::plan {

// What an agreement found: the lines of docs/run_log.md.
struct Findings {
  Measurement slowest;  // scalars: of all ranks together
  Rank slowest_rank = 0;
  std::string plan;            // that ran
  double predicted_s = 0;      // of it; 0 where it was not chosen by prediction
  double predicted_bytes = 0;  // that a rank sends by it
  double kept = 1;             // over both legs
  bool measuring = false;
  double dense_bytes = 0;
  double rho = 0;
  LinkRate link;
  Contention contention;
  double plain_s = 0;
  struct Choice {
    std::string why;
    bool changed = false;
    Candidate chosen;
    std::vector<Candidate> others;
    Profile profile;
  };
  std::optional<Choice> choice;
  std::string guard;  // empty: it did not act
};

struct TunerOptions {
  double fidelity_min = 0;
  std::optional<gradient::FusionPlan> pinned{};  // measured and predicted, never changed
  double bytes_per_s = 0;                        // of the link, by the first soundings; 0: unknown
};

class Tuner {
 public:
  // `work`: of rank 0's machine. `layout` outlives the tuner.
  Tuner(const gradient::Layout& layout, const WorkRates& work, const TunerOptions& options);

  // The first decision, which every rank makes alike.
  [[nodiscard]] static Decision first(const gradient::Layout& layout, const TunerOptions& options);
  // by_rank: of the period that first() or the last decision began. agreement_s: what the last
  // agreement took.
  [[nodiscard]] Decision decide(const std::vector<Measurement>& by_rank, double agreement_s);
  [[nodiscard]] const Findings& findings() const { return findings_; }
  // Of rank 0's machine, as the steps have corrected it.
  [[nodiscard]] const WorkRates& work() const { return profile_.work; }

 private:
  enum class Phase : uint8_t { measuring, running, comparing };
  struct Known {  // what the last choice rested on
    double step_s = 0;
    double compute_s = 0;
    double bytes_per_s = 0;
    double kept = 0;
  };

  void combine(const std::vector<Measurement>& by_rank);
  void take_link(const LinkRate& sounded);
  void fit_all(const std::vector<Measurement>& by_rank);
  void take_curves(std::vector<codec::Curve> fresh);
  void fit_work(double measured_s);
  void learn_error();
  void learn_exchanges();
  void count_bytes();
  void remember();
  void watch();  // the guard
  [[nodiscard]] double worth_now() const;
  [[nodiscard]] Candidate best_plain() const;
  [[nodiscard]] std::string reason() const;  // for a choice; empty: none is needed
  [[nodiscard]] bool comparing_is_due() const;
  void choose(std::string why);
  [[nodiscard]] uint32_t sounding_bytes() const;
  [[nodiscard]] Decision compare();
  [[nodiscard]] Decision run();

  const gradient::Layout& layout_;
  const TunerOptions given_;
  PlannerOptions options_;  // with the errors learnt, and the floor
  Profile profile_;
  LinkRate sounded_;  // by the last agreement
  std::vector<codec::Curve> curves_;
  std::vector<ComputeSample> computing_;
  std::vector<TriedPlan> tried_;  // options_.tried shows it
  Phase phase_ = Phase::measuring;
  gradient::FusionPlan plan_;          // that runs
  std::optional<Candidate> expected_;  // of it, when it was chosen
  Known known_;
  double kept_then_ = 0;    // by the plan's first period
  double sent_to_law_ = 1;  // bytes, of the running plan
  bool new_plan_ = false;
  bool compared_ = false;
  double compared_at_ = 0;  // step
  double steps_ = 0;
  double agreements_ = 0;
  double agreement_s_ = 0;
  double floor_until_ = 0;  // agreement
  Findings findings_;
};

}  // namespace scant::plan
