// Who is alive, as arithmetic: times in, a decision out. No socket, clock or lock. One object per
// peer.
#pragma once

#include <algorithm>

#include "scant/base/types.h"

namespace scant::net {

class Liveness {
 public:
  // A peer that has not spoken yet may take `first_word` (it may still be connecting to others).
  Liveness(Duration timeout, Duration first_word, Time now)
      : timeout_(timeout), first_word_(first_word), heard_(now), sent_(now) {}

  void on_heard(Time now) {
    heard_ = now;
    spoke_ = true;
  }
  void on_sent(Time now) { sent_ = now; }

  [[nodiscard]] Duration interval() const {
    return timeout_ / 5;
  }  // four heartbeats may be late before a loss
  [[nodiscard]] bool heartbeat_due(Time now) const { return now - sent_ >= interval(); }
  // Lost from this moment on, unless something is heard.
  [[nodiscard]] Time lost_at() const {
    return heard_ + (spoke_ ? timeout_ : first_word_) + Duration(1);
  }
  [[nodiscard]] bool lost(Time now) const { return now >= lost_at(); }
  [[nodiscard]] Duration silent_for(Time now) const { return now - heard_; }
  [[nodiscard]] Time next_event() const { return std::min(lost_at(), sent_ + interval()); }
  // This process did not run for a while (stopped, suspended): what peers sent meanwhile is not yet
  // read, so everyone gets half a timeout from now.
  void forgive(Time now) { heard_ = std::max(heard_, now - timeout_ / 2); }

 private:
  Duration timeout_;
  Duration first_word_;
  Time heard_;
  Time sent_;
  bool spoke_ = false;
};

}  // namespace scant::net
