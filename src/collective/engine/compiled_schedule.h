// A plan is a schedule made ready to run: dependency counts, successors, and the steps of each peer
// by slot, so that running an operation needs no search and no allocation for a step. Plans are
// kept for the last calls and shared by the operations that run them. Owner: the engine's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "collective/schedules/schedule.h"

namespace scant::collective {

// What this rank exchanges with one peer.
struct PeerPlan {
  Rank rank = kNoRank;             // group rank
  std::vector<uint32_t> receives;  // by slot: the step
  uint32_t sends = 0;
  uint64_t receive_bytes = 0;
};

struct Plan {
  std::vector<Step> steps;
  std::vector<uint8_t> dependencies;      // how many steps each one waits for
  std::vector<uint32_t> successor_begin;  // steps.size() + 1 offsets into `successors`
  std::vector<uint32_t> successors;
  std::vector<uint32_t> ready_at_start;
  std::vector<uint32_t> peer_of_step;  // index into `peers`; kNoStep for local steps
  std::vector<PeerPlan> peers;         // ascending rank
  uint64_t scratch_bytes = 0;
  uint32_t users = 0;  // operations that run it now

  // Index into `peers`, or kNoStep.
  [[nodiscard]] uint32_t find_peer(Rank group_rank) const;
};

[[nodiscard]] std::unique_ptr<Plan> compile(Schedule schedule);

// The schedule of a call with what the engine adds to it: send and receive in segments, the barrier
// of a collective without bytes, and the empty frame of a part without bytes (docs/engine.md,
// Mismatch).
[[nodiscard]] Schedule schedule_for(const ScheduleInput& input);

class PlanCache {
 public:
  explicit PlanCache(size_t keep_max) : keep_max_(keep_max) {}
  // Valid while `users` is above zero or until the next call.
  [[nodiscard]] Plan& get(const ScheduleInput& input);

 private:
  struct Entry {
    uint64_t hash = 0;
    uint64_t used_at = 0;
    ScheduleInput input;
    std::unique_ptr<Plan> plan;
  };
  void evict();

  size_t keep_max_;
  uint64_t uses_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace scant::collective
