// Executes a training: hosts on the simulated network in virtual time, faults, epochs, and the
// invariants of every run: no hang, errors only where faults explain them and then on every live
// rank, equal bits, mass conserved, accounts that all members have alike, nothing left behind.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "sim/training_host.h"

namespace scant::sim {

class TrainingRunner final : public TrainingWatcher {
 public:
  explicit TrainingRunner(Training training);
  ~TrainingRunner() override;

  // Empty when every invariant held; otherwise what broke, one line each.
  [[nodiscard]] std::vector<std::string> run();
  [[nodiscard]] Duration virtual_time() const { return network_.now() - start_; }
  // What this run has looked at, so that a run of many seeds can tell that it met all cases.
  struct Counts {
    uint64_t rounds = 0;    // that ended well on all members
    uint64_t checked = 0;   // of those, whose mass was checked
    uint64_t failed = 0;    // that ended with an error on some member
    uint64_t parted = 0;    // of those, that ended well on others
    uint64_t returned = 0;  // members of failed rounds whose records had to come back
    uint64_t deviated = 0;  // rounds in which a member had another plan
    uint64_t changed = 0;   // rounds that ended well and whose owners changed within
    uint64_t epochs = 0;
  };
  [[nodiscard]] const Counts& counts() const { return counts_; }

 private:
  // Stream, round, epoch.
  using RoundKey = std::tuple<uint32_t, uint64_t, uint64_t>;
  struct Round {
    std::unique_ptr<RoundLedger> ledger;
    gradient::Members members;
    int well = 0;
    uint32_t changed_buffers = 0;
    int failed = 0;
    std::vector<bool> over;             // by place
    std::vector<uint64_t> plan_hashes;  // of members that have begun
    std::vector<gradient::RankAccount> accounts;
    double energy_met = 0;  // at most what encoders look at, of all members that have begun
    bool factors = false;   // some buffer of the plan has factors
    bool judged = false;
  };

  void on_begin(TrainingHost& host, uint32_t stream, const Held& before) override;
  void on_end(TrainingHost& host, uint32_t stream,
              const Result<gradient::StepReport>& outcome) override;
  void on_error(TrainingHost& host, uint32_t stream, const Error& error) override;
  void complain(Rank rank, const std::string& what) override;
  void ended_well(TrainingHost& host, uint32_t stream, Round& round,
                  const gradient::StepReport& report, const Held& held);
  void check_owners(TrainingHost& host, uint32_t stream);
  void check_energy(TrainingHost& host, uint32_t stream, double energy, double told,
                    const char* who);
  // `round`: the one that ended with it, if one had begun.
  void judge_error(Rank rank, const Error& error, const Round* round);
  void judge_rounds();
  void judge(const RoundKey& key, Round& round);
  [[nodiscard]] static bool has_deviant(const Round& round);
  [[nodiscard]] Round& round_of(const TrainingHost& host, uint32_t stream);

  void plan_faults();
  void apply(const TrainingFault& fault);
  void change_links(const TrainingFault& fault, bool worse);
  template <typename Over>
  [[nodiscard]] bool run_until(Duration limit, const Over& over);
  [[nodiscard]] bool healthy(Rank rank) const;
  [[nodiscard]] bool is_exact() const {
    return training_.first_leg.exact && training_.second_leg.exact;
  }
  [[nodiscard]] std::vector<Rank> survivors() const;
  [[nodiscard]] bool at_rest() const;
  [[nodiscard]] bool shrink();
  void begin_shrink(Rank rank);
  void begin_shrink(Rank rank, bool outer);
  [[nodiscard]] bool has_shrunk(Rank rank) const;
  void go_on();
  void close_all();
  void lose(Rank rank);

  const Training training_;
  base::Rng rng_;
  net::SimulatedNetwork network_;
  Time start_;
  std::vector<std::unique_ptr<TrainingHost>> hosts_;
  std::map<RoundKey, Round> rounds_;
  std::vector<bool> lost_;
  size_t faults_left_ = 0;
  uint64_t epoch_ = 1;
  // By rank, inner and outer: what the last shrink came to.
  std::vector<std::array<std::vector<Rank>, 2>> shrunk_;
  std::vector<std::array<bool, 2>> shrinking_;
  Counts counts_;
  std::vector<std::string> complaints_;
};

}  // namespace scant::sim
