// Buffers, queue, rng, counters, threads, checks and errors of base/.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <csignal>
#include <cstdint>
#include <gtest/gtest.h>
#include <memory>
#include <pthread.h>
#include <sched.h>
#include <set>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/counters.h"
#include "base/queue.h"
#include "base/rng.h"
#include "base/thread.h"
#include "base/worker_pool.h"
#include "scant/base/result.h"

namespace scant::base {
namespace {

TEST(Buffer, IsAlignedWholeAndMoves) {
  constexpr size_t kHuge = size_t{2} << 20;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{4096}, kHuge - 1, kHuge,
                            kHuge + 1, 3 * kHuge + 4097}) {
    Result<Buffer> made = Buffer::allocate(size);
    ASSERT_TRUE(made.ok());
    Buffer buffer = std::move(made).value();
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(buffer.view().size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % (size >= kHuge ? kHuge : 64), 0u);
    for (std::byte& byte : buffer.view()) byte = std::byte{0x5A};  // every byte can be written
    const std::byte* data = buffer.data();
    Buffer moved(std::move(buffer));
    EXPECT_EQ(moved.data(), data);
    EXPECT_EQ(moved.size(), size);
    Buffer assigned = Buffer::allocate(128).value();
    assigned = std::move(moved);
    EXPECT_EQ(assigned.data(), data);
    if (size > 0) {
      EXPECT_EQ(assigned.data()[size - 1], std::byte{0x5A});
    }
  }
}

TEST(Buffer, SaysHowMuchMemoryThereWasNot) {
  for (const size_t size : {SIZE_MAX, SIZE_MAX / 4}) {
    const Result<Buffer> refused = Buffer::allocate(size);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::resource);
    EXPECT_NE(refused.error().message.find(std::to_string(size) + " bytes"), std::string::npos)
        << refused.error().message;
  }
}

TEST(Buffer, CostsNothingWhereItIsNotTouched) {
  constexpr size_t kSize = size_t{1} << 32;
  Result<Buffer> made = Buffer::allocate(kSize);
  ASSERT_TRUE(made.ok());
  made.value().data()[kSize / 2] = std::byte{1};
  std::vector<unsigned char> resident(kSize / 4096);
  ASSERT_EQ(mincore(made.value().data(), kSize, resident.data()), 0);
  const auto pages = std::count_if(resident.begin(), resident.end(),
                                   [](unsigned char page) { return (page & 1) != 0; });
  EXPECT_GE(pages, 1);
  EXPECT_LE(pages, 512);  // a huge page at most
}

TEST(Buffer, IsRefusedByTheGate) {
  const Buffer kept = Buffer::allocate(8).value();
  set_allocation_gate([](size_t size) { return size < 100; });
  const Result<Buffer> small = Buffer::allocate(99);
  const Result<Buffer> large = Buffer::allocate(100);
  set_allocation_gate(nullptr);
  EXPECT_TRUE(small.ok());
  ASSERT_FALSE(large.ok());
  EXPECT_EQ(large.error().code, ErrorCode::resource);
  EXPECT_TRUE(Buffer::allocate(100).ok());
}

TEST(BufferPool, GivesTheWarmestBackAndKeepsNoMoreThanItsLimit) {
  BufferPool pool(1024, 2);
  std::array<Buffer, 3> buffers = {pool.take().value(), pool.take().value(), pool.take().value()};
  const std::byte* const first = buffers[0].data();
  const std::byte* const second = buffers[1].data();
  for (Buffer& buffer : buffers) pool.give(std::move(buffer));
  const Buffer warmest = pool.take().value();
  const Buffer next = pool.take().value();
  EXPECT_EQ(warmest.data(), second);  // the third was one too many
  EXPECT_EQ(next.data(), first);
  EXPECT_EQ(pool.take().value().size(), 1024u);
}

TEST(BufferPoolDeathTest, RefusesABufferOfAnotherSize) {
  BufferPool pool(1024, 2);
  EXPECT_DEATH(pool.give(Buffer::allocate(1).value()), "another size");
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

TEST(BoundedQueue, CloseWakesEveryWaiter) {
  // Waiters may reach their wait before or after close(); many rounds meet both.
  for (int round = 0; round < 200; ++round) {
    BoundedQueue<int> empty(1);
    BoundedQueue<int> full(1);
    ASSERT_TRUE(full.try_push(0));
    std::array<Thread, 2> consumers;
    std::array<Thread, 2> producers;
    for (Thread& thread : consumers) {
      ASSERT_TRUE(thread.start("consumer", [&] { SCANT_CHECK(!empty.pop().has_value()); }).ok());
    }
    for (Thread& thread : producers) {
      ASSERT_TRUE(thread.start("producer", [&] { SCANT_CHECK(!full.push(1)); }).ok());
    }
    empty.close();
    full.close();
    for (Thread& thread : consumers) thread.join();
    for (Thread& thread : producers) thread.join();
    EXPECT_EQ(full.size(), 1u);
  }
}

TEST(BoundedQueue, TimesOutDrainsInOrderAndTakesAnyTimeout) {
  BoundedQueue<std::unique_ptr<int>> queue(3);
  EXPECT_EQ(queue.pop(Duration::zero()), std::nullopt);
  EXPECT_EQ(queue.pop(Duration(1)), std::nullopt);
  EXPECT_EQ(queue.try_pop(), std::nullopt);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(queue.push(std::make_unique<int>(i)));
  EXPECT_EQ(**queue.pop(Duration::max() - Duration(1)), 0);  // a deadline past the end of time
  EXPECT_EQ(**queue.try_pop(), 1);
  ASSERT_TRUE(queue.push(std::make_unique<int>(3)));
  const auto rest = queue.drain();
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_EQ(*rest[0], 2);
  EXPECT_EQ(*rest[1], 3);
  EXPECT_EQ(queue.size(), 0u);
}

TEST(BoundedQueue, DrainMakesRoomForAWaitingProducer) {
  BoundedQueue<int> queue(1);
  ASSERT_TRUE(queue.try_push(1));
  Thread producer;
  ASSERT_TRUE(producer.start("producer", [&] { SCANT_CHECK(queue.push(2)); }).ok());
  EXPECT_EQ(queue.drain().size(), 1u);
  EXPECT_EQ(queue.pop(), 2);
}

TEST(WorkerPool, RunsEveryIterationOnceWhateverTheNumberOfWorkers) {
  // The shortest spin is always in vain.
  for (const auto& [workers, spin] :
       {std::pair{1, Duration{}}, std::pair{2, Duration{}}, std::pair{7, Duration{}},
        std::pair{2, Duration{1}}, std::pair{2, Duration{std::chrono::milliseconds(20)}},
        std::pair{7, Duration{std::chrono::microseconds(50)}}}) {
    WorkerPool pool;
    ASSERT_TRUE(pool.start(static_cast<size_t>(workers), spin).ok());
    EXPECT_EQ(pool.workers(), static_cast<size_t>(workers));
    for (const size_t count : {size_t{0}, size_t{1}, size_t{2}, size_t{6}, size_t{1000}}) {
      std::vector<std::atomic<int>> runs(count);
      std::atomic<bool> strange{false};
      pool.for_each(count, [&](size_t index, size_t worker) {
        runs[index].fetch_add(1);
        if (worker >= pool.workers()) strange = true;
      });
      for (const auto& run : runs) EXPECT_EQ(run.load(), 1);
      EXPECT_FALSE(strange.load());
    }
  }
}

TEST(WorkerPool, UsesAsManyWorkersAsItIsTold) {
  WorkerPool pool;
  ASSERT_TRUE(pool.start(5).ok());
  for (const size_t used : {size_t{2}, size_t{5}, size_t{1}, size_t{4}}) {
    pool.use(used);
    EXPECT_EQ(pool.workers(), used);
    std::vector<std::atomic<int>> runs(1000);
    std::vector<std::atomic<int>> inside(5);
    std::atomic<bool> strange{false};
    pool.for_each(runs.size(), [&](size_t index, size_t worker) {
      if (worker >= used || inside[worker].fetch_add(1) != 0) strange = true;
      runs[index].fetch_add(1);
      inside[worker].fetch_sub(1);
    });
    for (const auto& run : runs) EXPECT_EQ(run.load(), 1);
    EXPECT_FALSE(strange.load()) << "two threads are one worker, or one is too many";
  }
}

TEST(WorkerPool, RefusesMoreWorkersThanItCanHave) {
  WorkerPool pool;
  const auto started = pool.start(257);
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().code, ErrorCode::invalid_argument);
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
    EXPECT_NEAR(count, static_cast<double>(kDraws) / kBins,
                5 * 97);                        // sigma = sqrt(n p (1-p)) = 96.8
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * 0.00072);  // sigma = sqrt(1/12/n)
}

TEST(Rng, BoundsHoldAtTheEdges) {
  Rng rng(3);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_EQ(rng.below(1), 0u);
    EXPECT_LT(rng.below((uint64_t{1} << 63) + 1), (uint64_t{1} << 63) + 1);  // half is rejected
    const double drawn = rng.uniform();
    EXPECT_GE(drawn, 0.0);
    EXPECT_LT(drawn, 1.0);
  }
  EXPECT_FALSE(rng.chance(0.0));
  EXPECT_TRUE(rng.chance(1.0));
}

TEST(RngDeathTest, HasNoNumberBelowZero) {
  Rng rng(3);
  EXPECT_DEATH(rng.below(0), "bound > 0");
}

TEST(Rng, StreamsAndSeedsAreUncorrelated) {
  // Neighbouring seeds, streams and counters differ in half of their bits: 64 bits per comparison.
  constexpr uint64_t kDraws = 4000;
  uint64_t by_seed = 0;
  uint64_t by_stream = 0;
  uint64_t by_counter = 0;
  for (uint64_t n = 0; n < kDraws; ++n) {
    const uint64_t here = random_at(n, n, n);
    by_seed += static_cast<uint64_t>(std::popcount(here ^ random_at(n + 1, n, n)));
    by_stream += static_cast<uint64_t>(std::popcount(here ^ random_at(n, n + 1, n)));
    by_counter += static_cast<uint64_t>(std::popcount(here ^ random_at(n, n, n + 1)));
  }
  for (const uint64_t different : {by_seed, by_stream, by_counter}) {
    EXPECT_NEAR(static_cast<double>(different), 32.0 * kDraws, 5 * 253);  // sigma = sqrt(64 n) / 2
  }
}

TEST(Rng, ThreadsThatShareTheDrawsSeeTheSameNumbers) {
  constexpr uint64_t kDraws = 1000;
  std::vector<uint64_t> drawn(kDraws);
  std::array<Thread, 4> threads;
  for (uint64_t t = 0; t < threads.size(); ++t) {
    ASSERT_TRUE(threads[t]
                    .start("drawer",
                           [&drawn, t] {  // backwards, every fourth
                             for (uint64_t n = kDraws; n-- > 0;) {
                               if (n % 4 == t) drawn[n] = random_at(9, 1, n);
                             }
                           })
                    .ok());
  }
  for (Thread& thread : threads) thread.join();
  Rng rng(9, 1);
  for (uint64_t n = 0; n < kDraws; ++n) EXPECT_EQ(drawn[n], rng.next());
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

TEST(Counters, EscapeLabelsAndMarkGauges) {
  EXPECT_EQ(render_labels({}), "");
  const std::string labels = render_labels({{"peer", "2"}, {"host", "a\\b\"c\nd"}});
  EXPECT_EQ(labels, "{peer=\"2\",host=\"a\\\\b\\\"c\\nd\"}");
  Counter& gauge = counter("scant_test_level", "back\\slash and \"quotes\"", labels);
  gauge.set(7);
  gauge.set(5);
  EXPECT_NE(counters_prometheus().find("# HELP scant_test_level back\\\\slash and \"quotes\"\n"
                                       "# TYPE scant_test_level gauge\nscant_test_level" +
                                       labels + " 5\n"),
            std::string::npos)
      << counters_prometheus();
}

TEST(CountersDeathTest, RefuseNamesThatPrometheusRefuses) {
  EXPECT_DEATH(counter("2nd name", "help"), "2nd name");
  EXPECT_DEATH(static_cast<void>(render_labels({{"a:b", "x"}})), "a:b");
}

TEST(Counters, LoseNothingBetweenThreads) {
  std::array<Thread, 4> threads;
  for (Thread& thread : threads) {
    ASSERT_TRUE(thread
                    .start("adder",
                           [] {
                             Counter& shared = counter("scant_test_shared_total", "Shared");
                             for (int i = 0; i < 10000; ++i) shared.add();
                           })
                    .ok());
  }
  for (Thread& thread : threads) thread.join();
  EXPECT_EQ(counter("scant_test_shared_total", "Shared").value(), 40000u);
}

TEST(Thread, IsNamedPinnedAndDeafToSignals) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  int cpu = 0;
  while (!CPU_ISSET(static_cast<size_t>(cpu), &allowed)) ++cpu;
  std::array<char, 16> seen_name{};
  cpu_set_t seen_cpus;
  sigset_t seen_signals;
  Thread thread;
  ASSERT_TRUE(thread
                  .start(
                      "a-name-longer-than-linux-keeps",
                      [&] {
                        pthread_getname_np(pthread_self(), seen_name.data(), seen_name.size());
                        sched_getaffinity(0, sizeof(seen_cpus), &seen_cpus);
                        pthread_sigmask(SIG_BLOCK, nullptr, &seen_signals);
                      },
                      cpu)
                  .ok());
  EXPECT_TRUE(thread.running());
  thread.join();
  EXPECT_FALSE(thread.running());
  EXPECT_STREQ(seen_name.data(), "a-name-longer-t");
  EXPECT_EQ(CPU_COUNT(&seen_cpus), 1);
  EXPECT_TRUE(CPU_ISSET(static_cast<size_t>(cpu), &seen_cpus));
  EXPECT_EQ(sigismember(&seen_signals, SIGINT), 1);
  EXPECT_EQ(sigismember(&seen_signals, SIGSEGV), 0);
}

TEST(Thread, RefusesACpuThatDoesNotExistWithoutRunning) {
  for (const int cpu : {1 << 20, CPU_SETSIZE - 1, -2}) {
    Thread pinned;
    bool ran = false;
    const Result<void> outcome = pinned.start(
        "pinned", [&] { ran = true; }, cpu);
    ASSERT_FALSE(outcome.ok());
    EXPECT_EQ(outcome.error().code, ErrorCode::invalid_argument) << outcome.error().to_string();
    EXPECT_FALSE(pinned.running());
    EXPECT_FALSE(ran);
    EXPECT_TRUE(pinned.start("unpinned", [&] { ran = true; }).ok());  // it can be started again
    pinned.join();
    EXPECT_TRUE(ran);
  }
}

TEST(MonotonicClock, NeverGoesBack) {
  const MonotonicClock clock;
  Time last = clock.now();
  for (int i = 0; i < 1000; ++i) {
    const Time now = clock.now();
    EXPECT_GE(now, last);
    last = now;
  }
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

TEST(Check, KnowsItsCommit) {
  EXPECT_FALSE(commit().empty());
  if (commit() != "unknown") {
    EXPECT_EQ(commit().find_first_not_of("0123456789abcdef"), std::string_view::npos) << commit();
  }
}

TEST(CheckDeathTest, NeedsNoDetail) {
  EXPECT_DEATH(SCANT_CHECK(false), "check failed at .*base_test.cc:[0-9]+: false \\[rank=");
  SCANT_CHECK(true);
}

TEST(Error, RendersCodeMessageAndErrno) {
  const Error error{ErrorCode::peer_lost, 104, 2, "rank 2 is lost"};
  EXPECT_EQ(error.to_string(), "peer_lost: rank 2 is lost: Connection reset by peer");
}

}  // namespace
}  // namespace scant::base
