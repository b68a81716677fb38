// Python's handle on one operation. It holds the objects that own the operation's buffers until the operation is done,
// even when the program drops the handle earlier.
// Owner: any thread that holds the GIL.
#pragma once

#include <nanobind/nanobind.h>

#include "scant/communicator.h"

namespace scant::python {

namespace nb = nanobind;

class PythonWork {
 public:
  PythonWork(Work work, Rank rank, nb::object keep)
      : work_(std::move(work)), keep_(std::move(keep)), rank_(rank) {}
  PythonWork(PythonWork&&) noexcept = default;
  PythonWork& operator=(PythonWork&&) = delete;
  PythonWork(const PythonWork&) = delete;
  PythonWork& operator=(const PythonWork&) = delete;
  ~PythonWork();

  [[nodiscard]] bool done() const { return work_.done(); }
  // Waits without the GIL and lets signal handlers run. timeout_s 0: until the operation's own deadline.
  // Raises the operation's error; TimeoutError when timeout_s passes first (the operation goes on).
  void wait(double timeout_s);
  // The exception that wait() would raise, or None. Of an operation that is not done: None.
  [[nodiscard]] nb::object error() const;
  [[nodiscard]] Rank source() const { return work_.source(); }
  [[nodiscard]] const Work& work() const { return work_; }

 private:
  Work work_;
  nb::object keep_;
  Rank rank_;
};

// Drops the buffers of finished operations whose handles are gone. Called at each submission; cheap when there are none.
void sweep_orphans();

void bind_work(nb::module_& module);

}  // namespace scant::python
