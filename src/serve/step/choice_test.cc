// Choices on simulated machines: the scheduler with a clock that is told what each step costs.
#include "serve/step/choice.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <map>

#include "base/rng.h"
#include "serve/step/scheduler.h"

namespace scant::serve {
namespace {

// Seconds of a step on so many threads.
using Machine = std::function<double(StepShape shape, size_t threads, double now_s)>;

// Memory gives weights within a time; cores compute; more threads than cores disturb each other.
struct Model {
  double weights_s = 0.05;  // to read them, by one thread; two read twice as fast, more do not
  double token_s = 0.006;   // to compute a token, by one thread
  double cores = 4;
  double disturbs = 0.1;  // of the time, for each thread above the cores

  double operator()(StepShape shape, size_t threads, double /*now_s*/) const {
    const auto n = static_cast<double>(threads);
    const double reading = weights_s / std::min({n, 2.0, cores});
    const double computing = token_s * shape.tokens / std::min(n, cores);
    return std::max(reading, computing) * (1 + disturbs * std::max(0.0, n - cores)) + 0.0002;
  }
};

struct Load {
  uint32_t clients = 4;  // each sends its next request when the last one is answered
  size_t requests = 400;
  uint32_t prompt_least = 8;
  uint32_t prompt_most = 1500;
  uint32_t answer_most = 120;
};

struct Served {
  double seconds = 0;
  double wait_p99_s = 0;  // between two tokens of an answer
  uint64_t steps = 0;
};

struct Case {
  double noise = 0;
  uint64_t seed = 1;
  Load load{};
};

Served serve(StepChoice& choice, const Machine& machine, const Case& run) {
  constexpr SchedulerOptions kLimits = {
      .vocabulary = 2, .context = 4096, .step_tokens = 512, .running_max = 64, .waiting_max = 1000};
  Scheduler scheduler(kLimits, 5000);
  base::Rng lengths(run.seed, 0);
  base::Rng noise(run.seed, 1);
  uint64_t next = 0;
  const auto send = [&] {
    if (next == run.load.requests) return;
    // Heavy tails: as often between n and 2n as between 2n and 4n.
    const double least = run.load.prompt_least;
    const auto prompt =
        static_cast<size_t>(least * std::pow(run.load.prompt_most / least, lengths.uniform()));
    Request one{.number = next,
                .prompt = std::vector<uint32_t>(prompt, 0),
                .tokens_max = static_cast<uint32_t>(1 + lengths.below(run.load.answer_most)),
                .sampling = {.temperature = 0}};
    // No two prompts begin alike.
    for (size_t i = 0; i < std::min<size_t>(16, prompt); ++i) one.prompt[i] = next >> i & 1;
    ++next;
    ASSERT_TRUE(scheduler.add(std::move(one)));
  };
  for (uint32_t i = 0; i < run.load.clients; ++i) send();
  Served result;
  std::map<uint64_t, double> told_s;
  std::vector<double> waits_s;
  while (true) {
    const Step& step = scheduler.plan(choice.prompt_tokens(scheduler.answering()));
    if (step.planned.empty()) break;
    StepShape shape;
    size_t outputs = 0;
    for (const Planned& one : step.planned) {
      shape.tokens += static_cast<uint32_t>(one.tokens.size());
      if (one.tokens.size() > 1) shape.kind = StepKind::prompts;
      outputs += one.outputs;
    }
    const size_t threads = choice.threads(shape);
    double gauss = 0;
    for (int i = 0; i < 12; ++i) gauss += noise.uniform();
    const double cost_s = machine(shape, threads, result.seconds);
    choice.took(shape, threads, cost_s * std::exp(run.noise * (gauss - 6)));
    result.seconds += cost_s;
    ++result.steps;
    scheduler.take(std::vector<float>(2 * outputs));
    for (const Event& event : scheduler.events()) {
      const auto before = told_s.find(event.request);
      if (before != told_s.end()) waits_s.push_back(result.seconds - before->second);
      told_s[event.request] = result.seconds;
      if (event.finish != Finish::none) send();
    }
  }
  const auto p99 = waits_s.begin() + static_cast<ptrdiff_t>(waits_s.size() * 99 / 100);
  std::ranges::nth_element(waits_s, p99);
  result.wait_p99_s = *p99;
  return result;
}

constexpr ChoiceOptions kPlain = {.threads = 4, .choose_threads = false, .answer_wait_s = 0};
constexpr ChoiceOptions kThreads = {.threads = 4, .answer_wait_s = 0};

TEST(StepChoice, ClassesOfTokensGrowByHalves) {
  uint32_t last = 0;
  for (uint32_t tokens = 1; tokens <= 5000; ++tokens) {
    const uint32_t bound = token_class(tokens);
    EXPECT_GE(bound, tokens);
    EXPECT_GE(bound, last);
    if (tokens > 2) {
      EXPECT_LE(bound, tokens * 3 / 2) << tokens;
    }
    last = bound;
  }
  EXPECT_EQ(token_class(1), 1u);
  EXPECT_EQ(token_class(2), 2u);
  EXPECT_EQ(token_class(5), 6u);
  EXPECT_EQ(token_class(512), 512u);
}

TEST(StepChoice, WaysBeginWithAllThreadsAndEndWithOne) {
  for (size_t threads = 1; threads <= 256; ++threads) {
    const std::vector<size_t> ways = thread_ways(threads);
    EXPECT_EQ(ways.front(), threads);
    EXPECT_EQ(ways.back(), 1u);
    EXPECT_LE(ways.size(), 9u);
    EXPECT_TRUE(std::ranges::is_sorted(ways, std::ranges::greater()));
    EXPECT_EQ(std::ranges::adjacent_find(ways), ways.end());
  }
}

TEST(StepChoice, GivenThreadsAreKept) {
  StepChoice choice({.threads = 3, .choose_threads = false});
  for (int i = 0; i < 1000; ++i) {
    const StepShape shape{.tokens = 1};
    EXPECT_EQ(choice.threads(shape), 3u);
    choice.took(shape, 3, i % 7 == 0 ? 10 : 1);
  }
}

// The machine says four cores and has two.
TEST(StepChoice, FindsThatFourThreadsAreTwo) {
  const Model two_cores{.cores = 2};
  for (const double noise : {0.0, 0.02, 0.1}) {
    StepChoice choice(kThreads);
    StepChoice plain(kPlain);
    const Case run{.noise = noise, .load = {.requests = 600}};
    EXPECT_LT(serve(choice, two_cores, run).seconds, 0.93 * serve(plain, two_cores, run).seconds);
    uint64_t rows = 0;
    for (const StepChoice::Row& row : choice.table()) {
      if (row.steps < 200) continue;  // was seldom seen
      ++rows;
      double best = 1e9;
      for (size_t n = 1; n <= 4; ++n) best = std::min(best, two_cores(row.shape, n, 0));
      EXPECT_LE(two_cores(row.shape, row.threads, 0), 1.05 * best) << row.shape.tokens;
      EXPECT_LT(row.to_plain, 0.95) << row.shape.tokens;
      EXPECT_GT(row.compared, 4u);
    }
    EXPECT_GE(rows, 2u);
  }
}

TEST(StepChoice, CostsAtMostTwoPercentWherePlainIsBest) {
  // All four cores are there. Reading needs two, so fewer threads are as good for answers alone.
  for (const double cores : {4.0, 64.0}) {
    const Model machine{.cores = cores};
    for (const double noise : {0.0, 0.02, 0.1}) {
      for (const size_t requests : {5u, 50u, 500u}) {
        StepChoice choice(kThreads);
        StepChoice plain(kPlain);
        const Case run{.noise = noise, .load = {.requests = requests}};
        EXPECT_LE(serve(choice, machine, run).seconds, 1.02 * serve(plain, machine, run).seconds)
            << cores << ' ' << noise << ' ' << requests;
      }
    }
  }
}

TEST(StepChoice, FollowsAMachineWhoseCoresComeAndGo) {
  const Model all{};
  const Model half{.cores = 2, .disturbs = 0.2};
  const auto changing = [&](double each_s) -> Machine {
    return [=](StepShape shape, size_t threads, double now_s) {
      const bool whole = std::fmod(now_s, 2 * each_s) < each_s;
      return (whole ? all : half)(shape, threads, now_s);
    };
  };
  for (const double noise : {0.0, 0.05}) {
    const Case run{.noise = noise, .load = {.requests = 2500}};
    // Some thousands of steps between changes; then so few that there is nothing to gain.
    for (const auto& [each_s, most] : {std::pair{1500.0, 0.99}, {300.0, 1.02}, {40.0, 1.02}}) {
      StepChoice choice(kThreads);
      StepChoice plain(kPlain);
      const Machine machine = changing(each_s);
      EXPECT_LE(serve(choice, machine, run).seconds, most * serve(plain, machine, run).seconds)
          << noise << ' ' << each_s;
    }
  }
}

TEST(StepChoice, ACutLetsAnswersWaitLessAndCostsNoThroughput) {
  // A full step takes 0.77 s.
  for (const double noise : {0.0, 0.05}) {
    for (const uint32_t clients : {2u, 8u, 32u}) {
      const Model machine{};
      ChoiceOptions options = kPlain;
      StepChoice plain(options);
      options.answer_wait_s = 0.15;
      StepChoice choice(options);
      const Case run{.noise = noise, .load = {.clients = clients, .requests = 800}};
      const Served one = serve(choice, machine, run);
      const Served two = serve(plain, machine, run);
      EXPECT_LE(one.seconds, 1.02 * two.seconds) << clients << ' ' << noise;
      EXPECT_LE(one.wait_p99_s, noise > 0 ? 0.3 : 0.2) << clients << ' ' << noise;
      EXPECT_GE(two.wait_p99_s, 0.28) << clients << ' ' << noise;
    }
  }
}

// Each step costs a second, whatever runs in it: a cut would cost throughput.
TEST(StepChoice, NothingIsCutWhereThatCostsThroughput) {
  const Machine flat = [](StepShape shape, size_t, double) {
    return shape.kind == StepKind::answers && shape.tokens < 64 ? 0.1 : 1.0;
  };
  StepChoice choice({.threads = 1, .choose_threads = false});
  StepChoice plain({.threads = 1, .choose_threads = false, .answer_wait_s = 0});
  const Case load{.load = {.requests = 400}};
  EXPECT_LE(serve(choice, flat, load).seconds, 1.02 * serve(plain, flat, load).seconds);
  EXPECT_GE(choice.prompt_tokens(4), 448u);
}

TEST(StepChoice, NothingIsCutWhereAFullStepIsShort) {
  StepChoice choice({.threads = 1, .choose_threads = false});
  serve(choice, Model{.weights_s = 0.01, .token_s = 0.0002}, {.load = {.requests = 40}});
  EXPECT_EQ(choice.prompt_tokens(0), 512u);
  EXPECT_EQ(choice.prompt_tokens(12), 500u);
  EXPECT_EQ(choice.prompt_tokens(512), 0u);
}

}  // namespace
}  // namespace scant::serve
