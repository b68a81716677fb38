// Time as a dependency: production reads the monotonic clock, the simulator its virtual one.
#pragma once

#include "scant/base/types.h"

namespace scant::base {

class Clock {
 public:
  virtual ~Clock() = default;
  [[nodiscard]] virtual Time now() const = 0;
};

class MonotonicClock final : public Clock {
 public:
  [[nodiscard]] Time now() const override;
};

// Moves only when told to.
class ManualClock final : public Clock {
 public:
  [[nodiscard]] Time now() const override { return now_; }
  void set(Time now) { now_ = now; }
  void advance(Duration by) { now_ += by; }

 private:
  Time now_{};
};

}  // namespace scant::base
