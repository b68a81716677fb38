// An encoder in Python's hands, used by one thread at a time, and arrays as raw addresses. Owner:
// any thread that holds the GIL; work is done without it.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <utility>

#include "bindings/base/fork.h"
#include "bindings/base/gil.h"
#include "codec/encoder.h"

namespace scant::python {

[[nodiscard]] inline std::span<const float> input(uintptr_t address, size_t elements) {
  return {reinterpret_cast<const float*>(address), elements};
}
[[nodiscard]] inline std::span<float> output(uintptr_t address, size_t elements) {
  return {reinterpret_cast<float*>(address), elements};
}

// Raises where `generation` is not this process's: a fork may have happened in the middle of a
// step.
void check_process(uint32_t generation, const char* what);

class PythonEncoder {
 public:
  explicit PythonEncoder(codec::Encoder encoder) : encoder_(std::move(encoder)) {}

  // Without the GIL.
  template <typename F>
  auto locked(const F& body) {
    check();
    return without_gil([&] {
      const auto held = lock();
      return body(encoder_);
    });
  }
  template <typename F>
  static auto both_locked(PythonEncoder& a, PythonEncoder& b, const F& body) {
    a.check();
    b.check();
    return without_gil([&] {
      const std::scoped_lock held(a.mutex_, b.mutex_);
      return body(a.encoder_, b.encoder_);
    });
  }

  // For who needs several: check() with the GIL; lock() without it, in the order of the tensor's
  // elements; get() while it is held.
  void check() const { check_process(generation_, "encoder"); }
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(mutex_); }
  [[nodiscard]] codec::Encoder& get() { return encoder_; }

 private:
  std::mutex mutex_;
  codec::Encoder encoder_;
  uint32_t generation_ = fork_generation();
};

}  // namespace scant::python
