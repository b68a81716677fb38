// Python's handle on one operation. It holds the objects that own the operation's buffers until the
// operation is done, even when the program drops the handle earlier. Owner: any thread that holds
// the GIL.
#pragma once

#include <atomic>
#include <chrono>
#include <nanobind/nanobind.h>
#include <utility>

#include "scant/collective/communicator.h"

namespace scant::python {

namespace nb = nanobind;

// Who wants to know that an operation is done. scant::Work takes one callback; this hands it to any
// number. Owner: add() any thread; fire() the I/O thread, once. Two references: the PythonWork's
// and the callback's.
class Watch {
 public:
  using Callback = void (*)(void* context);

  // Calls back once when the operation is done, at once when it is done already.
  void add(Callback callback, void* context);
  static void fire(void* watch);
  void release();

 private:
  struct Node {
    Callback callback;
    void* context;
    Node* next;
  };
  static Node closed_;

  std::atomic<Node*> head_{nullptr};  // newest first; &closed_ after fire()
  std::atomic<int> references_{2};
};

class PythonWork {
 public:
  PythonWork(Work work, Rank rank, nb::object keep)
      : work_(std::move(work)),
        keep_(std::move(keep)),
        limit_(Clock::now() + work_.limit()),
        rank_(rank) {}
  PythonWork(PythonWork&& other) noexcept
      : work_(std::move(other.work_)),
        keep_(std::move(other.keep_)),
        watch_(std::exchange(other.watch_, nullptr)),
        limit_(other.limit_),
        rank_(other.rank_) {}
  PythonWork& operator=(PythonWork&&) = delete;
  PythonWork(const PythonWork&) = delete;
  PythonWork& operator=(const PythonWork&) = delete;
  ~PythonWork();

  [[nodiscard]] bool done() const { return work_.done(); }
  // Waits without the GIL and lets signal handlers run. timeout_s 0: until the operation's own
  // deadline. Raises the operation's error; TimeoutError when timeout_s passes first (the operation
  // goes on).
  void wait(double timeout_s);
  // The exception that wait() would raise, or None. Of an operation that is not done: None.
  [[nodiscard]] nb::object error() const;
  [[nodiscard]] Rank source() const { return work_.source(); }
  void on_done(Watch::Callback callback, void* context) const;

 private:
  using Clock = std::chrono::steady_clock;

  Work work_;
  nb::object keep_;
  mutable Watch* watch_ = nullptr;
  Clock::time_point limit_;
  Rank rank_;
};

// Drops the buffers of finished operations whose handles are gone. Called at each submission; cheap
// when there are none.
void sweep_orphans();

void bind_work(nb::module_& module);

}  // namespace scant::python
