// The guard on simulated machines: what it costs beyond the plain way, and what it finds.
#include "base/guard.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <string>

#include "base/rng.h"

namespace scant::base {
namespace {

// Cost of a way at a step, without noise.
using Machine = std::function<double(size_t way, size_t step)>;

struct Noise {
  double spread = 0;    // of the logarithm
  double outliers = 0;  // share of uses that cost several times as much
  double together = 0;  // slow waves that all ways feel
};

struct Outcome {
  double regret = 0;  // cost ÷ plain's - 1
  double last = 0;    // cost of the last quarter ÷ the best way's
  double pick = 0;    // cost of the way held at the end ÷ the best way's
  size_t held = 0;
  uint64_t changes = 0;
};

Outcome run(const Machine& machine, size_t ways, size_t steps, const Noise& noise, uint64_t seed) {
  std::vector<double> at_most;
  for (size_t way = 0; way < ways; ++way)
    at_most.push_back(static_cast<double>(ways) / static_cast<double>(ways - way));
  Guard guard(at_most);
  Rng rng(seed);
  double spent = 0, plain = 0, spent_last = 0, best_last = 0;
  for (size_t step = 0; step < steps; ++step) {
    const size_t way = guard.next();
    const double cost = machine(way, step);
    double gauss = 0;
    for (int i = 0; i < 12; ++i) gauss += rng.uniform();
    double seen = cost * std::exp(noise.spread * (gauss - 6) +
                                  noise.together * std::sin(static_cast<double>(step) / 50));
    if (rng.chance(noise.outliers)) seen *= 2 + 8 * rng.uniform();
    guard.add(way, seen);
    spent += cost;
    plain += machine(0, step);
    if (step < steps - steps / 4) continue;
    spent_last += cost;
    double best = cost;
    for (size_t other = 0; other < ways; ++other) best = std::min(best, machine(other, step));
    best_last += best;
  }
  double best = machine(0, steps - 1);
  for (size_t way = 0; way < ways; ++way) best = std::min(best, machine(way, steps - 1));
  return {.regret = spent / plain - 1,
          .last = spent_last / best_last,
          .pick = machine(guard.held(), steps - 1) / best,
          .held = guard.held(),
          .changes = guard.changes()};
}

const Noise kNoises[] = {{}, {.spread = 0.02}, {.spread = 0.1, .outliers = 0.01, .together = 0.1}};

// Of 4 ways, way w has 4 - w threads.
double two_real(size_t way, size_t) {
  constexpr double kCosts[] = {1.25, 1.15, 1.0, 1.9};
  return kCosts[way];
}
double four_real(size_t way, size_t) { return 4.0 / static_cast<double>(4 - way); }
double all_alike(size_t, size_t) { return 1; }

TEST(Guard, FindsThatFourThreadsAreTwo) {
  for (const Noise& noise : kNoises) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const Outcome out = run(two_real, 4, 4000, noise, seed);
      EXPECT_LE(out.regret, -0.05) << seed << ' ' << noise.spread;
      EXPECT_LE(out.last, 1.05) << seed << ' ' << noise.spread;
      EXPECT_EQ(out.held, 2u) << seed << ' ' << noise.spread;
    }
  }
}

TEST(Guard, CostsLittleWherePlainIsBest) {
  for (const Machine& machine : {Machine(four_real), Machine(all_alike)}) {
    for (const Noise& noise : kNoises) {
      for (uint64_t seed = 0; seed < 6; ++seed) {
        for (const size_t steps : {50u, 400u, 4000u}) {
          const Outcome out = run(machine, 4, steps, noise, seed);
          EXPECT_LE(out.regret, 0.02) << seed << ' ' << noise.spread << ' ' << steps;
          EXPECT_LE(out.last, 1.05) << seed << ' ' << noise.spread << ' ' << steps;
        }
      }
    }
  }
}

// Two of the cores go to another program, and come back.
TEST(Guard, FollowsAMachineThatChanges) {
  const Machine gone = [](size_t way, size_t step) {
    return step % 8000 < 4000 ? four_real(way, step) : 2 * two_real(way, step);
  };
  for (const Noise& noise : kNoises) {
    for (uint64_t seed = 0; seed < 4; ++seed) {
      for (const size_t steps : {4000u, 6000u, 8000u, 12000u, 16000u}) {
        const Outcome out = run(gone, 4, steps, noise, seed);
        EXPECT_LE(out.pick, 1.05) << seed << ' ' << noise.spread << ' ' << steps;
        if (steps % 8000 != 0) {
          EXPECT_EQ(out.held, steps % 8000 == 6000 ? 2u : 0u) << seed << ' ' << steps;
        }
      }
    }
  }
}

// What is gained before a change does not count here: only what is lost by it.
TEST(Guard, LeavesAtOnceWhatMeasuresWorseThanPlain) {
  const Machine turns = [](size_t way, size_t step) {
    return step < 4000 ? two_real(way, step) : four_real(way, step);
  };
  for (const Noise& noise : kNoises) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const Outcome all = run(turns, 4, 8000, noise, seed);
      const Outcome before = run(turns, 4, 4000, noise, seed);
      // Plain costs 1.25 before, and 1 after: regret is a share of that.
      const double lost = all.regret * (1.25 * 4000 + 4000) - before.regret * 1.25 * 4000;
      EXPECT_LE(lost, 0.02 * 4000) << seed << ' ' << noise.spread;
      EXPECT_EQ(all.held, 0u) << seed << ' ' << noise.spread;
    }
  }
}

TEST(Guard, HoldsNothingThatIsALittleWorse) {
  for (const double worse : {1.01, 1.03, 1.05, 1.1}) {
    const Machine machine = [&](size_t way, size_t) { return way == 0 ? 1.0 : worse; };
    for (const Noise& noise : kNoises) {
      for (uint64_t seed = 0; seed < 6; ++seed)
        EXPECT_LE(run(machine, 8, 4000, noise, seed).regret, 0.02) << seed << ' ' << worse;
    }
  }
}

TEST(Guard, FindsTheBestOfManyWays) {
  for (size_t ways : {2u, 3u, 9u, 12u}) {
    for (size_t best = 0; best < ways; ++best) {
      // Less than the best is as bad as having fewer threads; more costs 5 % each.
      const Machine machine = [&](size_t way, size_t) {
        const auto threads = static_cast<double>(ways - way);
        const auto wanted = static_cast<double>(ways - best);
        return threads <= wanted ? wanted / threads : 1 + 0.05 * (threads - wanted);
      };
      for (const Noise& noise : kNoises) {
        const Outcome out = run(machine, ways, 12000, noise, best);
        EXPECT_LE(out.regret, 0.02) << ways << ' ' << best << ' ' << noise.spread;
        EXPECT_LE(out.pick, 1.05) << ways << ' ' << best << ' ' << noise.spread;
      }
    }
  }
}

}  // namespace
}  // namespace scant::base
