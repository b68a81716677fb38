// A few threads that share the iterations of one loop with the thread that runs it. One owner
// thread calls for_each(), one loop at a time; bodies must not depend on which worker runs them.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "base/queue.h"
#include "base/thread.h"
#include "scant/base/result.h"

namespace scant::base {

class WorkerPool {
 public:
  // Body of one iteration: its index, and the worker that runs it, 0 to workers() - 1.
  using Body = std::function<void(size_t index, size_t worker)>;

  static constexpr size_t kWorkersMax = 256;

  WorkerPool() = default;  // one worker: the caller
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Once, before the first loop: so many workers, the caller being one of them.
  Result<void> start(size_t workers);
  // Of these, so many share the loops from now on; the others sleep.
  void use(size_t workers);
  [[nodiscard]] size_t workers() const { return used_; }  // that share a loop

  // Runs body(0) to body(count - 1), each once, in any order; returns when all have returned.
  void for_each(size_t count, const Body& body);

 private:
  struct Loop {
    const Body* body = nullptr;
    std::atomic<size_t>* next = nullptr;  // iteration to take; relaxed, the queues order the rest
    size_t count = 0;
    size_t worker = 0;  // that the thread which takes it stands for
  };
  static void run(const Loop& loop);

  std::vector<std::unique_ptr<Thread>> threads_;
  size_t used_ = 1;
  BoundedQueue<Loop> loops_{kWorkersMax};
  BoundedQueue<bool> finished_{kWorkersMax};
};

}  // namespace scant::base
