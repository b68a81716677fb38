// Counters and gauges of one process, in one registry that can be printed and exported as
// Prometheus text. Registration takes a lock and happens at start; adding is one relaxed atomic add
// and happens anywhere. A name that ends in "_total" is exported as a counter, any other as a
// gauge.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace scant::base {

class Counter {
 public:
  void add(uint64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  void set(uint64_t value) { value_.store(value, std::memory_order_relaxed); }  // gauges
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

// {{"peer", "2"}, {"host", "a"}} as `{peer="2",host="a"}`, values escaped as Prometheus asks.
[[nodiscard]] std::string render_labels(
    std::initializer_list<std::pair<std::string_view, std::string_view>> labels);

// References stay valid for the life of the process. The same (name, labels) gives the same
// counter. `labels` comes from render_labels; the help text of a name's first label set is shown.
Counter& counter(std::string_view name, std::string_view help, std::string_view labels = {});
[[nodiscard]] std::vector<CounterRow> counters_snapshot();
[[nodiscard]] std::string counters_prometheus();

}  // namespace scant::base
