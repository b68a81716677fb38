// A program with replaced_new.cc among its sources asks before each allocation, of operator new or
// of base::Buffer, whether that one fails. It defines allocation_fails().
#pragma once

#include <cstddef>

namespace scant::base::testing {

[[nodiscard]] bool allocation_fails();
// The gate of base::Buffer that asks the same.
[[nodiscard]] bool buffer_may_allocate(size_t bytes);

}  // namespace scant::base::testing
