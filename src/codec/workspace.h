// What encoders and decoders of many tensors share: worker threads and scratch memory. One owner
// thread; one call at a time.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "base/worker_pool.h"
#include "codec/point.h"

namespace scant::codec {

// Bytes that grow without being cleared or copied first.
class RecordBuffer {
 public:
  // Room for `size` bytes, content undefined.
  MutableBytes resize(size_t size) {
    if (size > memory_.size()) memory_ = base::Buffer(size + size / 8);
    size_ = size;
    return memory_.view().first(size);
  }
  [[nodiscard]] size_t capacity() const { return memory_.size(); }
  [[nodiscard]] Bytes view() const { return memory_.view().first(size_); }
  [[nodiscard]] MutableBytes view() { return memory_.view().first(size_); }

 private:
  base::Buffer memory_;
  size_t size_ = 0;
};

class Workspace {
 public:
  // Of one worker, for one block. Work begins with a cache line and has room for another at its
  // end; lists hold what a kernel may write past their end.
  struct Scratch {
    static constexpr size_t kLineFloats = 64 / sizeof(float);
    base::Buffer memory{(3 * size_t{kSparseBlockElements} + 64) * sizeof(float)};
    [[nodiscard]] float* work() { return reinterpret_cast<float*>(memory.data()); }
    [[nodiscard]] float* values() { return work() + kSparseBlockElements + kLineFloats; }
    [[nodiscard]] uint16_t* positions() {
      return reinterpret_cast<uint16_t*>(values() + kSparseBlockElements + 32);
    }
  };

  Result<void> start(size_t workers) { return pool_.start(workers); }
  [[nodiscard]] base::WorkerPool& pool() { return pool_; }
  // Made when first asked for, from the owner thread or from the worker itself.
  [[nodiscard]] Scratch& scratch(size_t worker) {
    auto& slot = scratch_[worker];
    if (!slot) slot = std::make_unique<Scratch>();
    return *slot;
  }
  // At least `elements` floats that no worker uses; the owner thread's.
  [[nodiscard]] float* whole(size_t elements) {
    if (whole_.size() < elements * sizeof(float)) whole_ = base::Buffer(elements * sizeof(float));
    return reinterpret_cast<float*>(whole_.data());
  }

 private:
  base::WorkerPool pool_;
  std::array<std::unique_ptr<Scratch>, base::WorkerPool::kWorkersMax> scratch_;
  base::Buffer whole_;
};

}  // namespace scant::codec
