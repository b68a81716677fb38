// The registry of counters. Entries are never removed, so references stay valid.
#include "base/counters.h"

#include <map>
#include <memory>
#include <utility>

#include "base/thread_annotations.h"

namespace scant::base {
namespace {

struct Entry {
  std::string help;
  Counter counter;
};

struct Registry {
  Mutex mutex;
  // Ordered by name, then labels: the order of the export.
  std::map<std::pair<std::string, std::string>, std::unique_ptr<Entry>> entries
      SCANT_GUARDED_BY(mutex);
};

// Never destroyed: counters are added to until the last thread of the process ends.
Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

std::string escape_help(const std::string& help) {
  std::string out;
  for (const char c : help) {
    if (c == '\\') {
      out += "\\\\";
    } else if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

Counter& counter(std::string_view name, std::string_view help, std::string_view labels) {
  Registry& all = registry();
  MutexLock lock(all.mutex);
  auto& entry = all.entries[{std::string(name), std::string(labels)}];
  if (entry == nullptr) {
    entry = std::make_unique<Entry>();
    entry->help = help;
  }
  return entry->counter;
}

std::vector<CounterRow> counters_snapshot() {
  Registry& all = registry();
  MutexLock lock(all.mutex);
  std::vector<CounterRow> rows;
  rows.reserve(all.entries.size());
  for (const auto& [key, entry] : all.entries) {
    rows.push_back({key.first, key.second, entry->help, entry->counter.value()});
  }
  return rows;
}

std::string counters_prometheus() {
  std::string out;
  std::string previous;
  for (const CounterRow& row : counters_snapshot()) {
    if (row.name != previous) {
      const bool total = row.name.ends_with("_total");
      out += "# HELP " + row.name + " " + escape_help(row.help) + "\n";
      out += "# TYPE " + row.name + (total ? " counter\n" : " gauge\n");
      previous = row.name;
    }
    out += row.name + row.labels + " " + std::to_string(row.value) + "\n";
  }
  return out;
}

}  // namespace scant::base
