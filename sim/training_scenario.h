// What one simulated training does, drawn from a seed: ranks, model, plans, links, faults. Swarm
// style, as in sim/scenario.h. Plain data; sim/training_runner.h executes it.
#pragma once

#include <string>
#include <vector>

#include "base/rng.h"
#include "codec/point.h"
#include "gradient/fusion_plan.h"
#include "gradient/layout.h"
#include "gradient/members.h"
#include "gradient/simulated_exchange.h"

namespace scant::sim {

struct TrainingFault {
  enum class Kind : uint8_t {
    kill_process,
    kill_host,
    short_stop,
    long_stop,
    slow_links,
    bad_links
  };
  Kind kind = Kind::kill_process;
  Rank rank = 0;
  Duration after{};
  Duration length{};  // of stops and of links
};

struct Training {
  uint64_t seed = 0;
  int ranks = 2;
  std::vector<Rank> site_of;  // by rank; empty: not nested
  net::SimulatedOptions network;
  collective::EngineOptions engine;
  gradient::LossModel loss;
  gradient::Delivery first_leg;
  gradient::Delivery second_leg;
  std::vector<codec::Shape> shapes;
  uint64_t slice_elements_min = gradient::kSliceElementsMin;
  codec::ResidualKind residual = codec::ResidualKind::f32;
  bool verdict_last = false;
  bool missing_as_zeros = false;
  uint32_t streams = 1;        // rounds under way at once
  uint64_t rounds = 3;         // of each stream
  bool uniform_q4 = false;     // one plan of split and q4 throughout
  double new_plan_chance = 1;  // before a round
  bool planned = false;        // plans are those that plan::Agreement comes to
  double new_duties_chance = 0;
  double owner_change_chance = 0;  // within a round
  double factors_chance = 0;       // of a part that is a matrix
  double absent_chance = 0;        // of a tensor
  Duration backward_max{};
  uint64_t deviant_round = 0;  // in it one rank has another plan; 0: never
  Rank deviant = 0;
  std::vector<TrainingFault> faults;
  bool kill_while_shrinking = false;

  [[nodiscard]] std::string to_string() const;
};

// `ranks` 0: drawn from the seed.
[[nodiscard]] Training make_training(uint64_t seed, int ranks);
// Small slices, split and q4, no faults: for many ranks.
[[nodiscard]] Training make_training_crowd(uint64_t seed, int ranks);

// Random paths and points that obey all rules of docs/gradients.md.
[[nodiscard]] gradient::FusionPlan draw_plan(base::Rng& rng, const Training& training,
                                             const gradient::Layout& layout);
inline constexpr uint32_t kDrawnRankMax = 6;
// Random owners; weights 1 / members, or all less by one factor.
[[nodiscard]] std::vector<gradient::SliceDuty> draw_duties(base::Rng& rng,
                                                           const gradient::Layout& layout,
                                                           int members);

}  // namespace scant::sim
