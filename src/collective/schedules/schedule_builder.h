// What the schedule generators share: adding steps, cutting regions into segments, splitting a
// vector among ranks. Used while one schedule is built; nothing of it outlives make_schedule.
#pragma once

#include <initializer_list>
#include <vector>

#include "collective/schedules/schedule.h"

namespace scant::collective {

// Elements [begin, end) of a buffer, in bytes.
struct Region {
  uint64_t begin = 0;
  uint64_t end = 0;
  [[nodiscard]] uint64_t bytes() const { return end - begin; }
};

using StepIds = std::vector<uint32_t>;

class ScheduleBuilder {
 public:
  explicit ScheduleBuilder(const ScheduleInput& input);

  [[nodiscard]] const ScheduleInput& input() const { return input_; }
  [[nodiscard]] Rank rank() const { return input_.rank; }
  [[nodiscard]] int size() const { return input_.size; }

  // Chunk `index` of `count` nearly equal chunks of `bytes`, cut between elements.
  [[nodiscard]] Region chunk(uint64_t bytes, int index, int count) const;
  // Cuts at multiples of the segment size from the buffer's start, so that the pieces of a part of
  // a region lie within pieces of the region.
  [[nodiscard]] std::vector<Region> segments(Region region) const;

  uint32_t send(Rank peer, Ref from, uint64_t bytes, const StepIds& after = {});
  uint32_t receive(Rank peer, Ref to, uint64_t bytes, const StepIds& after = {});
  uint32_t receive_reduce(Rank peer, Ref own, Ref to, uint64_t bytes, bool received_first,
                          bool finish, const StepIds& after = {});
  uint32_t copy(Ref from, Ref to, uint64_t bytes, const StepIds& after = {});
  uint32_t reduce(Ref left, Ref right, Ref to, uint64_t bytes, bool finish,
                  const StepIds& after = {});
  // Copies a whole part in one step; nothing when it is empty.
  void copy_part(Ref from, Ref to, uint64_t bytes);

  // Reserves scratch; returns where it begins.
  uint64_t reserve_scratch(uint64_t bytes);

  // Combines the group's values in rank order into output part 0: the one reduction that `direct`
  // algorithms share. value(q) is where the value of rank q lies, arrived(q) the step that brings
  // it (kNoStep for this rank's own). `overwrites` are sends that read what the last reduction
  // overwrites.
  struct Operand {
    Ref where;
    uint32_t arrived = kNoStep;
  };
  void reduce_in_order(const std::vector<Operand>& operands, uint64_t offset, uint64_t bytes,
                       const StepIds& overwrites);

  [[nodiscard]] Schedule finish();

 private:
  uint32_t add(Step step, const StepIds& after);

  const ScheduleInput& input_;
  uint64_t segment_bytes_;
  Schedule schedule_;
};

[[nodiscard]] inline Ref at(Space space, uint64_t offset, uint32_t part = 0) {
  return Ref{space, part, offset};
}

void direct_schedule(ScheduleBuilder& builder);
void ring_schedule(ScheduleBuilder& builder);
void tree_schedule(ScheduleBuilder& builder);
void recursive_doubling_schedule(ScheduleBuilder& builder);
void halving_doubling_schedule(ScheduleBuilder& builder);

// Folding a group onto the largest power of two within it: the first 2·remainder ranks pair up,
// each even one stands for both. docs/collectives.md, "Folding".
struct Fold {
  int core = 1;       // the power of two
  int remainder = 0;  // size - core
  explicit Fold(int size);
  [[nodiscard]] int core_rank(Rank rank) const;  // -1 for a folded (odd) rank
  [[nodiscard]] Rank group_rank(int core_rank) const;
};

}  // namespace scant::collective
