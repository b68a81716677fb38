// One thread that runs Python callables in order: those posted, and those that wait for operations
// to finish. The I/O thread of a communicator only links a finished task into a list; it never
// touches Python and never blocks here. Owner: post and stop belong to threads that hold the GIL;
// the body takes the GIL for each batch. Limits: one task per operation in flight; tasks whose
// operations end after stop() are never run. An executor is never destroyed, because an operation
// may end at any moment; after a fork the child gets executors of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <nanobind/nanobind.h>
#include <string>
#include <vector>

#include "base/thread.h"
#include "bindings/sync/work.h"

namespace scant::python {

class Executor {
 public:
  // The executor of this name in this process.
  static Executor& named(const std::string& name);

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // Runs `callable()` on the executor's thread; an exception goes to sys.unraisablehook.
  void post(nb::callable callable);
  // The same once all these operations are done, however they end. Callables of one chain run in
  // the order in which they were posted: what they submit in turn is then submitted in one order on
  // all ranks. Chain 0 has no order.
  void post_when_done(const std::vector<const PythonWork*>& works, uint64_t chain,
                      nb::callable callable);
  // True on a thread that runs a callable of post_when_done or is within run_callback. Operations
  // that such a callable submits get sequence numbers of their own, because the program's threads
  // go on submitting meanwhile.
  [[nodiscard]] static bool in_callback();
  // `callable(future)` on this thread.
  static nb::object run_callback(const nb::callable& callable, nb::handle future);
  // Runs what is ready, then joins. Idempotent. Not from the executor's own thread.
  void stop();

 private:
  explicit Executor(std::string name) : name_(std::move(name)) {}
  ~Executor() = default;

  struct Task {
    Executor* executor;
    PyObject* callable;  // a reference; null: the end of the thread
    uint64_t chain;
    bool callback;  // from post_when_done
    std::atomic<size_t>
        waiting;         // operations not done yet; whoever takes it to zero pushes the task
    bool ready = false;  // all operations done; used by the executor's thread only
    Task* next = nullptr;
  };

  static void on_work_done(void* task);
  void start_once();
  void push(Task* task);
  void run();
  void run_ready(Task* task);
  static void run_task(Task* task);

  std::string name_;
  std::atomic<Task*> head_{nullptr};  // a stack, newest first; push releases, take-all acquires
  base::Thread thread_;
  bool stopped_ = false;  // guarded by the GIL
  std::map<uint64_t, std::deque<Task*>>
      chains_;  // guarded by the GIL: posted and not yet run, oldest first
};

void bind_executor(nb::module_& module);

}  // namespace scant::python
