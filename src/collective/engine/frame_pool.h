// Buffers for payloads that cannot go straight into user memory, and for scratch: one pool for each
// power of two, last in first out. Counts what is out, so that a leak shows. Owner: the engine's
// thread.
#pragma once

#include <bit>
#include <vector>

#include "base/buffer.h"
#include "base/check.h"

namespace scant::collective {

class FramePool {
 public:
  FramePool() {
    for (unsigned log2 = kSmallestLog2; log2 <= kLargestLog2; ++log2) {
      // About 16 MiB of frames of each size stay for reuse; of large scratch, one.
      const size_t keep = log2 <= 14 ? 256 : log2 >= 24 ? 1 : size_t{1} << (24 - log2);
      pools_.emplace_back(size_t{1} << log2, keep);
    }
  }

  // At least `bytes` large.
  [[nodiscard]] Result<base::Buffer> take(size_t bytes) {
    const size_t index = index_of(bytes);
    Result<base::Buffer> buffer =
        index < pools_.size() ? pools_[index].take() : base::Buffer::allocate(bytes);
    if (buffer) ++out_;
    return buffer;
  }

  void give(base::Buffer buffer) {
    SCANT_CHECK(out_ > 0, "more buffers came back than went out");
    --out_;
    const size_t index = index_of(buffer.size());
    if (index < pools_.size() && pools_[index].buffer_bytes() == buffer.size()) {
      pools_[index].give(std::move(buffer));
    }
  }

  [[nodiscard]] size_t out() const { return out_; }

 private:
  static constexpr unsigned kSmallestLog2 = 8;
  static constexpr unsigned kLargestLog2 = 28;
  static size_t index_of(size_t bytes) {
    if (bytes <= (size_t{1} << kSmallestLog2)) return 0;
    return static_cast<size_t>(std::bit_width(bytes - 1)) - kSmallestLog2;
  }

  std::vector<base::BufferPool> pools_;
  size_t out_ = 0;
};

}  // namespace scant::collective
