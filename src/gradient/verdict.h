// A rank's account of a step, and what all of them together say: docs/gradients.md, "Verdict".
// Plain values, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::gradient {

inline constexpr uint64_t kVerdictVersion = 2;

struct Verdict {
  uint64_t version = kVerdictVersion;
  uint64_t step = 0;
  uint64_t plan_hash = 0;
  uint64_t nonfinite = 0;          // values of this rank's gradients
  uint64_t parameters_hash = 0;    // 0: not taken in this step
  uint64_t failure = 0;            // 0: none so far, else ErrorCode + 1
  uint64_t members_hash = 0;       // of who takes part, as this rank has it
  uint64_t samples = 0;            // that its gradients are of; 0: not counted
  double residual_energy = 0;      // of what it keeps; NaN where it cannot be told
  std::vector<bool> present{};     // by tensor: got a gradient
  std::vector<bool> not_finite{};  // by tensor, as many: and it holds NaN or infinities
};

// The same size on all ranks of a model.
[[nodiscard]] size_t verdict_bytes(size_t tensors);
void write_verdict(const Verdict& verdict, MutableBytes out);
[[nodiscard]] Verdict read_verdict(Bytes bytes, size_t tensors);

// Where verdicts wait for legs, a round begins with one of which version, step, plan and members
// count alone. Every rank comes to the same result.
[[nodiscard]] Result<void> compare_openings(std::span<const Verdict> by_rank);

// A tensor whose gradient is not finite, and the ranks that made it so.
struct NotFinite {
  uint32_t tensor = 0;
  std::vector<Rank> ranks;
};

// What a rank would take along if it were lost now.
struct RankAccount {
  double residual_energy = 0;
  uint64_t samples = 0;
};

struct Judgement {
  std::vector<bool> present;  // on any rank
  uint64_t nonfinite = 0;
  std::vector<NotFinite> not_finite;
  std::vector<RankAccount> accounts;  // by rank
};
struct JudgeOptions {
  bool missing_as_zeros = false;         // a tensor that only some ranks have is no error
  std::span<const std::string> names{};  // of the tensors, for messages
};
// Every rank comes to the same judgement, or to the same error.
[[nodiscard]] Result<Judgement> judge(std::span<const Verdict> by_rank,
                                      const JudgeOptions& options);

}  // namespace scant::gradient
