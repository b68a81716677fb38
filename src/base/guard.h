// Which of several ways to do the same work costs least, learnt from the work itself: no way is
// held that measures worse than the plain one. docs/serve.md, "What is chosen", has the rules. A
// pure class without clock, thread or chance: the same costs give the same choices. One owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace scant::base {

// Whether so much more may be spent, when so much has been spent of a time of which trials may cost
// a share.
[[nodiscard]] constexpr bool affords(double share, double time_s, double spent_s, double extra_s) {
  return time_s * share >= spent_s + extra_s;
}

struct GuardOptions {
  double trial_share = 0.007;  // of all cost, that trials of other ways may add
  double check_share = 0.01;   // that looks at the plain way may add, while another one is held
  double half_life = 512;      // uses after which a comparison counts half
};

class Guard {
 public:
  // Way i costs at most at_most[i] of the plain way's cost, as far as is known; way 0 is the plain
  // one, and is held first.
  explicit Guard(const std::vector<double>& at_most, GuardOptions options = {});

  // The way of the next use.
  [[nodiscard]] size_t next() const { return next_; }
  // What a use of a way cost, above 0. Uses that follow each other should be of the same work.
  void add(size_t way, double cost);

  [[nodiscard]] size_t ways() const { return ways_.size(); }
  [[nodiscard]] size_t held() const { return held_; }
  // Cost of a way ÷ that of the plain one, as measured; nothing: it was not compared.
  [[nodiscard]] std::optional<double> ratio(size_t way) const;
  [[nodiscard]] uint64_t compared() const { return compared_; }  // pairs
  [[nodiscard]] uint64_t changes() const { return changes_; }    // of the held way

 private:
  struct Pair {
    double log_ratio = 0;  // of the way's cost to the held one's
    uint64_t at = 0;       // use
  };
  struct Way {
    double at_most = 1;
    double expected = 1;        // cost ÷ that of the held way
    std::vector<Pair> pairs{};  // the oldest first
    uint64_t due = 0;           // use from which on it may be tried
    uint64_t wait = 0;          // after a trial that was lost
  };
  // Of a way's pairs, the newer ones weighing more.
  struct Evidence {
    double count = 0;  // sum of weights
    double middle = 0;
    double error = 0;  // of the middle; huge if there are too few
    double spread = 0;
  };

  [[nodiscard]] Evidence evidence(size_t way) const;
  void expect(size_t way);
  void watch_level(double cost);
  void close_pair(double after);
  void note(size_t way, double log_ratio);
  void judge(size_t way);
  void judge_plain();
  void hold(size_t way);
  void lose(size_t way);
  void choose_next();

  GuardOptions options_;
  std::vector<Way> ways_;
  size_t held_ = 0;
  size_t next_ = 0;
  size_t tried_ = 0;      // whose cost waits for the held way's next one
  double before_ = 0;     // cost of the held way's last use; 0: there was none
  double challenge_ = 0;  // cost of the trial; 0: there is none
  double all_ = 0;        // costs, forgotten slowly
  double trials_ = 0;     // of them, what trials added
  double checks_ = 0;
  std::vector<double> last_;  // logs of the held way's last costs
  double level_ = 0;          // their slow mean
  uint64_t level_count_ = 0;
  uint64_t uses_ = 0;
  uint64_t compared_ = 0;
  uint64_t changes_ = 0;
};

}  // namespace scant::base
