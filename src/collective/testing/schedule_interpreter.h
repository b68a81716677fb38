// Test support: runs the schedules of all ranks of a group in one process, in random order, on
// memory whose every byte is watched. What it accepts is correct under any engine that keeps the
// dependencies, whenever messages arrive and sends complete.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "collective/schedules/schedule.h"

namespace scant::collective {

// One collective of a whole group, by sizes.
struct ScheduleCase {
  OpKind kind = OpKind::all_reduce;
  Algorithm algorithm = Algorithm::ring;
  int size = 1;
  Rank root = 0;
  uint32_t element_bytes = 4;
  bool in_place = false;
  uint64_t segment_bytes = 256 * 1024;
  // Bytes of what rank `from` has for rank `to`; kinds with one vector use (0, 0), kinds with one
  // part for each rank (from, 0) or (0, to).
  std::function<uint64_t(Rank from, Rank to)> part_bytes;

  [[nodiscard]] ScheduleInput input_of(Rank rank) const;
  [[nodiscard]] std::string to_string() const;
};

class ScheduleWorld {
 public:
  // destination = left op right; `finish` as in Step.
  using Combine = std::function<void(const std::byte* left, const std::byte* right,
                                     std::byte* destination, size_t bytes, bool finish)>;

  explicit ScheduleWorld(const ScheduleCase& the_case);

  // Memory of the user's buffers. In place, the own output is the own input.
  [[nodiscard]] std::vector<std::byte>& input(Rank rank, uint32_t part);
  [[nodiscard]] std::vector<std::byte>& output(Rank rank, uint32_t part);
  [[nodiscard]] const Schedule& schedule(Rank rank) const;

  // Everything that can be known without running: bounds, segments, slots, inputs that are only
  // read, and an order by dependencies between any two steps that touch the same byte. Empty when
  // all is well, else the first problem.
  [[nodiscard]] std::string check() const;
  // Runs to the end; reads of bytes that nobody wrote and steps that never become ready are
  // problems.
  [[nodiscard]] std::string run(uint64_t seed, const Combine& combine);
  // The longest chain of messages that wait for one another, after run().
  [[nodiscard]] int rounds() const { return rounds_; }

 private:
  struct Memory {
    std::vector<std::vector<std::byte>> buffers;  // inputs, then outputs, then scratch
    std::vector<std::vector<bool>> written;
    size_t outputs = 0;  // index of the first output
    size_t scratch = 0;
  };
  struct Host {
    ScheduleInput input;
    Schedule schedule;
    Memory memory;
    // Of the run:
    std::vector<int> waiting;
    std::vector<std::vector<uint32_t>> successors;
    std::vector<int> depth;  // messages on the longest chain that ends with the step
    size_t left = 0;
  };
  struct Message {
    std::vector<std::byte> payload;
    int depth = 0;
    bool there = false;
  };
  struct Access {
    size_t buffer = 0;
    uint64_t begin = 0;
    uint64_t end = 0;
    bool writes = false;
  };

  [[nodiscard]] size_t index_of(const Host& host, const Ref& ref) const;
  [[nodiscard]] std::vector<Access> accesses(const Host& host, const Step& step) const;
  [[nodiscard]] std::string check_step(const Host& host, const Step& step) const;
  [[nodiscard]] std::string check_order(const Host& host) const;
  [[nodiscard]] std::string check_pairs() const;
  [[nodiscard]] std::byte* address(Host& host, const Ref& ref);
  [[nodiscard]] std::string execute(Rank rank, uint32_t step, const Combine& combine);
  void release(Rank rank, uint32_t step, std::vector<std::pair<Rank, uint32_t>>& ready);
  [[nodiscard]] Message& message(Rank from, Rank to, uint32_t slot);

  ScheduleCase case_;
  std::vector<Host> hosts_;
  std::vector<std::vector<Message>> messages_;  // by from * size + to, then slot
  int rounds_ = 0;
};

}  // namespace scant::collective
