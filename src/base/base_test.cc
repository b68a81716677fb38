// Buffers, queue, rng, counters, threads, checks and errors of base/.
#include <array>
#include <cstdint>
#include <gtest/gtest.h>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/queue.h"
#include "base/rng.h"
#include "base/thread.h"
#include "scant/result.h"

namespace scant::base {
namespace {

TEST(Buffer, IsAlignedAndMoves) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{4096}, size_t{3} << 20}) {
    Buffer buffer(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    if (size >= (size_t{2} << 20)) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % (2u << 20), 0u);
    }
    const std::byte* data = buffer.data();
    Buffer moved(std::move(buffer));
    EXPECT_EQ(moved.data(), data);
    EXPECT_EQ(moved.size(), size);
  }
}

TEST(BufferPool, GivesTheWarmestBack) {
  BufferPool pool(1024, 2);
  Buffer a = pool.take();
  Buffer b = pool.take();
  const std::byte* last = b.data();
  pool.give(std::move(a));
  pool.give(std::move(b));
  EXPECT_EQ(pool.take().data(), last);
}

TEST(BoundedQueue, KeepsOrderPerProducerAndLosesNothing) {
  constexpr int kProducers = 4;
  constexpr int kItems = 2000;
  BoundedQueue<std::pair<int, int>> queue(8);
  std::array<Thread, kProducers> producers;
  for (int p = 0; p < kProducers; ++p) {
    ASSERT_TRUE(producers[static_cast<size_t>(p)]
                    .start("producer",
                           [&queue, p] {
                             for (int i = 0; i < kItems; ++i) SCANT_CHECK(queue.push({p, i}));
                           })
                    .ok());
  }
  std::array<int, kProducers> next{};
  for (int n = 0; n < kProducers * kItems; ++n) {
    const auto item = queue.pop();
    ASSERT_TRUE(item.has_value());
    EXPECT_EQ(item->second, next[static_cast<size_t>(item->first)]++);
  }
  for (auto& producer : producers) producer.join();
  EXPECT_EQ(queue.size(), 0u);
}

TEST(BoundedQueue, RefusesWhenFullAndWakesWaitersWhenClosed) {
  BoundedQueue<int> queue(1);
  EXPECT_TRUE(queue.try_push(1));
  EXPECT_FALSE(queue.try_push(2));
  Thread blocked;
  bool pushed = true;
  ASSERT_TRUE(blocked.start("blocked", [&] { pushed = queue.push(3); }).ok());
  queue.close();
  blocked.join();
  EXPECT_FALSE(pushed);
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), std::nullopt);
  EXPECT_FALSE(queue.push(4));
}

TEST(Rng, IsAFunctionOfSeedStreamAndCounter) {
  Rng a(1, 2);
  Rng b(1, 2);
  for (uint64_t n = 0; n < 100; ++n) {
    const uint64_t drawn = a.next();
    EXPECT_EQ(drawn, b.next());
    EXPECT_EQ(drawn, random_at(1, 2, n));
  }
  std::set<uint64_t> distinct;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (uint64_t stream = 0; stream < 10; ++stream) {
      for (uint64_t n = 0; n < 10; ++n) distinct.insert(random_at(seed, stream, n));
    }
  }
  EXPECT_EQ(distinct.size(), 1000u);
}

TEST(Rng, IsUniformWithinFiveSigma) {
  Rng rng(42);
  constexpr uint64_t kBins = 16;
  constexpr int kDraws = 160000;
  std::array<int, kBins> hits{};
  double sum = 0;
  for (int i = 0; i < kDraws; ++i) {
    ++hits[rng.below(kBins)];
    sum += rng.uniform();
  }
  for (const int count : hits)
    EXPECT_NEAR(count, kDraws / kBins, 5 * 97);  // sigma = sqrt(n p (1-p)) = 96.8
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * 0.00072);   // sigma = sqrt(1/12/n)
}

TEST(Counters, AreSharedByNameAndExported) {
  Counter& a = counter("scant_test_total", "A test's\ncounter", "{peer=\"1\"}");
  Counter& b = counter("scant_test_total", "A test's\ncounter", "{peer=\"2\"}");
  EXPECT_EQ(&a, &counter("scant_test_total", "A test's\ncounter", "{peer=\"1\"}"));
  EXPECT_NE(&a, &b);
  a.add(3);
  b.add();
  const std::string text = counters_prometheus();
  EXPECT_NE(
      text.find("# HELP scant_test_total A test's\\ncounter\n# TYPE scant_test_total counter\n"
                "scant_test_total{peer=\"1\"} 3\nscant_test_total{peer=\"2\"} 1\n"),
      std::string::npos)
      << text;
}

TEST(Thread, RunsAndRefusesACpuThatDoesNotExist) {
  Thread thread;
  bool ran = false;
  ASSERT_TRUE(thread.start("worker", [&] { ran = true; }).ok());
  thread.join();
  EXPECT_TRUE(ran);
  Thread pinned;
  const Result<void> outcome = pinned.start(
      "pinned", [] {}, 1 << 20);
  ASSERT_FALSE(outcome.ok());
  EXPECT_EQ(outcome.error().code, ErrorCode::invalid_argument);
}

TEST(ManualClock, MovesOnlyWhenTold) {
  ManualClock clock;
  const Time start = clock.now();
  EXPECT_EQ(clock.now(), start);
  clock.advance(std::chrono::milliseconds(5));
  EXPECT_EQ(clock.now() - start, std::chrono::milliseconds(5));
}

TEST(CheckDeathTest, PrintsConditionRankSeedAndCommit) {
  set_check_rank(3);
  set_check_seed(77);
  EXPECT_DEATH(SCANT_CHECK(1 + 1 == 3, "arithmetic"),
               "1 \\+ 1 == 3: arithmetic \\[rank=3 seed=77 commit=");
}

TEST(Error, RendersCodeMessageAndErrno) {
  const Error error{ErrorCode::peer_lost, 104, 2, "rank 2 is lost"};
  EXPECT_EQ(error.to_string(), "peer_lost: rank 2 is lost: Connection reset by peer");
}

}  // namespace
}  // namespace scant::base
