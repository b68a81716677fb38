// What encoders and decoders of many tensors share: worker threads and scratch memory. One owner
// thread; one call at a time.
#pragma once

#include <array>
#include <utility>

#include "base/buffer.h"
#include "base/check.h"
#include "base/worker_pool.h"
#include "codec/point.h"

namespace scant::codec {

// Bytes that grow without being cleared or copied first.
class RecordBuffer {
 public:
  // Room for `size` bytes, content undefined. After an error it is as it was.
  Result<MutableBytes> resize(size_t size) {
    if (size > memory_.size()) {
      Result<base::Buffer> larger = base::Buffer::allocate(size + size / 8);
      if (!larger) return larger.error();
      memory_ = std::move(larger).value();
    }
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
    static constexpr size_t kBytes = (3 * size_t{kSparseBlockElements} + 64) * sizeof(float);
    base::Buffer memory;
    [[nodiscard]] float* work() { return reinterpret_cast<float*>(memory.data()); }
    [[nodiscard]] float* values() { return work() + kSparseBlockElements + kLineFloats; }
    [[nodiscard]] uint16_t* positions() {
      return reinterpret_cast<uint16_t*>(values() + kSparseBlockElements + 32);
    }
  };

  Result<void> start(size_t workers) { return pool_.start(workers); }
  [[nodiscard]] base::WorkerPool& pool() { return pool_; }
  // What a call may need, before it changes anything: scratch memory of every worker, and a record
  // of `record_bytes` that room() can fall back on. Pages that stay untouched cost nothing.
  Result<void> prepare(size_t record_bytes = 0) {
    for (size_t worker = 0; worker < pool_.workers(); ++worker) {
      base::Buffer& memory = scratch_[worker].memory;
      if (memory.size() > 0) continue;
      Result<base::Buffer> made = base::Buffer::allocate(Scratch::kBytes);
      if (!made) return made.error();
      memory = std::move(made).value();
    }
    if (spare_.capacity() >= record_bytes) return {};
    const Result<MutableBytes> spare = spare_.resize(record_bytes);
    return spare ? Result<void>() : spare.error();
  }
  // After prepare().
  [[nodiscard]] Scratch& scratch(size_t worker) { return scratch_[worker]; }
  // Room for `size` bytes, at most what was prepared: where the record cannot grow, it gets the
  // spare one's memory.
  MutableBytes room(RecordBuffer& record, size_t size) {
    if (const Result<MutableBytes> grown = record.resize(size)) return grown.value();
    std::swap(record, spare_);
    const Result<MutableBytes> prepared = record.resize(size);
    SCANT_CHECK(prepared.ok());
    return prepared.value();
  }
  // At least `elements` floats that no worker uses; the owner thread's.
  [[nodiscard]] Result<float*> whole(size_t elements) {
    if (whole_.size() < elements * sizeof(float)) {
      Result<base::Buffer> larger = base::Buffer::allocate(elements * sizeof(float));
      if (!larger) return larger.error();
      whole_ = std::move(larger).value();
    }
    return reinterpret_cast<float*>(whole_.data());
  }

 private:
  base::WorkerPool pool_;
  std::array<Scratch, base::WorkerPool::kWorkersMax> scratch_;
  RecordBuffer spare_;
  base::Buffer whole_;
};

}  // namespace scant::codec
