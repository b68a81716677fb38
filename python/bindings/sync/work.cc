#include "bindings/sync/work.h"

#include <algorithm>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/gil.h"

namespace scant::python {
namespace {

struct Orphan {
  Work work;
  nb::object keep;
};

// Guarded by the GIL. Never destroyed: at interpreter exit the I/O thread may still write into
// these buffers.
std::vector<Orphan>& orphans() {
  static auto* const list = new std::vector<Orphan>;
  return *list;
}

// Long enough to cost nothing, short enough for Ctrl-C to feel immediate.
constexpr Duration kSignalSlice = std::chrono::milliseconds(50);

}  // namespace

Watch::Node Watch::closed_{};

void Watch::add(Callback callback, void* context) {
  auto* const node = new Node{callback, context, nullptr};
  Node* head = head_.load(std::memory_order_acquire);
  do {
    if (head == &closed_) {
      delete node;
      callback(context);
      return;
    }
    node->next = head;
  } while (!head_.compare_exchange_weak(head, node, std::memory_order_acq_rel,
                                        std::memory_order_acquire));
}

void Watch::fire(void* watch) {
  auto* const self = static_cast<Watch*>(watch);
  Node* node = self->head_.exchange(&closed_, std::memory_order_acq_rel);
  while (node != nullptr) {
    Node* const next = node->next;
    node->callback(node->context);
    delete node;
    node = next;
  }
  self->release();
}

void Watch::release() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

PythonWork::~PythonWork() {
  if (watch_ != nullptr) watch_->release();
  if (keep_.is_valid() && work_.valid() && !work_.done()) {
    orphans().push_back({std::move(work_), std::move(keep_)});
  }
}

void PythonWork::on_done(Watch::Callback callback, void* context) const {
  if (watch_ == nullptr) {
    watch_ = new Watch;
    work_.on_done(&Watch::fire, watch_);
  }
  watch_->add(callback, context);
}

void PythonWork::wait(double timeout_s) {
  auto deadline = limit_;
  if (timeout_s > 0) {
    const std::chrono::duration<double> timeout(timeout_s);
    deadline =
        std::min(deadline, Clock::now() + std::chrono::duration_cast<Clock::duration>(timeout));
  }
  while (!work_.done()) {
    const Duration slice = std::min<Duration>(kSignalSlice, deadline - Clock::now());
    if (slice <= Duration::zero()) {
      raise({.code = ErrorCode::timeout, .message = "wait: the operation is still running"}, rank_);
    }
    const auto outcome = without_gil([&] { return work_.wait(slice); });
    // A timeout is the end of the slice; another error says that waiting is of no use, as in a
    // forked child.
    if (!work_.done() && !outcome && outcome.error().code != ErrorCode::timeout)
      raise(outcome.error(), rank_);
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
  const auto split = std::partition(list.begin(), list.end(),
                                    [](const Orphan& orphan) { return !orphan.work.done(); });
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
