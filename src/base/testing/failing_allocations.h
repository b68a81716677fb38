// Makes allocations of base::Buffer fail while it lives: of those that begin from now on, in any
// thread, the one of a number, or that one and all that follow. One at a time in a process.
#pragma once

#include <atomic>

#include "base/buffer.h"

namespace scant::base::testing {

class FailingAllocations {
 public:
  enum class Which { one, from_there_on };

  explicit FailingAllocations(uint64_t number, Which which = Which::one) {
    asked_ = 0;
    number_ = number;
    all_ = which == Which::from_there_on;
    set_allocation_gate(&may);
  }
  ~FailingAllocations() { set_allocation_gate(nullptr); }
  FailingAllocations(const FailingAllocations&) = delete;
  FailingAllocations& operator=(const FailingAllocations&) = delete;

  // Whether any has failed.
  [[nodiscard]] static bool failed() { return asked_ > number_; }

 private:
  static bool may(size_t) {
    const uint64_t asked = asked_.fetch_add(1);
    return all_ ? asked < number_ : asked != number_;
  }

  static inline std::atomic<uint64_t> asked_{0};  // by every thread that allocates
  static inline std::atomic<uint64_t> number_{0};
  static inline std::atomic<bool> all_{false};
};

}  // namespace scant::base::testing
