// Workspaces of codecs, lent for one call at a time: as many exist as calls have ever run at once
// with that number of threads, however many encoders there are. Guarded by the GIL.
#pragma once

#include <memory>

#include "codec/workspace.h"

namespace scant::python {

class WorkspaceLease {
 public:
  // Raises what starting the threads returns. With the GIL, as is the end of the lease.
  explicit WorkspaceLease(size_t threads);
  WorkspaceLease(const WorkspaceLease&) = delete;
  WorkspaceLease& operator=(const WorkspaceLease&) = delete;
  ~WorkspaceLease();

  [[nodiscard]] codec::Workspace& get() const { return *workspace_; }

 private:
  std::unique_ptr<codec::Workspace> workspace_;
};

}  // namespace scant::python
