#include "collective/work.h"

#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <new>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

#include "base/check.h"
#include "base/fault.h"

namespace scant {
namespace {

std::atomic<uint32_t> fork_generation{0};  // written in a child that has one thread

const int fork_handler_registered = pthread_atfork(
    nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });

// Returns when woken, when the word is not `expected`, after `timeout`, or by accident.
void futex_wait(const std::atomic<uint32_t>& word, uint32_t expected, Duration timeout) {
  timespec limit{};
  limit.tv_sec = static_cast<time_t>(timeout.count() / 1'000'000'000);
  limit.tv_nsec = static_cast<long>(timeout.count() % 1'000'000'000);
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, &limit, nullptr, 0);
}

void futex_wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

Error nobody_waits_for() { return base::invalid("wait: this Work names no operation"); }

}  // namespace

uint32_t Work::State::current_fork_generation() {
  static_cast<void>(fork_handler_registered);
  return fork_generation.load(std::memory_order_relaxed);
}

void Work::State::drop_reference() {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
}

void Work::State::finish(const Result<void>& outcome, Rank source) {
  try {
    outcome_ = outcome;
  } catch (const std::bad_alloc&) {  // its text: who waits learns that it failed
    outcome_ = Error{.code = ErrorCode::resource, .message = {}};
  }
  source_ = source;
  const uint32_t before = flags_.fetch_or(kDone, std::memory_order_acq_rel);
  SCANT_CHECK((before & kDone) == 0, "an operation ended twice");
  if ((before & kWaiters) != 0) futex_wake_all(flags_);
  if ((before & kCallback) != 0) callback_(context_);
}

bool Work::State::done() const { return (flags_.load(std::memory_order_acquire) & kDone) != 0; }

Rank Work::State::source() const { return done() ? source_ : kNoRank; }

Result<void> Work::State::wait(Duration timeout) {
  const Duration limit = timeout > Duration::zero() ? timeout : limit_;
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    uint32_t flags = flags_.load(std::memory_order_acquire);
    if ((flags & kDone) != 0) return outcome_;
    if (fork_generation_ != current_fork_generation()) {
      return Error{ErrorCode::closed, 0, kNoRank,
                   "wait: the operation belongs to the parent process"};
    }
    const Duration spent = std::chrono::steady_clock::now() - start;
    if (spent >= limit) {
      const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(limit).count();
      return Error{ErrorCode::timeout, 0, kNoRank,
                   "wait: not done after " + std::to_string(ms) + " ms; the operation goes on"};
    }
    if ((flags & kWaiters) == 0) {
      if (!flags_.compare_exchange_weak(flags, flags | kWaiters, std::memory_order_acq_rel))
        continue;
      flags |= kWaiters;
    }
    futex_wait(flags_, flags, limit - spent);
  }
}

void Work::State::on_done(void (*callback)(void* context), void* context) {
  callback_ = callback;
  context_ = context;
  const uint32_t before = flags_.fetch_or(kCallback, std::memory_order_acq_rel);
  SCANT_CHECK((before & kCallback) == 0, "a Work takes one callback");
  if ((before & kDone) != 0) callback(context);
}

Work::Work(State* state) : state_(state) {}

Work::Work(const Work& other) : state_(other.state_) {
  if (state_ != nullptr) state_->add_reference();
}

Work::Work(Work&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}

Work& Work::operator=(Work other) noexcept {
  std::swap(state_, other.state_);
  return *this;
}

Work::~Work() {
  if (state_ != nullptr) state_->drop_reference();
}

bool Work::done() const { return state_ != nullptr && state_->done(); }

Result<void> Work::wait(Duration timeout) const {
  if (state_ == nullptr) return nobody_waits_for();
  return state_->wait(timeout);
}

Duration Work::limit() const { return state_ == nullptr ? Duration::zero() : state_->limit(); }

void Work::on_done(void (*callback)(void* context), void* context) const {
  SCANT_CHECK(state_ != nullptr, "on_done: this Work names no operation");
  state_->on_done(callback, context);
}

Rank Work::source() const { return state_ == nullptr ? kNoRank : state_->source(); }

}  // namespace scant
