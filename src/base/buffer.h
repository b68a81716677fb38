// Owned bytes: 64-byte aligned, huge pages from 2 MiB on, move-only. Views are scant::Bytes /
// MutableBytes. Getting memory may fail, and whoever asks says what then. Pages cost nothing before
// they are touched.
#pragma once

#include <cstddef>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::base {

class Buffer {
 public:
  Buffer() = default;
  // Uninitialised. ErrorCode::resource when memory runs out.
  [[nodiscard]] static Result<Buffer> allocate(size_t size);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();

  [[nodiscard]] std::byte* data() { return data_; }
  [[nodiscard]] const std::byte* data() const { return data_; }
  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] MutableBytes view() { return {data_, size_}; }
  [[nodiscard]] Bytes view() const { return {data_, size_}; }

 private:
  Buffer(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Asked before each allocation; where it answers false, the allocation fails. Null: none is asked.
// For budgets, and for tests of what failures do. Called from every thread that allocates.
using AllocationGate = bool (*)(size_t size);
void set_allocation_gate(AllocationGate gate);

// Recycles buffers of one size, last in first out so that they stay warm in cache. One owner
// thread.
class BufferPool {
 public:
  BufferPool(size_t buffer_bytes, size_t keep_max)
      : buffer_bytes_(buffer_bytes), keep_max_(keep_max) {}
  [[nodiscard]] Result<Buffer> take();  // size() == buffer_bytes()
  void give(Buffer buffer);
  [[nodiscard]] size_t buffer_bytes() const { return buffer_bytes_; }

 private:
  size_t buffer_bytes_;
  size_t keep_max_;
  std::vector<Buffer> free_;
};

}  // namespace scant::base
