// A bounded multi-producer queue: the one place where threads of Scant hand things over under a
// lock.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>

#include "base/thread_annotations.h"
#include "scant/base/types.h"

namespace scant::base {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity) : capacity_(capacity) {}

  // Waits for room; false when the queue is or becomes closed (the item is dropped).
  bool push(T item);
  // Never waits; false when full or closed.
  bool try_push(T item);
  std::optional<T> try_pop();
  // Takes everything at once, in order.
  std::deque<T> drain();
  // Waits; nothing when closed and empty, or when the timeout passes.
  std::optional<T> pop(Duration timeout = Duration::max());
  void close();
  [[nodiscard]] size_t size() const;

 private:
  const size_t capacity_;
  mutable Mutex mutex_;
  std::condition_variable_any room_;
  std::condition_variable_any items_ready_;
  std::deque<T> items_ SCANT_GUARDED_BY(mutex_);
  bool closed_ SCANT_GUARDED_BY(mutex_) = false;
};

}  // namespace scant::base

#include "base/queue_inl.h"
