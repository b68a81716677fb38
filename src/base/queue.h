// A bounded multi-producer queue: the one place where threads of Scant hand things over under a
// lock. Its memory is taken when it is made, so that handing over cannot fail for memory.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/thread_annotations.h"
#include "scant/base/types.h"

namespace scant::base {

template <typename T>
class BoundedQueue {
 public:
  explicit BoundedQueue(size_t capacity);
  ~BoundedQueue();
  BoundedQueue(const BoundedQueue&) = delete;
  BoundedQueue& operator=(const BoundedQueue&) = delete;

  // Waits for room; false when the queue is or becomes closed (the item is dropped).
  bool push(T item);
  // Never waits; false when full or closed.
  bool try_push(T item);
  std::optional<T> try_pop();
  // Takes everything at once, in order.
  std::vector<T> drain();
  // Waits; nothing when closed and empty, or when the timeout passes.
  std::optional<T> pop(Duration timeout = Duration::max());
  void close();
  [[nodiscard]] bool closed() const;
  [[nodiscard]] size_t size() const;

 private:
  void put(T item) SCANT_REQUIRES(mutex_);
  T take() SCANT_REQUIRES(mutex_);

  const size_t capacity_;
  T* const ring_;  // room for `capacity_`; items are made and destroyed in it
  mutable Mutex mutex_;
  std::condition_variable_any room_;
  std::condition_variable_any items_ready_;
  size_t first_ SCANT_GUARDED_BY(mutex_) = 0;
  size_t count_ SCANT_GUARDED_BY(mutex_) = 0;
  bool closed_ SCANT_GUARDED_BY(mutex_) = false;
};

}  // namespace scant::base

#include "base/queue_inl.h"
