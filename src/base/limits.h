// What this process may use: processors and memory of the machine, within the limits of its control
// groups (version 1 and 2) and of all groups above. Plain functions, any thread.
#pragma once

#include <cstdint>
#include <string>

namespace scant::base {

struct Limits {
  double cpus = 0;           // by affinity and quota; a quota may be a part of one
  uint64_t memory_free = 0;  // can still be taken before something must go or the system kills
  uint64_t memory_most = 0;  // the machine's memory, or what the tightest group allows
  std::string memory_by;     // the folder of the group that decides `memory_free`; empty: no group
};

// Reads files below `root`/proc and what is mounted there; tests have a folder of their own. What
// cannot be read limits nothing.
[[nodiscard]] Limits limits(const std::string& root = "");

}  // namespace scant::base
