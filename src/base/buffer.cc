// Allocation of aligned memory and its recycling.
#include "base/buffer.h"

#include <cstdint>
#include <cstdlib>
#include <sys/mman.h>
#include <utility>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr size_t kAlignment = 64;              // a cache line, and the widest vector
constexpr size_t kHugePage = size_t{2} << 20;  // x86-64 and most arm64

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Whole huge pages of their own, so that freeing returns them and the allocator's heap is not
// riddled with 2 MiB holes.
std::byte* map_huge(size_t size) {
  const size_t wanted = round_up(size, kHugePage);
  const size_t mapped = wanted + kHugePage;
  void* const memory =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  SCANT_CHECK(memory != MAP_FAILED, "out of memory");
  auto* const first = static_cast<std::byte*>(memory);
  const size_t before =
      round_up(reinterpret_cast<uintptr_t>(first), kHugePage) - reinterpret_cast<uintptr_t>(first);
  const size_t after = mapped - before - wanted;
  if (before > 0) SCANT_CHECK(munmap(first, before) == 0);
  if (after > 0) SCANT_CHECK(munmap(first + before + wanted, after) == 0);
  // A hint: without transparent huge pages the memory is merely slower.
  static_cast<void>(madvise(first + before, wanted, MADV_HUGEPAGE));
  return first + before;
}

void release(std::byte* data, size_t size) {
  if (size >= kHugePage) {
    SCANT_CHECK(munmap(data, round_up(size, kHugePage)) == 0);
  } else {
    std::free(data);
  }
}

}  // namespace

Buffer::Buffer(size_t size) : size_(size) {
  if (size == 0) return;
  SCANT_CHECK(size <= PTRDIFF_MAX - 2 * kHugePage, "out of memory");
  if (size >= kHugePage) {
    data_ = map_huge(size);
    return;
  }
  data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, round_up(size, kAlignment)));
  SCANT_CHECK(data_ != nullptr, "out of memory");
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release(data_, size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

Buffer::~Buffer() { release(data_, size_); }

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
