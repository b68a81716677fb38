// How long the link takes, asked of the link itself: small and large exchanges and an all_reduce
// while no gradients travel. What passes in training does not tell, for there ranks wait for one
// another. A protocol core: it makes operations, and is told when each begins and ends. Its memory
// is theirs until they are over. docs/planner.md, "Soundings".
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "gradient/exchange.h"
#include "scant/base/types.h"

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

struct Moment {
  Time now{};
  double cpu_s = 0;  // that the cores have worked for this process so far
};

class Sounding {
 public:
  // Of so many members, of which this is the one at place `self`.
  Sounding(int size, Rank self);
  Sounding(const Sounding&) = delete;
  Sounding& operator=(const Sounding&) = delete;

  // `bytes`: that a rank sends in each of the large ones. All members take the same. The operation
  // lacks its lane, and begins at this moment.
  [[nodiscard]] gradient::Operation begin(uint64_t bytes, const Moment& at);
  // The operation ended well, and the next one begins; nothing when that was the last.
  [[nodiscard]] std::optional<gradient::Operation> done(const Moment& at);
  [[nodiscard]] const SoundingTimes& times() const { return times_; }

 private:
  [[nodiscard]] gradient::Operation operation();
  void note(double seconds, double cpu_s);

  const size_t size_;
  const size_t self_;
  uint64_t part_bytes_ = 0;
  size_t reduced_ = 0;
  int turn_ = 0;
  Moment begun_;
  std::vector<std::byte> out_;
  std::vector<std::byte> in_;
  std::vector<uint64_t> received_;
  SoundingTimes times_;
};

}  // namespace scant::plan
