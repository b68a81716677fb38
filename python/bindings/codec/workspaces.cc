#include "bindings/codec/workspaces.h"

#include <map>
#include <utility>
#include <vector>

#include "bindings/base/errors.h"
#include "bindings/base/fork.h"

namespace scant::python {
namespace {

struct Shelf {
  uint32_t generation = fork_generation();
  std::map<size_t, std::vector<std::unique_ptr<codec::Workspace>>> free;  // by number of threads
};

// Never destroyed: threads are not joined at interpreter exit. Those of the process that forked
// this one do not exist here, so its shelf is left alone.
Shelf& shelf() {
  static Shelf* current = new Shelf;
  if (current->generation != fork_generation()) current = new Shelf;
  return *current;
}

}  // namespace

WorkspaceLease::WorkspaceLease(size_t threads) {
  auto& free = shelf().free[threads];
  if (!free.empty()) {
    workspace_ = std::move(free.back());
    free.pop_back();
    return;
  }
  auto made = std::make_unique<codec::Workspace>();
  const auto started = made->start(threads);
  if (!started) raise(started.error(), kNoRank);
  workspace_ = std::move(made);
}

WorkspaceLease::~WorkspaceLease() {
  const size_t threads = workspace_->pool().workers();
  shelf().free[threads].push_back(std::move(workspace_));
}

}  // namespace scant::python
