// Allocation of aligned memory and its recycling.
#include "base/buffer.h"

#include <cstdlib>
#include <sys/mman.h>
#include <utility>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr size_t kAlignment = 64;              // a cache line, and the widest vector
constexpr size_t kHugePage = size_t{2} << 20;  // x86-64 and most arm64

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  const size_t alignment = size >= kHugePage ? kHugePage : kAlignment;
  void* memory = std::aligned_alloc(alignment, round_up(size, alignment));
  SCANT_CHECK(memory != nullptr, "out of memory");
  // A hint: without transparent huge pages the memory is merely slower.
  if (alignment == kHugePage)
    static_cast<void>(madvise(memory, round_up(size, alignment), MADV_HUGEPAGE));
  data_ = static_cast<std::byte*>(memory);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    std::free(data_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Buffer::~Buffer() { std::free(data_); }

Buffer BufferPool::take() {
  if (free_.empty()) return Buffer(buffer_bytes_);
  Buffer buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

void BufferPool::give(Buffer buffer) {
  SCANT_CHECK(buffer.size() == buffer_bytes_, "a buffer of another size was given to the pool");
  if (free_.size() < keep_max_) free_.push_back(std::move(buffer));
}

}  // namespace scant::base
