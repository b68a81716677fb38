// The production clock.
#include "base/clock.h"

namespace scant::base {

Time MonotonicClock::now() const { return std::chrono::steady_clock::now(); }

}  // namespace scant::base
