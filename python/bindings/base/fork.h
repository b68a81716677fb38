// After fork() the child has copies of handles whose threads exist in the parent only. Handles
// remember the generation they were made in; the child must neither use nor destroy those of the
// parent.
#pragma once

#include <cstdint>

namespace scant::python {

// 0 in the first process, one more in each forked child.
[[nodiscard]] uint32_t fork_generation();
// Once, when the module is loaded.
void watch_forks();

}  // namespace scant::python
