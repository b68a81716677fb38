#include "base/event_loop.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <utility>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr uint64_t kWakeKey = UINT64_MAX;
constexpr int kEventsMax = 64;         // of one turn; the others are ready in the next
constexpr int kTimeoutMsMax = 60'000;  // what epoll_wait() takes is bounded, and so is a turn

uint64_t key_of(EventId watch) { return uint64_t{watch.generation} << 32 | watch.slot; }

epoll_event event_of(Interest interest, EventId watch) {
  epoll_event event{};
  event.events = (interest.readable ? EPOLLIN : 0U) | (interest.writable ? EPOLLOUT : 0U);
  event.data.u64 = key_of(watch);
  return event;
}

}  // namespace

Result<std::unique_ptr<EventLoop>> EventLoop::create(const Clock& clock) {
  std::unique_ptr<EventLoop> made(new EventLoop(clock));
  made->epoll_ = Descriptor(epoll_create1(EPOLL_CLOEXEC));
  made->event_ = Descriptor(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWakeKey;
  if (!made->epoll_.open() || !made->event_.open() ||
      epoll_ctl(made->epoll_.get(), EPOLL_CTL_ADD, made->event_.get(), &event) != 0) {
    return Error{ErrorCode::resource, errno, kNoRank, "cannot create an event loop"};
  }
  return made;
}

EventLoop::Watched& EventLoop::at(Watch watch) {
  SCANT_CHECK(watch.slot < watched_.size() && watched_[watch.slot].fd >= 0 &&
                  watched_[watch.slot].generation == watch.generation,
              "this descriptor is not watched");
  return watched_[watch.slot];
}

Result<EventLoop::Watch> EventLoop::watch(int fd, Interest interest, Handler handler) {
  if (free_.empty()) {
    free_.push_back(static_cast<uint32_t>(watched_.size()));
    watched_.emplace_back();
  }
  Watched& entry = watched_[free_.back()];
  const Watch made{free_.back(), entry.generation};
  epoll_event event = event_of(interest, made);
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    const bool full = errno == ENOSPC || errno == ENOMEM;
    return Error{full ? ErrorCode::resource : ErrorCode::io, errno, kNoRank,
                 "cannot watch another descriptor"};
  }
  free_.pop_back();
  entry.fd = fd;
  entry.interest = interest;
  entry.handler = std::move(handler);
  return made;
}

void EventLoop::change(Watch watch, Interest interest) {
  Watched& entry = at(watch);
  if (entry.interest == interest) return;
  entry.interest = interest;
  epoll_event event = event_of(interest, watch);
  SCANT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, entry.fd, &event) == 0);
}

void EventLoop::unwatch(Watch watch) {
  Watched& entry = at(watch);
  SCANT_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, entry.fd, nullptr) == 0,
              "a descriptor was closed while it was watched");
  entry.fd = -1;
  ++entry.generation;
  entry.handler = nullptr;
  free_.push_back(watch.slot);
}

EventLoop::Timer EventLoop::start_timer(Time at, std::function<void()> action) {
  return timers_.schedule(std::max(at, not_before_), std::move(action));
}

int EventLoop::timeout_ms(Time deadline) const {
  const Time until = std::min(deadline, timers_.next_at());
  const Time at = now();
  if (until <= at) return 0;
  if (until - at >= std::chrono::milliseconds(kTimeoutMsMax)) return kTimeoutMsMax;
  return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(until - at).count());
}

EventLoop::Turn EventLoop::turn(Time deadline) {
  SCANT_CHECK(!turning_, "turn() from within a handler");
  turning_ = true;
  sleeping_.store(true, std::memory_order_seq_cst);
  Turn done{.woken = wake_pending_.exchange(false, std::memory_order_seq_cst)};
  std::array<epoll_event, kEventsMax> events;
  const int count =
      epoll_wait(epoll_.get(), events.data(), kEventsMax, done.woken ? 0 : timeout_ms(deadline));
  sleeping_.store(false, std::memory_order_relaxed);
  for (int i = 0; i < count; ++i) {
    const epoll_event& event = events[static_cast<size_t>(i)];
    if (event.data.u64 == kWakeKey) {
      uint64_t value = 0;
      static_cast<void>(::read(event_.get(), &value, sizeof(value)));
      wake_pending_.store(false, std::memory_order_seq_cst);
      done.woken = true;
      continue;
    }
    const Watch watch{static_cast<uint32_t>(event.data.u64),
                      static_cast<uint32_t>(event.data.u64 >> 32)};
    const Watched& entry = watched_[watch.slot];
    if (entry.fd < 0 || entry.generation != watch.generation) continue;  // unwatched just now
    ++done.handlers;
    call(watch, event.events);
  }
  const Time due = now();
  not_before_ = due + Duration(1);
  while (auto action = timers_.pop(due)) {
    ++done.timers;
    (*action)();
  }
  not_before_ = Time::min();
  turning_ = false;
  return done;
}

// The handler may unwatch itself, and watch others: it runs outside of the table.
void EventLoop::call(Watch watch, uint32_t events) {
  const Readiness ready{(events & EPOLLIN) != 0, (events & EPOLLOUT) != 0,
                        (events & (EPOLLERR | EPOLLHUP)) != 0};
  Handler running = std::move(watched_[watch.slot].handler);
  running(ready);
  Watched& entry = watched_[watch.slot];
  if (entry.fd >= 0 && entry.generation == watch.generation) entry.handler = std::move(running);
}

void EventLoop::wake() {
  if (wake_pending_.exchange(true, std::memory_order_seq_cst)) return;
  if (!sleeping_.load(std::memory_order_seq_cst)) return;
  const uint64_t one = 1;
  static_cast<void>(::write(event_.get(), &one, sizeof(one)));
}

}  // namespace scant::base
