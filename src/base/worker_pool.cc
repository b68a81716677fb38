#include "base/worker_pool.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "base/check.h"

namespace scant::base {

WorkerPool::~WorkerPool() {
  loops_.close();
  for (const auto& thread : threads_) thread->join();
}

namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

void WorkerPool::Spinner::wait(const std::atomic<uint64_t>& count, uint64_t wanted) {
  if (spin == Duration{}) return;
  if (rest > 0) {
    --rest;
    return;
  }
  constexpr int kPauses = 16;  // between two looks at the clock
  const Time end = std::chrono::steady_clock::now() + spin;
  do {
    for (int i = 0; i < kPauses; ++i) {
      if (count.load(std::memory_order_relaxed) >= wanted) return;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  rest = kRestLoops;
}

Result<void> WorkerPool::start(size_t workers, Duration spin) {
  SCANT_CHECK(threads_.empty() && workers >= 1);
  if (workers > kWorkersMax) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "a pool has at most " + std::to_string(kWorkersMax) + " workers, not " +
                            std::to_string(workers)};
  }
  spinner_.spin = spin;
  for (size_t worker = 1; worker < workers; ++worker) {
    auto thread = std::make_unique<Thread>();
    auto started = thread->start("scant-worker", [this, spin] {
      Spinner spinner{.spin = spin};
      while (const auto loop = loops_.pop()) {
        run(*loop);
        finished_.push(true);
        finished_pushed_.fetch_add(1, std::memory_order_relaxed);
        spinner.wait(loop_pushed_, loop->number + 1);
      }
    });
    if (!started) return started;
    threads_.push_back(std::move(thread));
  }
  used_ = workers;
  return {};
}

void WorkerPool::use(size_t workers) {
  SCANT_CHECK(workers >= 1 && workers <= threads_.size() + 1);
  used_ = workers;
}

void WorkerPool::run(const Loop& loop) {
  for (size_t index; (index = loop.next->fetch_add(1, std::memory_order_relaxed)) < loop.count;) {
    (*loop.body)(index, loop.worker);
  }
}

void WorkerPool::for_each(size_t count, const Body& body) {
  std::atomic<size_t> next{0};
  const size_t helpers = std::min(used_ - 1, count > 0 ? count - 1 : 0);
  if (helpers > 0) ++loop_number_;
  Loop loop{.body = &body, .next = &next, .count = count, .worker = 0, .number = loop_number_};
  for (size_t i = 0; i < helpers; ++i) {
    loop.worker = i + 1;
    SCANT_CHECK(loops_.push(loop));
  }
  loop.worker = 0;
  loop_pushed_.store(loop_number_, std::memory_order_relaxed);
  run(loop);
  finished_wanted_ += helpers;
  if (helpers > 0) spinner_.wait(finished_pushed_, finished_wanted_);
  for (size_t i = 0; i < helpers; ++i) SCANT_CHECK(finished_.pop().has_value());
}

}  // namespace scant::base
