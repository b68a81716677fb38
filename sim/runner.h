// Executes a scenario: engines on the simulated network in virtual time, and the invariants of
// every run: right and bit-equal results, no hang, only errors that the faults explain, agreement
// of the survivors, nothing leaked.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "collective/engine/pump.h"
#include "sim/scenario.h"

namespace scant::sim {

class Runner {
 public:
  explicit Runner(Scenario scenario);

  // Empty when every invariant held; otherwise what broke, one line each.
  [[nodiscard]] std::vector<std::string> run();
  [[nodiscard]] const Scenario& scenario() const { return scenario_; }
  [[nodiscard]] Duration virtual_time() const;
  [[nodiscard]] uint64_t operations() const { return operations_; }

 private:
  struct Job {
    Task task;
    std::unique_ptr<collective::Exercise> exercise;
    std::unique_ptr<collective::Exercise> deviation;  // what a deviant member calls
    std::vector<std::byte> sent;                      // of a message
    std::vector<std::byte> received;
    std::optional<uint32_t> digest;
  };
  struct Host {
    std::unique_ptr<collective::Engine> engine;
    std::unique_ptr<collective::Pump> pump;
    size_t next = 0;     // of its script
    size_t pending = 0;  // operations submitted and not ended
    bool script_done = false;
    bool shrinking = false;
    const Job* awaited = nullptr;                // the script goes on when this one ends
    std::optional<std::vector<Rank>> survivors;  // the last shrink's, as stations
    std::vector<Rank> world;                     // stations of its epoch
  };

  void add_jobs(const std::vector<Task>& tasks);
  void start_script(Rank rank);
  void script_step(Rank rank);
  void step_later(Rank rank);
  void submit(Rank rank, Job& job, size_t member);
  void submit_message(Rank rank, Job& job, bool sending);
  void on_outcome(Rank rank, Job& job, size_t member, const Result<void>& outcome, Rank source);
  void judge_error(Rank rank, const Job& job, const Error& error);
  void plan_faults();
  void apply(const Fault& fault);
  // Runs until `done` or the deadline; false after the deadline.
  bool run_until(Duration limit, bool (Runner::*done)() const);
  [[nodiscard]] bool scripts_done() const;
  [[nodiscard]] bool shrinks_done() const;

  void shrink_and_go_on();
  void begin_shrink(Rank rank);
  [[nodiscard]] std::vector<Rank> expected_survivors(Rank rank) const;
  [[nodiscard]] bool healthy(Rank rank) const;
  void close_all();
  void complain_of_hangs();
  void complain(Rank rank, const std::string& what);

  Scenario scenario_;
  base::Rng rng_;
  net::SimulatedNetwork network_;
  Time start_;
  std::vector<Host> hosts_;
  std::vector<std::unique_ptr<Job>> jobs_;
  size_t script_begin_ = 0;
  size_t script_end_ = 0;
  bool epoch_two_ = false;
  bool partitioned_ = false;
  std::vector<int> side_;
  std::vector<bool> lost_;  // killed or stopped for long: its peers may and must report it
  size_t faults_left_ = 0;
  uint64_t operations_ = 0;
  std::vector<std::string> complaints_;
};

}  // namespace scant::sim
