#include "work.h"

#include <algorithm>
#include <vector>

#include "errors.h"

namespace scant::python {
namespace {

struct Orphan {
  Work work;
  nb::object keep;
};

// Guarded by the GIL. Never destroyed: at interpreter exit the I/O thread may still write into these buffers.
std::vector<Orphan>& orphans() {
  static auto* const list = new std::vector<Orphan>;
  return *list;
}

// Long enough to cost nothing, short enough for Ctrl-C to feel immediate.
constexpr Duration kSignalSlice = std::chrono::milliseconds(50);

}  // namespace

PythonWork::~PythonWork() {
  if (keep_.is_valid() && work_.valid() && !work_.done()) {
    orphans().push_back({std::move(work_), std::move(keep_)});
  }
}

void PythonWork::wait(double timeout_s) {
  using Clock = std::chrono::steady_clock;
  const bool limited = timeout_s > 0;
  const auto limit = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(timeout_s));
  const auto deadline = Clock::now() + (limited ? limit : Duration::zero());
  while (!work_.done()) {
    Duration slice = kSignalSlice;
    if (limited) {
      slice = std::min<Duration>(slice, deadline - Clock::now());
      if (slice <= Duration::zero()) {
        raise({.code = ErrorCode::timeout, .message = "wait: the operation is still running"}, rank_);
      }
    }
    {
      const nb::gil_scoped_release release;
      (void)work_.wait(slice);  // the outcome is read below; a slice that ends is not one
    }
    if (!work_.done() && PyErr_CheckSignals() != 0) throw nb::python_error();
  }
  keep_ = nb::object();
  const auto outcome = work_.wait();
  if (!outcome) raise(outcome.error(), rank_);
}

nb::object PythonWork::error() const {
  if (!work_.done()) return nb::none();
  const auto outcome = work_.wait();
  if (outcome) return nb::none();
  return to_exception(outcome.error(), rank_);
}

void sweep_orphans() {
  auto& list = orphans();
  if (list.empty()) return;
  // Moved out first: releasing a buffer can run Python code that comes back here.
  std::vector<Orphan> finished;
  const auto split =
      std::partition(list.begin(), list.end(), [](const Orphan& orphan) { return !orphan.work.done(); });
  std::move(split, list.end(), std::back_inserter(finished));
  list.erase(split, list.end());
}

void bind_work(nb::module_& module) {
  nb::class_<PythonWork>(module, "Work")
      .def("done", &PythonWork::done)
      .def("wait", &PythonWork::wait, nb::arg("timeout_s") = 0.0)
      .def("error", &PythonWork::error)
      .def_prop_ro("source", &PythonWork::source);
  module.def("sweep_orphans", &sweep_orphans);
}

}  // namespace scant::python
