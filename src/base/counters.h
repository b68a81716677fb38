// Counters and gauges of one process, in one registry that can be printed and exported as
// Prometheus text. Registration takes a lock and happens at start; adding is one relaxed atomic add
// and happens anywhere.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace scant::base {

class Counter {
 public:
  void add(uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  [[nodiscard]] uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};  // pairs with nothing: a statistic, never a signal
};

struct CounterRow {
  std::string name;    // Prometheus name, "scant_net_sent_bytes_total"
  std::string labels;  // rendered, "{peer=\"2\"}" or empty
  std::string help;
  uint64_t value = 0;
};

// References stay valid for the life of the process. The same (name, labels) gives the same
// counter.
Counter& counter(std::string_view name, std::string_view help, std::string_view labels = {});
[[nodiscard]] std::vector<CounterRow> counters_snapshot();
[[nodiscard]] std::string counters_prometheus();

}  // namespace scant::base
