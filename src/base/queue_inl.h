// Bodies of BoundedQueue. A condition variable waits on the annotated mutex itself, so the analysis
// sees each access.
#pragma once

#include <chrono>
#include <utility>

namespace scant::base {

template <typename T>
bool BoundedQueue<T>::push(T item) {
  MutexLock lock(mutex_);
  while (!closed_ && items_.size() >= capacity_) room_.wait(mutex_);
  if (closed_) return false;
  items_.push_back(std::move(item));
  items_ready_.notify_one();
  return true;
}

template <typename T>
bool BoundedQueue<T>::try_push(T item) {
  MutexLock lock(mutex_);
  if (closed_ || items_.size() >= capacity_) return false;
  items_.push_back(std::move(item));
  items_ready_.notify_one();
  return true;
}

template <typename T>
std::optional<T> BoundedQueue<T>::try_pop() {
  MutexLock lock(mutex_);
  if (items_.empty()) return std::nullopt;
  T item = std::move(items_.front());
  items_.pop_front();
  room_.notify_one();
  return item;
}

template <typename T>
std::deque<T> BoundedQueue<T>::drain() {
  std::deque<T> taken;
  MutexLock lock(mutex_);
  taken.swap(items_);
  room_.notify_all();
  return taken;
}

template <typename T>
std::optional<T> BoundedQueue<T>::pop(Duration timeout) {
  const Time now = std::chrono::steady_clock::now();
  const Time deadline = timeout >= kNever - now ? kNever : now + timeout;
  MutexLock lock(mutex_);
  while (items_.empty() && !closed_) {
    if (deadline == kNever) {
      items_ready_.wait(mutex_);
    } else if (items_ready_.wait_until(mutex_, deadline) == std::cv_status::timeout) {
      break;
    }
  }
  if (items_.empty()) return std::nullopt;
  T item = std::move(items_.front());
  items_.pop_front();
  room_.notify_one();
  return item;
}

template <typename T>
void BoundedQueue<T>::close() {
  MutexLock lock(mutex_);
  closed_ = true;
  room_.notify_all();
  items_ready_.notify_all();
}

template <typename T>
size_t BoundedQueue<T>::size() const {
  MutexLock lock(mutex_);
  return items_.size();
}

}  // namespace scant::base
