// The members' agreements on plans: docs/planner.md, "Agreements", has the table of its states. A
// protocol core without thread, clock and I/O: it makes operations for an Exchange, one at a time,
// and is told their outcomes and the time. Memory of an operation is this object's, which stays
// until the outcome is there. Owner: whoever drives it, one thread.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "gradient/exchange.h"
#include "gradient/step_report.h"
#include "plan/sounding.h"
#include "plan/tuner.h"

namespace scant::plan {

struct AgreementOptions {
  TunerOptions tuning{};  // equal on all members
  gradient::Lane lane{.slot = 0, .leg = gradient::Leg::agreement};
  Duration timeout = Duration::zero();  // of each operation; zero: the exchange's
};

class Agreement {
 public:
  enum class State : uint8_t {
    idle,            // no members yet
    first_sounding,  // an operation of the first soundings is under way
    slowest,         // or how long the slowest member took, to all
    running,         // steps of a period
    due,             // the period is over: agree() has to follow
    sounding,        // an operation of the sounding after a period is under way
    gathering,       // or the measurements, to place 0
    telling,         // or its decision, to all
    failed,          // error() says why; begin() with other members is the way out
  };

  // `layout` outlives this object. It may be cut for another number of ranks than there are
  // members: then plans are predicted by one that is cut for these.
  Agreement(const gradient::Layout& layout, AgreementOptions options);
  Agreement(const Agreement&) = delete;
  Agreement& operator=(const Agreement&) = delete;

  // In the states without an operation under way: from now on these are the members, this one among
  // them. `work`: of this machine, which place 0 starts from, unless it was place 0 before.
  // What this, agree() and done() return is to be submitted at once. Where they return nothing, the
  // state is `running` and decision() is new, or it is `failed`.
  [[nodiscard]] std::optional<gradient::Operation> begin(const gradient::Members& members,
                                                         const WorkRates& work, const Moment& at);
  // After each step, while it is running. True: agree() has to follow before the next step.
  [[nodiscard]] bool step_done(const gradient::StepReport& report, Time now);
  [[nodiscard]] std::optional<gradient::Operation> agree(const Moment& at);
  // Of the operation that is under way.
  [[nodiscard]] std::optional<gradient::Operation> done(const Result<void>& outcome,
                                                        const Moment& at);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] bool under_way() const;
  [[nodiscard]] const std::optional<Error>& error() const { return error_; }
  [[nodiscard]] const gradient::Members& members() const { return members_; }
  [[nodiscard]] gradient::Lane lane() const { return options_.lane; }
  [[nodiscard]] const Decision& decision() const { return decision_; }
  // Whether the next step is to measure curves.
  [[nodiscard]] bool curves_wanted() const;
  // Of the last agreement, at place 0; nullptr elsewhere and before the first.
  [[nodiscard]] const Findings* findings() const;

 private:
  using Next = std::optional<gradient::Operation>;
  [[nodiscard]] bool is_first() const { return members_.self == 0; }
  void cut_layout();
  [[nodiscard]] Next framed(State state, gradient::Operation operation);
  [[nodiscard]] Next sound(State state, uint64_t bytes, const Moment& at);
  [[nodiscard]] Next tell_slowest();
  [[nodiscard]] Next take_slowest(const Moment& at);
  void start(uint64_t sounded_bytes, double sounded_s);
  [[nodiscard]] Next gather();
  void decide();
  [[nodiscard]] Next tell();
  void obey(Time now);
  void run(Decision next);
  Next fail(Error error);

  const gradient::Layout& given_;
  const AgreementOptions options_;
  std::optional<gradient::Layout> cut_;  // for these members, where `given_` is not
  const gradient::Layout* layout_;       // one of both
  gradient::Members members_;
  State state_ = State::idle;
  std::optional<Error> error_;
  WorkRates work_;              // what the tuner starts from
  std::optional<Tuner> tuner_;  // at place 0
  std::optional<Sounding> sounding_;
  uint64_t first_bytes_ = 0;  // of the first sounding that is under way
  double slowest_s_ = 0;      // of all members
  Profiler profiler_;
  Decision decision_;
  uint32_t steps_ = 0;  // of this period
  uint64_t periods_ = 0;
  std::optional<Time> last_end_;  // of a step
  Time begun_{};                  // the agreement
  double agreement_s_ = 0;        // what the last one took
  std::optional<Error> refused_;  // what place 0 could not read
  bool agreed_ = false;           // at least once
  std::vector<std::byte> mine_;
  std::vector<std::byte> all_;
  std::vector<std::byte> decided_;
};

}  // namespace scant::plan
