// Waits for descriptors, timers and other threads, and calls the handlers of what is ready. For
// transports and servers: it knows nothing of what the descriptors are. Level-triggered epoll.
// Owner: one thread; only wake() may be called from others. Handlers may watch, change, unwatch,
// and start and stop timers, also their own; what was unwatched is not called again, not even when
// its descriptor's number has gone to another.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/descriptor.h"
#include "base/event_queue.h"
#include "scant/base/result.h"

namespace scant::base {

struct Interest {
  bool readable = false;
  bool writable = false;
  friend bool operator==(const Interest&, const Interest&) = default;
};

struct Readiness {
  bool readable = false;
  bool writable = false;
  bool failed = false;  // an error or a hang-up, which the next read or write tells
};

class EventLoop {
 public:
  using Handler = std::function<void(Readiness)>;
  using Watch = EventId;  // names a descriptor that is watched
  using Timer = EventId;

  // `clock` gives the time of deadlines and timers, and outlives the loop. ErrorCode::resource when
  // the system has no more descriptors.
  [[nodiscard]] static Result<std::unique_ptr<EventLoop>> create(const Clock& clock);

  // `fd` is open, is watched once at a time, and is unwatched before it is closed.
  [[nodiscard]] Result<Watch> watch(int fd, Interest interest, Handler handler);
  void change(Watch watch, Interest interest);
  void unwatch(Watch watch);

  // Calls `action` once, in the first turn that ends at `at` or later; the next turn at the
  // earliest when another timer's action starts it.
  Timer start_timer(Time at, std::function<void()> action);
  // False: it has been called.
  bool stop_timer(Timer timer) { return timers_.cancel(timer); }

  // What one turn did: nothing when the deadline came first.
  struct Turn {
    size_t handlers = 0;  // of descriptors
    size_t timers = 0;
    bool woken = false;
    [[nodiscard]] bool idle() const { return handlers + timers == 0 && !woken; }
  };
  // Waits until something is ready, a timer is due or wake() was called, at most until `deadline`
  // and a minute, less after a signal; then calls the handlers of what is ready. A deadline in the
  // past only looks.
  Turn turn(Time deadline);
  // Thread-safe: makes a turn that waits, or the next one, return at once.
  void wake();

  [[nodiscard]] Time now() const { return clock_.now(); }

 private:
  explicit EventLoop(const Clock& clock) : clock_(clock) {}
  struct Watched {
    int fd = -1;  // -1: free
    uint32_t generation = 0;
    Interest interest;
    Handler handler;
  };
  [[nodiscard]] Watched& at(Watch watch);
  [[nodiscard]] int timeout_ms(Time deadline) const;
  void call(Watch watch, uint32_t events);

  const Clock& clock_;
  Descriptor epoll_;
  Descriptor event_;
  std::vector<Watched> watched_;
  std::vector<uint32_t> free_;
  EventQueue<std::function<void()>> timers_;
  Time not_before_ = Time::min();  // of timers that timers start
  bool turning_ = false;
  std::atomic<bool> wake_pending_{false};  // set by wake(), cleared by turn(); pairs with sleeping_
  std::atomic<bool> sleeping_{false};      // set by turn() before it looks at wake_pending_
};

}  // namespace scant::base
