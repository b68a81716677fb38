// Averages of single tensors before the step is over: wait_for(), and what is reported of it.
#include <future>
#include <gtest/gtest.h>
#include <latch>
#include <numeric>

#include "collective/testing/threads_as_ranks.h"
#include "gradient/testing/averagers.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

constexpr auto kLong = 60s;
const std::vector<codec::Shape> kTwo = {{1, 20'000}, {1, 20'000}};

FusionPlan one_buffer_each(const Layout& layout, Path path) {
  FusionPlan plan =
      uniform_plan({.path = path, .buffer_bytes = 1, .first_buffer_bytes = 1}, layout);
  EXPECT_EQ(plan.buffers.size(), layout.parts().size());
  return plan;
}

bool comes(Host& host, const std::vector<uint32_t>& tensors) {
  const auto answer = host.averager->wait_for(tensors, kLong);
  EXPECT_TRUE(answer && answer->ok());
  return answer && answer->ok() && answer->value();
}

TEST(AveragerNeeds, ATensorComesBeforeTheStepIsOver) {
  for (const Path path : {Path::all_reduce, Path::split, Path::gather}) {
    std::latch seen(1);
    collective::on_ranks(2, [&](Communicator& communicator) {
      const Layout layout = layout_for(2, kTwo);
      Host host(communicator, layout);
      host.set(one_buffer_each(layout, path));
      host.fill(1, 0);
      host.fill(1, 1);
      ASSERT_TRUE(host.averager->ready(0).ok());
      if (communicator.rank() == 1) {
        seen.wait();  // until rank 0 has the first, the second cannot come
        ASSERT_TRUE(host.averager->ready(1).ok());
        ASSERT_TRUE(host.end().ok());
        return;
      }
      ASSERT_TRUE(host.averager->ready(1).ok());
      ASSERT_TRUE(host.averager->finish().ok());
      EXPECT_TRUE(comes(host, {0}));
      EXPECT_NEAR(host.of(0)[7], exact_average(1, 2, 0, 7), 1e-6);
      EXPECT_EQ(host.averager->arrived(), std::vector<uint32_t>{0});
      EXPECT_FALSE(host.averager->wait_for(std::vector<uint32_t>{1}, 1ms));
      seen.count_down();
      EXPECT_TRUE(comes(host, {1}));
      EXPECT_EQ(host.averager->arrived(), (std::vector<uint32_t>{0, 1}));
      const auto report = host.averager->wait(kLong);
      ASSERT_TRUE(report && report->ok());
      EXPECT_GT(report->value().exposed_s, 0);
      EXPECT_GE(report->value().end_s, report->value().backward_s);
    });
  }
}

// One after the other, in any order, by random plans: each is what the step's end leaves there.
TEST(AveragerNeeds, WhatComesEarlyIsWhatTheStepEndsWith) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const int ranks = 1 + static_cast<int>(seed % 4);
    Collected collected;
    collective::on_ranks(ranks, [&](Communicator& communicator) {
      const Layout layout = layout_for(ranks);
      Host host(communicator, layout);
      base::Rng plans(seed);
      base::Rng orders(seed, static_cast<uint64_t>(communicator.rank()));
      for (int number = 1; number <= 4; ++number) {
        host.set(random_plan(plans, layout));
        std::vector<uint32_t> order(layout.tensors().size());
        std::iota(order.begin(), order.end(), 0u);
        for (const uint32_t tensor : order) {
          host.fill(number, tensor);
          ASSERT_TRUE(host.averager->ready(tensor).ok());
        }
        ASSERT_TRUE(host.averager->finish().ok());
        for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[orders.below(i)]);
        const size_t asked = orders.below(order.size() + 1);
        std::vector<std::vector<float>> early;
        for (size_t i = 0; i < asked; ++i) {
          ASSERT_TRUE(comes(host, {order[i]}));
          early.emplace_back(host.of(order[i]).begin(), host.of(order[i]).end());
        }
        const auto outcome = host.averager->wait(kLong);
        ASSERT_TRUE(outcome && outcome->ok());
        const StepReport& report = outcome->value();
        double before = 0;
        for (size_t i = 0; i < order.size(); ++i) {
          const auto needed = report.parts[layout.tensors()[order[i]].first_part].needed;
          EXPECT_GE(needed, asked > 0 ? before : 0);
          if (asked == 0) {
            EXPECT_EQ(needed, 0);
          }
          before = i < asked ? needed : before;
          if (i >= asked) continue;
          const auto now = host.of(order[i]);
          EXPECT_TRUE(std::equal(early[i].begin(), early[i].end(), now.begin(), now.end()));
        }
        collected.add(communicator.rank(), host.arena);
      }
    });
    collected.expect_alike();
  }
}

TEST(AveragerNeeds, AFailedStepAnswersAndWaitTellsHow) {
  std::latch begun(2);
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2, kTwo);
    Host host(communicator, layout);
    host.set(one_buffer_each(layout, Path::split));
    host.fill(1, 0);
    ASSERT_TRUE(host.averager->ready(0).ok());
    if (communicator.rank() == 1) {
      begun.arrive_and_wait();
      host.averager.reset();  // leaves in the middle of the step
      return;
    }
    ASSERT_TRUE(host.averager->ready(1).ok());
    ASSERT_TRUE(host.averager->finish().ok());
    begun.arrive_and_wait();
    const auto answer = host.averager->wait_for(std::vector<uint32_t>{1}, kLong);
    ASSERT_TRUE(answer && answer->ok());
    EXPECT_FALSE(answer->value());
    const auto outcome = host.averager->wait(kLong);
    ASSERT_TRUE(outcome);
    EXPECT_FALSE(outcome->ok());
  });
}

TEST(AveragerNeeds, WrongCallsAreRefused) {
  std::latch asked(1);
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2, kTwo);
    Host host(communicator, layout, {.missing_as_zeros = true});
    host.set(one_buffer_each(layout, Path::all_reduce));
    const auto refused = [&](const std::vector<uint32_t>& tensors) {
      const auto answer = host.averager->wait_for(tensors, 1ms);
      return answer && !answer->ok() && answer->error().code == ErrorCode::invalid_argument;
    };
    EXPECT_TRUE(refused({0}));  // not finished
    EXPECT_TRUE(host.averager->arrived().empty());
    if (communicator.rank() == 1) asked.wait();
    ASSERT_TRUE(host.averager->ready(0).ok());
    ASSERT_TRUE(host.averager->finish().ok());
    if (communicator.rank() == 0) {
      EXPECT_TRUE(refused({1}));  // had no gradient
      EXPECT_TRUE(refused({2}));
      EXPECT_FALSE(host.averager->wait_for(std::vector<uint32_t>{0}, 1ms));
      EXPECT_TRUE(refused({}));  // 0 is still waited for
      asked.count_down();
    }
    // Nobody comes back for the answer: the next step is not confused by it.
    ASSERT_TRUE(host.averager->wait(kLong)->ok());
    ASSERT_TRUE(host.averager->ready(1).ok());
    ASSERT_TRUE(host.averager->finish().ok());
    EXPECT_TRUE(comes(host, {1}));
    ASSERT_TRUE(host.averager->wait(kLong)->ok());
  });
}

}  // namespace
}  // namespace scant::gradient
