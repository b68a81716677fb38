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

  // Once, before the first loop: so many workers, the caller being one of them. Loops that follow
  // each other within `spin` find workers that look for them: waking one takes as long as a short
  // loop. Who has looked in vain sleeps at once the next kRestLoops times, so on a machine whose
  // cores are busy this costs a loop at most spin / kRestLoops on average.
  static constexpr unsigned kRestLoops = 64;
  Result<void> start(size_t workers, Duration spin = {});
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
    uint64_t number = 0;
  };
  static void run(const Loop& loop);

  // One thread's waiting: for `count` to reach `wanted`, for a while.
  struct Spinner {
    Duration spin{};
    unsigned rest = 0;  // so many times without looking
    void wait(const std::atomic<uint64_t>& count, uint64_t wanted);
  };

  std::vector<std::unique_ptr<Thread>> threads_;
  size_t used_ = 1;
  BoundedQueue<Loop> loops_{kWorkersMax};
  BoundedQueue<bool> finished_{kWorkersMax};
  // The last loop in the queue, and how often a worker has finished one. Relaxed, hints alone: the
  // queues order everything.
  std::atomic<uint64_t> loop_pushed_{0};
  std::atomic<uint64_t> finished_pushed_{0};
  uint64_t loop_number_ = 0;
  uint64_t finished_wanted_ = 0;
  Spinner spinner_;  // of the caller
};

}  // namespace scant::base
