// The shared state behind a Work handle: an intrusive count, one flag word that a waiter sleeps on,
// and the outcome. Any thread may wait or register; the I/O thread finishes it once.
#pragma once

#include <atomic>
#include <cstdint>

#include "scant/collective/communicator.h"

namespace scant {

class Work::State {
 public:
  // Starts with one reference, for the handle; the I/O thread takes another while the operation
  // runs.
  explicit State(Duration limit) : limit_(limit) {}
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void add_reference() { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop_reference();

  // Sets the outcome, wakes waiters, runs the callback. Once.
  void finish(const Result<void>& outcome, Rank source);
  [[nodiscard]] bool done() const;
  Result<void> wait(Duration timeout);
  void on_done(void (*callback)(void* context), void* context);
  [[nodiscard]] Rank source() const;
  [[nodiscard]] Duration limit() const { return limit_; }

  // Of the I/O thread, from when it takes the operation until it finishes it.
  State* next = nullptr;
  State* previous = nullptr;

 private:
  ~State() = default;

  static constexpr uint32_t kDone = 1;
  static constexpr uint32_t kCallback = 2;
  static constexpr uint32_t kWaiters = 4;

  std::atomic<uint32_t> references_{1};
  // kDone is released after outcome_ and source_ are written and acquired before they are read;
  // kCallback is released after callback_ and context_ are.
  std::atomic<uint32_t> flags_{0};
  const uint32_t fork_generation_ = current_fork_generation();
  const Duration limit_;  // by then the engine has certainly reported
  Result<void> outcome_;
  Rank source_ = kNoRank;
  void (*callback_)(void* context) = nullptr;
  void* context_ = nullptr;

 public:
  // Grows by one in each forked child: its copies of these objects have no I/O thread behind them.
  [[nodiscard]] static uint32_t current_fork_generation();
};

}  // namespace scant
