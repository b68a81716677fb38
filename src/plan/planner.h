// Which plan a profile and the curves of the parts ask for: candidates, their predictions and what
// each is worth. Pure functions; any thread. docs/planner.md, "Choice".
#pragma once

#include <span>
#include <string>
#include <vector>

#include "codec/rate/probe.h"
#include "gradient/fusion_plan.h"
#include "plan/predict.h"
#include "scant/base/result.h"

namespace scant::plan {

struct Candidate {
  gradient::FusionPlan plan;
  std::string text;  // "plain in 4 buffers", "0.53 bytes an element in 2 buffers"
  Prediction prediction;
  double kept = 1;      // docs/planner.md, "Names"
  double progress = 1;  // of a step, in plain steps
  double worth = 0;     // plain steps in a second
  bool tried = false;
};

// A plan that ran, and what its steps took.
struct TriedPlan {
  gradient::FusionPlan plan;
  double step_s = 0;
  double at = 0;  // agreement at which it ran last
};

struct PlannerOptions {
  double fidelity_min = 0;  // of `kept`; plans below are not looked at
  // Measured / predicted so far, of plans of all_reduce alone and of others.
  double plain_error = 1;
  double compressed_error = 1;
  // Measured / predicted of compressed plans in their first period: the best of many predictions is
  // too good.
  double optimism = 1;
  std::span<const TriedPlan> tried{};  // these are known, and candidates too
};

[[nodiscard]] bool is_plain(const gradient::FusionPlan& plan);
// Of the plans that compress: what gives the most for its bytes between so many ranks.
[[nodiscard]] gradient::Path compressed_path(const gradient::Layout& layout);

// What the law of exposed time rests on: docs/planner.md, "Names". The buffer that backward makes
// last; what it sends in both legs, in bytes an element of a leg: 4 where nothing is compressed.
struct LastBuffer {
  double share = 0;  // of the elements
  double bytes = 0;
};
[[nodiscard]] LastBuffer last_buffer(const gradient::FusionPlan& plan,
                                     const gradient::Layout& layout);

// One plan, looked at alone. `curves` as below.
[[nodiscard]] Candidate weigh(gradient::FusionPlan plan, const gradient::Layout& layout,
                              const Profile& profile, std::span<const codec::Curve> curves,
                              const PlannerOptions& options);

// All that were looked at, the best first. `curves`: of each part, at codec::default_points();
// where there are none, plain plans alone. A part whose curve has no points counts for nothing.
[[nodiscard]] Result<std::vector<Candidate>> rank_plans(const gradient::Layout& layout,
                                                        const Profile& profile,
                                                        std::span<const codec::Curve> curves,
                                                        const PlannerOptions& options);

// Buffers of whole parts, about equally many bytes of `bytes_of_part` in each.
[[nodiscard]] std::vector<uint32_t> cut_into(std::span<const double> bytes_of_part, size_t buffers);

}  // namespace scant::plan
