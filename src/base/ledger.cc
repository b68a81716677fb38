#include "base/ledger.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sys/resource.h>
#include <system_error>

namespace scant::base {
namespace {

// Nothing: it cannot be read, or is no number.
std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

// A package holds its cores and its graphics. Memory is counted apart. "psys" holds all of them.
bool counted(const std::string& folder) {
  std::string name;
  std::ifstream(folder + "/name") >> name;
  return name.starts_with("package") || name == "dram";
}

}  // namespace

Used used() {
  Used result;
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) == 0)
    result.cpu_s = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  // The peak of getrusage() may be that of a program which this one replaced.
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    uint64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) result.resident_peak_bytes = 1024 * kib;
    if (word == "VmRSS:" && status >> kib) result.resident_bytes = 1024 * kib;
  }
  return result;
}

EnergyMeter::EnergyMeter(const std::string& folder) {
  std::error_code error;
  bool seen = false;
  for (auto entry = std::filesystem::directory_iterator(folder, error);
       !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string path = entry->path().string();
    if (!counted(path)) continue;
    seen = true;
    const auto now = read_number(path + "/energy_uj");
    const auto range = read_number(path + "/max_energy_range_uj");
    if (now && range) domains_.push_back({path + "/energy_uj", *now, *range});
  }
  if (counts()) return;
  why_ = seen ? "the counters below " + folder + " cannot be read by this user"
              : "there are no energy counters below " + folder;
}

double EnergyMeter::joules() {
  for (Domain& one : domains_) {
    const auto now = read_number(one.path);
    if (!now) continue;
    const uint64_t used_uj =
        *now >= one.last_uj ? *now - one.last_uj : *now + (one.range_uj - one.last_uj);
    joules_ += 1e-6 * static_cast<double>(used_uj);
    one.last_uj = *now;
  }
  return joules_;
}

}  // namespace scant::base
