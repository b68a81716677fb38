#include "bindings/sync/executor.h"

#include <map>
#include <memory>
#include <nanobind/stl/string.h>
#include <utility>

#include "bindings/base/errors.h"
#include "bindings/base/fork.h"

namespace scant::python {
namespace {

thread_local bool t_in_callback = false;

}  // namespace

bool Executor::in_callback() { return t_in_callback; }

nb::object Executor::run_callback(const nb::callable& callable, nb::handle future) {
  struct Restore {
    bool before = std::exchange(t_in_callback, true);
    ~Restore() { t_in_callback = before; }
  } const restore;
  return callable(future);
}

Executor& Executor::named(const std::string& name) {
  static auto* const executors =
      new std::map<std::pair<uint32_t, std::string>, Executor*>;  // guarded by the GIL
  Executor*& executor = (*executors)[{fork_generation(), name}];
  if (executor == nullptr) executor = new Executor(name);
  return *executor;
}

void Executor::start_once() {
  if (stopped_) raise({.code = ErrorCode::closed, .message = name_ + ": stopped"}, kNoRank);
  if (thread_.running()) return;
  const auto started = thread_.start(name_, [this] { run(); });
  if (!started) raise(started.error(), kNoRank);
}

void Executor::push(Task* task) {
  Task* head = head_.load(std::memory_order_relaxed);
  do {
    task->next = head;
  } while (!head_.compare_exchange_weak(head, task, std::memory_order_release,
                                        std::memory_order_relaxed));
  head_.notify_one();
}

void Executor::on_work_done(void* context) {
  auto* const task = static_cast<Task*>(context);
  if (task->waiting.fetch_sub(1, std::memory_order_acq_rel) == 1) task->executor->push(task);
}

void Executor::post(nb::callable callable) {
  start_once();
  push(new Task{.executor = this,
                .callable = callable.release().ptr(),
                .chain = 0,
                .callback = false,
                .waiting = 0});
}

void Executor::post_when_done(const std::vector<const PythonWork*>& works, uint64_t chain,
                              nb::callable callable) {
  start_once();
  // One more than the operations: nothing runs before all callbacks are set.
  auto* const task = new Task{.executor = this,
                              .callable = callable.release().ptr(),
                              .chain = chain,
                              .callback = true,
                              .waiting = works.size() + 1};
  if (chain != 0) chains_[chain].push_back(task);
  for (const PythonWork* work : works) work->on_done(&on_work_done, task);
  on_work_done(task);
}

void Executor::run_task(Task* task) {
  const std::unique_ptr<Task> owned(task);
  const nb::callable callable = nb::steal<nb::callable>(task->callable);
  t_in_callback = task->callback;
  try {
    callable();
  } catch (nb::python_error& exception) {
    exception.discard_as_unraisable(callable);
  }
  t_in_callback = false;
}

void Executor::run_ready(Task* task) {
  if (task->chain == 0) {
    run_task(task);
    return;
  }
  task->ready = true;
  // A callable may let go of the GIL and tasks may be added behind meanwhile, so the chain is
  // looked up each time.
  const uint64_t chain = task->chain;
  for (auto found = chains_.find(chain); found != chains_.end(); found = chains_.find(chain)) {
    std::deque<Task*>& queue = found->second;
    if (queue.empty()) {
      chains_.erase(found);
      return;
    }
    Task* const oldest = queue.front();
    if (!oldest->ready) return;
    queue.pop_front();
    run_task(oldest);
  }
}

void Executor::run() {
  for (bool open = true; open;) {
    head_.wait(nullptr, std::memory_order_acquire);
    Task* newest = head_.exchange(nullptr, std::memory_order_acquire);
    Task* oldest = nullptr;
    while (newest != nullptr) {
      Task* const next = newest->next;
      newest->next = oldest;
      oldest = newest;
      newest = next;
    }
    const nb::gil_scoped_acquire gil;
    while (oldest != nullptr) {
      Task* const task = oldest;
      oldest = task->next;
      if (task->callable == nullptr) {
        delete task;
        open = false;
      } else {
        run_ready(task);
      }
    }
  }
}

void Executor::stop() {
  stopped_ = true;
  if (!thread_.running()) return;
  push(
      new Task{.executor = this, .callable = nullptr, .chain = 0, .callback = false, .waiting = 0});
  const nb::gil_scoped_release release;
  thread_.join();
}

void bind_executor(nb::module_& module) {
  nb::class_<Executor>(module, "Executor")
      .def_static("named", &Executor::named, nb::arg("name"), nb::rv_policy::reference)
      .def("post", &Executor::post, nb::arg("callable"))
      .def(
          "post_when_done",
          [](Executor& self, const nb::list& works, uint64_t chain, nb::callable callable) {
            std::vector<const PythonWork*> pointers;
            for (nb::handle work : works) pointers.push_back(&nb::cast<const PythonWork&>(work));
            self.post_when_done(pointers, chain, std::move(callable));
          },
          nb::arg("works"), nb::arg("chain"), nb::arg("callable"))
      .def("stop", &Executor::stop)
      .def_static("in_callback", &Executor::in_callback)
      .def_static("run_callback", &Executor::run_callback, nb::arg("callable"), nb::arg("future"));
}

}  // namespace scant::python
