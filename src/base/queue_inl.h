// Bodies of BoundedQueue. A condition variable waits on the annotated mutex itself, so the analysis
// sees each access.
#pragma once

#include <chrono>
#include <utility>

namespace scant::base {

template <typename T>
BoundedQueue<T>::BoundedQueue(size_t capacity)
    : capacity_(capacity), ring_(std::allocator<T>().allocate(capacity)) {}

template <typename T>
BoundedQueue<T>::~BoundedQueue() {
  {
    const MutexLock lock(mutex_);
    while (count_ > 0) static_cast<void>(take());
  }
  std::allocator<T>().deallocate(ring_, capacity_);
}

template <typename T>
void BoundedQueue<T>::put(T item) {
  std::construct_at(ring_ + (first_ + count_) % capacity_, std::move(item));
  ++count_;
}

template <typename T>
T BoundedQueue<T>::take() {
  T* const at = ring_ + first_;
  T item = std::move(*at);
  std::destroy_at(at);
  first_ = (first_ + 1) % capacity_;
  --count_;
  return item;
}

template <typename T>
bool BoundedQueue<T>::push(T item) {
  MutexLock lock(mutex_);
  while (!closed_ && count_ >= capacity_) room_.wait(mutex_);
  if (closed_) return false;
  put(std::move(item));
  items_ready_.notify_one();
  return true;
}

template <typename T>
bool BoundedQueue<T>::try_push(T item) {
  MutexLock lock(mutex_);
  if (closed_ || count_ >= capacity_) return false;
  put(std::move(item));
  items_ready_.notify_one();
  return true;
}

template <typename T>
std::optional<T> BoundedQueue<T>::try_pop() {
  MutexLock lock(mutex_);
  if (count_ == 0) return std::nullopt;
  room_.notify_one();
  return take();
}

template <typename T>
std::vector<T> BoundedQueue<T>::drain() {
  std::vector<T> taken;
  MutexLock lock(mutex_);
  taken.reserve(count_);
  while (count_ > 0) taken.push_back(take());
  room_.notify_all();
  return taken;
}

template <typename T>
std::optional<T> BoundedQueue<T>::pop(Duration timeout) {
  const Time now = std::chrono::steady_clock::now();
  const Time deadline = timeout >= kNever - now ? kNever : now + timeout;
  MutexLock lock(mutex_);
  while (count_ == 0 && !closed_) {
    if (deadline == kNever) {
      items_ready_.wait(mutex_);
    } else if (items_ready_.wait_until(mutex_, deadline) == std::cv_status::timeout) {
      break;
    }
  }
  if (count_ == 0) return std::nullopt;
  room_.notify_one();
  return take();
}

template <typename T>
void BoundedQueue<T>::close() {
  MutexLock lock(mutex_);
  closed_ = true;
  room_.notify_all();
  items_ready_.notify_all();
}

template <typename T>
bool BoundedQueue<T>::closed() const {
  MutexLock lock(mutex_);
  return closed_;
}

template <typename T>
size_t BoundedQueue<T>::size() const {
  MutexLock lock(mutex_);
  return count_;
}

}  // namespace scant::base
