// How long the link takes, asked of the link itself: small and large exchanges and an all_reduce
// while no gradients travel. What passes in training does not tell, for there ranks wait for one
// another. Owner: the user thread. docs/planner.md, "Soundings".
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "scant/communicator.h"
#include "scant/result.h"

namespace scant::plan {

// One rank's; all zeros where nothing was asked.
struct SoundingTimes {
  double small_s = 0;         // an exchange of next to nothing
  double exchange_s = 0;      // of exchange_bytes
  double exchange_bytes = 0;  // sent by a rank
  double reduce_s = 0;        // an all_reduce
  double reduce_bytes = 0;    // sent by a rank
  // Of this process's cores, meanwhile.
  double small_cpu_s = 0;
  double exchange_cpu_s = 0;
};

class Sounding {
 public:
  // The group's members call begin() and poll() alike. The communicator outlives this object, and
  // the group is released before its end.
  Sounding(Communicator& communicator, GroupId group, int size, Duration timeout);
  ~Sounding();
  Sounding(const Sounding&) = delete;
  Sounding& operator=(const Sounding&) = delete;

  // `bytes`: that a rank sends in each of the large ones.
  void begin(uint64_t bytes);
  // Nothing when it is not over within `limit`.
  std::optional<Result<void>> poll(Duration limit);
  [[nodiscard]] const SoundingTimes& times() const { return times_; }

 private:
  using Clock = std::chrono::steady_clock;
  void submit();
  void note(double seconds, double cpu_s);

  Communicator& communicator_;
  const GroupId group_;
  const size_t size_;
  const Duration timeout_;
  uint64_t part_bytes_ = 0;
  size_t reduced_ = 0;
  int turn_ = 0;
  Clock::time_point begun_;
  double cpu_begun_s_ = 0;
  Work work_;
  std::vector<std::byte> out_;
  std::vector<std::byte> in_;
  std::vector<uint64_t> received_;
  SoundingTimes times_;
};

}  // namespace scant::plan
