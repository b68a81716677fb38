// Owned bytes: 64-byte aligned, huge pages from 2 MiB on, move-only. Views are scant::Bytes /
// MutableBytes.
#pragma once

#include <cstddef>
#include <vector>

#include "scant/types.h"

namespace scant::base {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size);  // uninitialised; aborts when memory runs out
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
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Recycles buffers of one size, last in first out so that they stay warm in cache. One owner
// thread.
class BufferPool {
 public:
  BufferPool(size_t buffer_bytes, size_t keep_max)
      : buffer_bytes_(buffer_bytes), keep_max_(keep_max) {}
  [[nodiscard]] Buffer take();  // size() == buffer_bytes()
  void give(Buffer buffer);
  [[nodiscard]] size_t buffer_bytes() const { return buffer_bytes_; }

 private:
  size_t buffer_bytes_;
  size_t keep_max_;
  std::vector<Buffer> free_;
};

}  // namespace scant::base
