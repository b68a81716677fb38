#include "base/limits.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sched.h>
#include <sstream>
#include <vector>

namespace scant::base {
namespace {

// Version 1 writes a limit that nobody set as a number close to 2^63.
constexpr uint64_t kNoLimit = uint64_t{1} << 60;

std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

// The number behind a word that begins a line; 0 if it is not there.
uint64_t read_named(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    uint64_t value = 0;
    if (words >> word && word == name && words >> value) return value;
  }
  return 0;
}

struct Hierarchy {
  bool unified = false;     // version 2
  std::string controllers;  // of version 1, separated by commas
  std::string mounted;      // where
  std::string shown;        // which group is seen there; "/" unless a container sees a part
  std::string group;        // that this process belongs to
};

bool has_word(const std::string& list, std::string_view word) {
  std::istringstream words(list);
  for (std::string one; std::getline(words, one, ',');)
    if (one == word) return true;
  return false;
}

std::vector<Hierarchy> mounted_hierarchies(const std::string& root) {
  std::vector<Hierarchy> found;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    // ID, parent, device, root, mount point, options, optional fields, "-", type, source, options
    std::istringstream words(line);
    std::string unused;
    std::string shown;
    std::string mounted;
    std::string type;
    std::string options;
    words >> unused >> unused >> unused >> shown >> mounted;
    while (words >> unused && unused != "-") {
    }
    if (!(words >> type >> unused >> options)) continue;
    if (type == "cgroup" || type == "cgroup2")
      found.push_back({type == "cgroup2", options, root + mounted, shown, ""});
  }
  return found;
}

// A line of /proc/self/cgroup: number, controllers, group. Version 2 has no controllers.
void find_groups(const std::string& root, std::vector<Hierarchy>& hierarchies) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    for (Hierarchy& one : hierarchies) {
      std::istringstream words(controllers);
      bool fits = one.unified && controllers.empty();
      for (std::string word; !one.unified && std::getline(words, word, ',');)
        fits = fits || has_word(one.controllers, word);
      if (fits) one.group = line.substr(second + 1);
    }
  }
}

// The folders of the group and of those above it, as far as they are seen.
std::vector<std::string> folders(const Hierarchy& hierarchy) {
  std::string below = hierarchy.group;
  if (hierarchy.shown != "/" && below.starts_with(hierarchy.shown))
    below = below.substr(hierarchy.shown.size());
  std::vector<std::string> all;
  while (!below.empty() && below != "/") {
    all.push_back(hierarchy.mounted + below);
    below = below.substr(0, below.rfind('/'));
  }
  all.push_back(hierarchy.mounted);
  return all;
}

void limit_memory(Limits& limits, const std::string& folder, bool unified) {
  const auto most = read_number(folder + (unified ? "/memory.max" : "/memory.limit_in_bytes"));
  const auto now = read_number(folder + (unified ? "/memory.current" : "/memory.usage_in_bytes"));
  if (!most || !now || *most >= kNoLimit) return;
  limits.memory_most = std::min(limits.memory_most, *most);
  // Pages of files that were not used lately go first, and nothing is lost by that.
  const uint64_t cached =
      read_named(folder + "/memory.stat", unified ? "inactive_file" : "total_inactive_file");
  const uint64_t held = *now - std::min(*now, cached);
  const uint64_t free = *most - std::min(*most, held);
  if (free >= limits.memory_free) return;
  limits.memory_free = free;
  limits.memory_by = folder;
}

void limit_cpus(Limits& limits, const std::string& folder, bool unified) {
  std::optional<uint64_t> quota;
  std::optional<uint64_t> period;
  if (unified) {
    std::ifstream file(folder + "/cpu.max");  // "max 100000" without a quota
    uint64_t first = 0;
    uint64_t second = 0;
    if (file >> first >> second) {
      quota = first;
      period = second;
    }
  } else {
    quota = read_number(folder + "/cpu.cfs_quota_us");  // -1 without a quota: no number
    period = read_number(folder + "/cpu.cfs_period_us");
  }
  if (!quota || !period || *quota == 0 || *period == 0 || *quota >= kNoLimit) return;
  limits.cpus = std::min(limits.cpus, static_cast<double>(*quota) / static_cast<double>(*period));
}

}  // namespace

Limits limits(const std::string& root) {
  Limits result;
  result.memory_free = 1024 * read_named(root + "/proc/meminfo", "MemAvailable:");
  result.memory_most = 1024 * read_named(root + "/proc/meminfo", "MemTotal:");
  cpu_set_t set;
  CPU_ZERO(&set);
  result.cpus = ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  std::vector<Hierarchy> hierarchies = mounted_hierarchies(root);
  find_groups(root, hierarchies);
  for (const Hierarchy& one : hierarchies) {
    if (one.group.empty()) continue;
    for (const std::string& folder : folders(one)) {
      if (one.unified || has_word(one.controllers, "memory"))
        limit_memory(result, folder, one.unified);
      if (one.unified || has_word(one.controllers, "cpu")) limit_cpus(result, folder, one.unified);
    }
  }
  return result;
}

}  // namespace scant::base
