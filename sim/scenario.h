// What one simulated run does, drawn from a seed: ranks, operations, links, faults. Swarm style:
// each run switches most features off, so that those left on meet in unusual strength. Plain data;
// the runner executes it.
#pragma once

#include <string>
#include <vector>

#include "collective/engine/engine.h"
#include "collective/testing/exercise.h"
#include "net/simulated/simulated_network.h"

namespace scant::sim {

struct Fault {
  enum class Kind : uint8_t { kill_process, kill_host, short_stop, long_stop, partition };
  Kind kind = Kind::kill_process;
  Rank rank = 0;
  Duration after{};       // the start
  std::vector<int> side;  // partition: by rank
};

// A collective of a group, or a message when `members` has two ranks and `message` is set.
struct Task {
  GroupId group = kWorldGroup;
  std::vector<Rank> members;
  collective::ExerciseSpec spec;
  bool message = false;  // members[0] sends spec.elements bytes to members[1]
  bool any_source = false;
  uint32_t tag = 0;
  Rank deviant = kNoRank;  // this member calls something else
};

struct Scenario {
  uint64_t seed = 0;
  int size = 2;
  collective::EngineOptions engine;
  net::SimulatedOptions network;
  std::vector<std::vector<Rank>> groups;  // group i + 1
  std::vector<Task> tasks;
  Duration gap_max{};      // between two submissions of one rank
  double wait_chance = 0;  // that a rank waits for an operation before it submits the next
  std::vector<Fault> faults;
  bool kill_while_shrinking = false;
  std::vector<Task> after_shrink;  // their members are filled in by the runner

  [[nodiscard]] std::string to_string() const;
};

// `size` 0: drawn from the seed.
[[nodiscard]] Scenario make_scenario(uint64_t seed, int size);
// One all_reduce of every algorithm that suits many ranks, without faults.
[[nodiscard]] Scenario make_crowd(uint64_t seed, int size);

}  // namespace scant::sim
