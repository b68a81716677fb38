// What rank 0 decides for the next period, and its bytes on the way to all: docs/planner.md,
// "Agreements". Plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "gradient/fusion_plan.h"
#include "scant/base/result.h"

namespace scant::plan {

struct Decision {
  gradient::FusionPlan plan;
  uint32_t steps = 0;           // to the next agreement
  uint32_t skipped = 0;         // the first of them, which are not measured
  bool curves = false;          // in the last of them
  uint32_t sounding_bytes = 0;  // after them, to ask the link with; 0: do not
  friend bool operator==(const Decision&, const Decision&) = default;
};

inline constexpr uint32_t kDecisionMagic = 0x44504353;  // "SCPD" in memory

// Every decision for a layout has this size: zeros follow a short one.
[[nodiscard]] size_t decision_bytes(const gradient::Layout& layout);
[[nodiscard]] std::vector<std::byte> serialise(const Decision& decision,
                                               const gradient::Layout& layout);
// Checks everything. ErrorCode::corrupt, unsupported (version), mismatch (plan of another layout).
[[nodiscard]] Result<Decision> parse_decision(Bytes bytes, const gradient::Layout& layout);

}  // namespace scant::plan
