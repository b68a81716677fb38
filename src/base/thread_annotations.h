// Clang's thread-safety annotations, and the one mutex type that carries them. Other compilers see
// plain code.
#pragma once

#include <mutex>

#if defined(__clang__)
#define SCANT_ANNOTATE(x) __attribute__((x))
#else
#define SCANT_ANNOTATE(x)
#endif
#define SCANT_CAPABILITY(x) SCANT_ANNOTATE(capability(x))
#define SCANT_SCOPED_CAPABILITY SCANT_ANNOTATE(scoped_lockable)
#define SCANT_GUARDED_BY(x) SCANT_ANNOTATE(guarded_by(x))
#define SCANT_ACQUIRE(...) SCANT_ANNOTATE(acquire_capability(__VA_ARGS__))
#define SCANT_RELEASE(...) SCANT_ANNOTATE(release_capability(__VA_ARGS__))
#define SCANT_REQUIRES(...) SCANT_ANNOTATE(requires_capability(__VA_ARGS__))

namespace scant::base {

class SCANT_CAPABILITY("mutex") Mutex {
 public:
  void lock() SCANT_ACQUIRE() { mutex_.lock(); }
  void unlock() SCANT_RELEASE() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class SCANT_SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) SCANT_ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() SCANT_RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace scant::base
