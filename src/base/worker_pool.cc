#include "base/worker_pool.h"

#include <algorithm>
#include <string>

#include "base/check.h"

namespace scant::base {

WorkerPool::~WorkerPool() {
  loops_.close();
  for (const auto& thread : threads_) thread->join();
}

Result<void> WorkerPool::start(size_t workers) {
  SCANT_CHECK(threads_.empty() && workers >= 1);
  if (workers > kWorkersMax) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "a pool has at most " + std::to_string(kWorkersMax) + " workers, not " +
                            std::to_string(workers)};
  }
  for (size_t worker = 1; worker < workers; ++worker) {
    auto thread = std::make_unique<Thread>();
    auto started = thread->start("scant-worker", [this] {
      while (const auto loop = loops_.pop()) {
        run(*loop);
        finished_.push(true);
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
  for (size_t i = 0; i < helpers; ++i)
    SCANT_CHECK(loops_.push({.body = &body, .next = &next, .count = count, .worker = i + 1}));
  run({.body = &body, .next = &next, .count = count});
  for (size_t i = 0; i < helpers; ++i) SCANT_CHECK(finished_.pop().has_value());
}

}  // namespace scant::base
