// One rank of a simulated training: its exchange, its streams of rounds, each a GradientStep, and a
// processor that does one job at a time, charged in virtual time. Tells a watcher what happens.
// Owner: the one thread of the simulation.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gradient/gradient_step.h"
#include "gradient/nested_exchange.h"
#include "plan/agreement.h"
#include "plan/predict.h"
#include "sim/training_ledger.h"
#include "sim/training_scenario.h"

namespace scant::sim {

[[nodiscard]] Duration duration_of(const gradient::Effort& effort, const plan::WorkRates& rates);
[[nodiscard]] plan::WorkRates usual_rates();

class TrainingHost;

class TrainingWatcher {
 public:
  virtual ~TrainingWatcher() = default;
  virtual void on_begin(TrainingHost& host, uint32_t stream, const Held& before) = 0;
  virtual void on_end(TrainingHost& host, uint32_t stream,
                      const Result<gradient::StepReport>& outcome) = 0;
  // An agreement on a plan or on the next round failed.
  virtual void on_error(TrainingHost& host, uint32_t stream, const Error& error) = 0;
  // What the program of the host may not see: a call that must succeed did not.
  virtual void complain(Rank rank, const std::string& what) = 0;
};

class TrainingHost {
 public:
  struct Stream {
    enum class State : uint8_t { idle, agreeing, running, failed, finished };
    std::unique_ptr<gradient::GradientStep> step;
    std::vector<float> arena;
    std::vector<float> fed;  // of this round
    Held held;               // when it began
    double energy_met = 0;   // at most what its encoders looked at, in all rounds so far
    State state = State::idle;
    uint64_t round = 0;           // the last that began
    uint64_t completed = 0;       // the last that ended well
    bool stated_failure = false;  // its verdict said so
    bool lost_first = false;      // some of its records of a first leg did not arrive
    uint64_t samples = 0;
    size_t tensors_ready = 0;
    std::vector<std::vector<gradient::SliceDuty>> owner_changes;  // of this round
    size_t owner_changes_made = 0;
    std::vector<std::byte> plan_bytes;
    std::unique_ptr<plan::Agreement> agreement;  // of planned trainings
    uint64_t agreed_epoch = 0;
    std::vector<std::byte> own_completed;
    std::vector<std::byte> all_completed;
  };

  TrainingHost(const Training& training, net::SimulatedNetwork& network, Rank rank,
               TrainingWatcher& watcher);
  ~TrainingHost();

  void start(const gradient::Members& members);
  // Stations that the network says are due: the rank's, or its outer one.
  void pump(Rank station);
  // Agrees on the round that each stream goes on with, and goes on.
  void go_on(const gradient::Members& members);
  // The rank's station, or its outer one.
  void shrink(bool outer, Duration limit, gradient::SimulatedExchange::Shrunk done);
  // Nothing of this host runs any more.
  void abandon();
  void close();

  [[nodiscard]] Rank rank() const { return rank_; }
  [[nodiscard]] const gradient::Members& members() const { return members_; }
  [[nodiscard]] Stream& stream(uint32_t index) { return streams_[index]; }
  [[nodiscard]] bool at_rest() const;  // all streams finished or failed
  [[nodiscard]] bool any_failed() const;
  [[nodiscard]] bool all_finished() const;
  [[nodiscard]] std::string leaks() const;
  [[nodiscard]] std::string state() const;

 private:
  [[nodiscard]] gradient::Exchange& exchange();
  void later(Duration after, std::function<void()> action);
  [[nodiscard]] base::Rng rng_of(uint32_t stream, uint64_t round, uint64_t use) const;
  [[nodiscard]] bool has_gradient(uint32_t stream, uint64_t round, uint32_t tensor) const;
  void next_round(uint32_t index);
  void agree_on_plan(uint32_t index);
  void take_plan(uint32_t index, const gradient::Outcome& outcome);
  void agree(uint32_t index);
  void carry_on(uint32_t index, std::optional<gradient::Operation> operation);
  void set_plan(uint32_t index, const gradient::FusionPlan& plan);
  [[nodiscard]] bool deviates(uint32_t index) const;
  [[nodiscard]] plan::Moment moment() const;
  void begin_round(uint32_t index);
  [[nodiscard]] std::vector<std::vector<gradient::SliceDuty>> draw_owner_changes(
      uint32_t index) const;
  void backward(uint32_t index);
  void change_owners(uint32_t index);
  void finish_backward(uint32_t index, uint64_t round, size_t tensors);
  void drive();
  [[nodiscard]] bool drive(uint32_t index);
  void submit(uint32_t index, gradient::Transmit transmit);
  void work(uint32_t index, const gradient::GradientStep::Job& job);
  void fail(uint32_t index, const Error& error);
  void leave_lanes(uint32_t index);

  const Training& training_;
  net::SimulatedNetwork& network_;
  const Rank rank_;
  TrainingWatcher& watcher_;
  const plan::WorkRates rates_ = usual_rates();
  gradient::SimulatedExchange inner_;
  std::unique_ptr<gradient::SimulatedExchange> outer_;
  std::unique_ptr<gradient::NestedExchange> nested_;
  gradient::Members members_;
  std::vector<Stream> streams_;
  bool working_ = false;  // the processor
  bool driving_ = false;
  bool driven_again_ = false;
  bool abandoned_ = false;
};

}  // namespace scant::sim
