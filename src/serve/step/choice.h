// How the engine runs its next step: on how many threads, and with how many tokens of prompts
// beside answers; chosen from what its steps took. docs/serve.md, "What is chosen". A pure class
// without clock and thread: the same times give the same choices. One owner.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/guard.h"

namespace scant::serve {

struct ChoiceOptions {
  size_t threads = 1;          // of the plain way
  bool choose_threads = true;  // else these always
  uint32_t step_tokens = 512;
  double answer_wait_s = 0.15;  // that a token of an answer may wait for prompts; 0: no limit
};

enum class StepKind : uint8_t { answers, prompts };  // one token of each sequence alone, or more

// What a step is for the cost table.
struct StepShape {
  StepKind kind = StepKind::answers;
  uint32_t tokens = 0;
};

// Numbers of threads, the plain one first, which is all of them.
[[nodiscard]] std::vector<size_t> thread_ways(size_t threads);
// The class's bound: 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
[[nodiscard]] uint32_t token_class(uint32_t tokens);

class StepChoice {
 public:
  explicit StepChoice(ChoiceOptions options);

  // Tokens of prompts in a step in which so many sequences answer.
  [[nodiscard]] uint32_t prompt_tokens(uint32_t answering) const;
  // Threads of the next step.
  [[nodiscard]] size_t threads(StepShape shape);
  // It ran on them. Steps that failed are not told.
  void took(StepShape shape, size_t threads, double seconds);

  // A row of the table.
  struct Row {
    StepShape shape;  // `tokens`: the class's bound
    uint64_t steps = 0;
    double tokens = 0;    // mean
    double step_s = 0;    // mean, with the threads that are held
    size_t threads = 0;   // held
    double to_plain = 1;  // time ÷ that with all threads, as measured
    uint64_t compared = 0;
  };
  [[nodiscard]] std::vector<Row> table() const;
  // The row of the last step of this kind; nothing: there was none.
  [[nodiscard]] std::optional<Row> last(StepKind kind) const;

 private:
  struct Entry {
    explicit Entry(const std::vector<double>& at_most) : guard(at_most) {}
    base::Guard guard;
    uint64_t steps = 0;
    double tokens = 0;
    double step_s = 0;
    double spread = 0;  // mean square of how far a step, or its time for a token, is off the mean
    [[nodiscard]] double error() const;  // of the mean, as a share of it
  };
  using Entries = std::map<uint32_t, Entry>;  // by class

  [[nodiscard]] Entries& entries(StepKind kind) { return entries_[static_cast<size_t>(kind)]; }
  [[nodiscard]] const Entries& entries(StepKind kind) const {
    return entries_[static_cast<size_t>(kind)];
  }
  [[nodiscard]] Entry& entry(StepShape shape);
  [[nodiscard]] std::vector<double> at_most(StepShape shape) const;
  [[nodiscard]] std::optional<double> seconds_of(StepKind kind, double tokens) const;
  [[nodiscard]] double error_of(uint32_t tokens) const;  // of their row of prompts
  [[nodiscard]] Row row(StepKind kind, uint32_t bound, const Entry& entry) const;

  ChoiceOptions options_;
  std::vector<size_t> ways_;
  Entries entries_[2];
  uint64_t prompt_steps_ = 0;
  uint32_t last_[2] = {0, 0};  // class
};

}  // namespace scant::serve
