// scant_sim: runs the engine, or whole trainings, on a simulated network, one scenario for each
// seed. A failure prints the seed, the commit and the scenario; the same seed gives the same run.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>

#include "base/check.h"
#include "sim/runner.h"
#include "sim/training_runner.h"

namespace {

using scant::sim::Runner;
using scant::sim::Scenario;

struct Arguments {
  uint64_t first = 1;
  uint64_t last = 1;
  int size = 0;        // 0: drawn from the seed
  bool crowd = false;  // one large all-reduce instead of a random scenario
  bool trainings = false;
  bool verbose = false;
  std::string file;  // seeds, one a line
};

constexpr const char* kUsage =
    "usage: scant_sim --seed S | --seeds A..B | --file PATH  [--trainings] [--ranks N] [--crowd] "
    "[--verbose]\n"
    "  --seed S       one scenario, replayed exactly\n"
    "  --seeds A..B   all of a range\n"
    "  --file PATH    the seeds of a file, one a line; # starts a comment\n"
    "  --trainings    rounds of gradients on these ranks instead of single operations\n"
    "  --ranks N      this many ranks instead of a drawn number\n"
    "  --crowd        an all-reduce (a training by split and q4) among many ranks, undrawn\n"
    "  --verbose      prints every scenario\n";

std::optional<uint64_t> number(const char* text) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || *text == '-') return std::nullopt;
  return value;
}

bool parse_range(const std::string& text, Arguments& arguments) {
  const size_t dots = text.find("..");
  if (dots == std::string::npos) return false;
  const auto first = number(text.substr(0, dots).c_str());
  const auto last = number(text.substr(dots + 2).c_str());
  if (!first || !last || *first > *last) return false;
  arguments.first = *first;
  arguments.last = *last;
  return true;
}

std::optional<Arguments> parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (option == "--crowd") {
      arguments.crowd = true;
      continue;
    }
    if (option == "--trainings") {
      arguments.trainings = true;
      continue;
    }
    if (option == "--verbose") {
      arguments.verbose = true;
      continue;
    }
    ++i;
    if (option == "--seed") {
      const auto seed = number(value);
      if (!seed) return std::nullopt;
      arguments.first = arguments.last = *seed;
    } else if (option == "--seeds") {
      if (!parse_range(value, arguments)) return std::nullopt;
    } else if (option == "--ranks") {
      const auto size = number(value);
      if (!size || *size < 1 || *size > 4096) return std::nullopt;
      arguments.size = static_cast<int>(*size);
    } else if (option == "--file" && *value != '\0') {
      arguments.file = value;
    } else {
      return std::nullopt;
    }
  }
  return arguments;
}

void print_scenario(uint64_t seed, const std::string& scenario) {
  std::printf("seed=%llu %s\n", static_cast<unsigned long long>(seed), scenario.c_str());
  std::fflush(stdout);
}

// True when every invariant held.
bool report(uint64_t seed, const std::string& scenario,
            const std::vector<std::string>& complaints) {
  if (complaints.empty()) return true;
  std::printf("FAILED seed=%llu commit=%s\n%s\n", static_cast<unsigned long long>(seed),
              std::string(scant::base::commit()).c_str(), scenario.c_str());
  for (const std::string& complaint : complaints) std::printf("  %s\n", complaint.c_str());
  std::fflush(stdout);
  return false;
}

bool run_seed(uint64_t seed, const Arguments& arguments) {
  const Scenario scenario = arguments.crowd
                                ? scant::sim::make_crowd(seed, std::max(arguments.size, 2))
                                : scant::sim::make_scenario(seed, arguments.size);
  if (arguments.verbose) print_scenario(seed, scenario.to_string());
  Runner runner(scenario);
  const std::vector<std::string> complaints = runner.run();
  if (arguments.verbose) {
    std::printf("seed=%llu %llu operations in %.3f virtual seconds\n",
                static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(runner.operations()),
                std::chrono::duration<double>(runner.virtual_time()).count());
  }
  return report(seed, scenario.to_string(), complaints);
}

using Counts = scant::sim::TrainingRunner::Counts;

bool run_training(uint64_t seed, const Arguments& arguments, Counts& all) {
  const scant::sim::Training training =
      arguments.crowd ? scant::sim::make_training_crowd(seed, std::max(arguments.size, 2))
                      : scant::sim::make_training(seed, arguments.size);
  if (arguments.verbose) print_scenario(seed, training.to_string());
  scant::sim::TrainingRunner runner(training);
  const std::vector<std::string> complaints = runner.run();
  const Counts& counts = runner.counts();
  all.rounds += counts.rounds;
  all.checked += counts.checked;
  all.failed += counts.failed;
  all.parted += counts.parted;
  all.returned += counts.returned;
  all.deviated += counts.deviated;
  all.changed += counts.changed;
  all.epochs += counts.epochs;
  if (arguments.verbose) {
    std::printf("seed=%llu %llu rounds in %.3f virtual seconds\n",
                static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(counts.rounds),
                std::chrono::duration<double>(runner.virtual_time()).count());
  }
  return report(seed, training.to_string(), complaints);
}

void print_counts(const Counts& counts) {
  std::printf(
      "%llu rounds ended well, owners changed within %llu of them, the mass of %llu was checked; "
      "%llu failed, %llu of them on "
      "some members alone, %llu with another plan on one; %llu records taken back after one; "
      "%llu epochs\n",
      static_cast<unsigned long long>(counts.rounds),
      static_cast<unsigned long long>(counts.changed),
      static_cast<unsigned long long>(counts.checked),
      static_cast<unsigned long long>(counts.failed),
      static_cast<unsigned long long>(counts.parted),
      static_cast<unsigned long long>(counts.deviated),
      static_cast<unsigned long long>(counts.returned),
      static_cast<unsigned long long>(counts.epochs));
}

std::optional<std::vector<uint64_t>> read_seeds(const std::string& path) {
  std::ifstream in(path);
  if (!in) return std::nullopt;
  std::vector<uint64_t> seeds;
  for (std::string line; std::getline(in, line);) {
    const size_t end = line.find_first_of(" \t#");
    const std::string text = line.substr(0, end);
    if (text.empty()) continue;
    const auto seed = number(text.c_str());
    if (!seed) return std::nullopt;
    seeds.push_back(*seed);
  }
  return seeds;
}

}  // namespace

int main(int argc, char** argv) {
  const std::optional<Arguments> arguments = parse(argc, argv);
  if (!arguments || argc < 2) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  std::vector<uint64_t> seeds;
  if (!arguments->file.empty()) {
    auto read = read_seeds(arguments->file);
    if (!read) {
      std::fprintf(stderr, "scant_sim: %s is not a readable list of seeds\n",
                   arguments->file.c_str());
      return 2;
    }
    seeds = std::move(*read);
  } else {
    for (uint64_t seed = arguments->first; seed <= arguments->last; ++seed) seeds.push_back(seed);
  }
  size_t failed = 0;
  const auto start = std::chrono::steady_clock::now();
  Counts counts;
  for (const uint64_t seed : seeds) {
    const bool well =
        arguments->trainings ? run_training(seed, *arguments, counts) : run_seed(seed, *arguments);
    if (!well) ++failed;
  }
  if (arguments->trainings) print_counts(counts);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  std::printf("%zu seeds, %zu failed, %.1f s, commit=%s\n", seeds.size(), failed, seconds,
              std::string(scant::base::commit()).c_str());
  return failed == 0 ? 0 : 1;
}
