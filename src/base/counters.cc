// The registry of counters. Entries are never removed, so references stay valid.
#include "base/counters.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "base/check.h"
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

// The text format escapes a backslash and a line feed everywhere, a double quote in labels only.
std::string escape(std::string_view text, bool quoted) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\\' || (quoted && c == '"')) {
      out += '\\';
      out += c;
    } else {
      out += c;
    }
  }
  return out;
}

bool is_name(std::string_view text, bool colons) {
  const auto starts = [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (colons && c == ':');
  };
  const auto continues = [&](char c) { return starts(c) || (c >= '0' && c <= '9'); };
  return !text.empty() && starts(text.front()) && std::all_of(text.begin(), text.end(), continues);
}

}  // namespace

std::string render_labels(
    std::initializer_list<std::pair<std::string_view, std::string_view>> labels) {
  std::string out;
  for (const auto& [key, value] : labels) {
    SCANT_CHECK(is_name(key, false), key);
    out += out.empty() ? '{' : ',';
    out += key;
    out += "=\"";
    out += escape(value, true);
    out += '"';
  }
  if (!out.empty()) out += '}';
  return out;
}

Counter& counter(std::string_view name, std::string_view help, std::string_view labels) {
  SCANT_CHECK(is_name(name, true), name);
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
      out += "# HELP " + row.name + " " + escape(row.help, false) + "\n";
      out += "# TYPE " + row.name + (total ? " counter\n" : " gauge\n");
      previous = row.name;
    }
    out += row.name + row.labels + " " + std::to_string(row.value) + "\n";
  }
  return out;
}

}  // namespace scant::base
