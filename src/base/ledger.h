// What this process has used: CPU time and memory; and energy, where the machine has a meter that
// may be read. All planes count with this. Plain functions, any thread; a meter has one owner.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace scant::base {

struct Used {
  double cpu_s = 0;  // of all threads, user and system
  uint64_t resident_bytes = 0;
  uint64_t resident_peak_bytes = 0;  // since the program began
};
[[nodiscard]] Used used();

// Linux's powercap folder: packages, and their memory where it is counted apart. Of the whole
// machine, not of this process. Mostly root alone may read it, and virtual machines have none.
class EnergyMeter {
 public:
  explicit EnergyMeter(const std::string& folder = "/sys/class/powercap");
  // Nothing is counted without domains. Then `why` says what is missing.
  [[nodiscard]] bool counts() const { return !domains_.empty(); }
  [[nodiscard]] const std::string& why() const { return why_; }
  // Since the meter was made. Counters wrap after some minutes, so it must be asked at least once a
  // minute. A domain that cannot be read any more adds nothing.
  [[nodiscard]] double joules();

 private:
  struct Domain {
    std::string path;
    uint64_t last_uj = 0;
    uint64_t range_uj = 0;  // a counter that reaches it goes on with 0
  };
  std::vector<Domain> domains_;
  std::string why_;
  double joules_ = 0;
};

}  // namespace scant::base
