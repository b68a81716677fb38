// Allocation of aligned memory and its recycling.
#include "base/buffer.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <sys/mman.h>
#include <utility>

#include "base/check.h"

namespace scant::base {
namespace {

constexpr size_t kAlignment = 64;              // a cache line, and the widest vector
constexpr size_t kHugePage = size_t{2} << 20;  // x86-64 and most arm64

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Whole huge pages of their own, so that freeing returns them and the allocator's heap is not
// riddled with 2 MiB holes. Null when the system has no memory or no room for another mapping.
std::byte* map_huge(size_t size) {
  const size_t wanted = round_up(size, kHugePage);
  const size_t mapped = wanted + kHugePage;
  void* const memory =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* const first = static_cast<std::byte*>(memory);
  const size_t before =
      round_up(reinterpret_cast<uintptr_t>(first), kHugePage) - reinterpret_cast<uintptr_t>(first);
  const size_t after = mapped - before - wanted;
  // An edge that cannot be cut off, at the limit of mappings, stays: nobody touches it.
  if (before > 0) static_cast<void>(munmap(first, before));
  if (after > 0) static_cast<void>(munmap(first + before + wanted, after));
  // A hint: without transparent huge pages the memory is merely slower.
  static_cast<void>(madvise(first + before, wanted, MADV_HUGEPAGE));
  return first + before;
}

void release(std::byte* data, size_t size) {
  if (size < kHugePage) {
    std::free(data);
    return;
  }
  const size_t mapped = round_up(size, kHugePage);
  if (munmap(data, mapped) == 0) return;
  // At the limit of mappings none can be cut in two: the pages go back all the same.
  SCANT_CHECK(madvise(data, mapped, MADV_DONTNEED) == 0);
}

std::atomic<AllocationGate> allocation_gate{nullptr};  // set_allocation_gate() with allocate()

}  // namespace

Result<Buffer> Buffer::allocate(size_t size) {
  if (size == 0) return Buffer();
  const AllocationGate gate = allocation_gate.load(std::memory_order_acquire);
  std::byte* data = nullptr;
  if ((gate == nullptr || gate(size)) && size <= PTRDIFF_MAX - 2 * kHugePage) {
    data =
        size >= kHugePage
            ? map_huge(size)
            : static_cast<std::byte*>(std::aligned_alloc(kAlignment, round_up(size, kAlignment)));
  }
  if (data == nullptr) {
    return Error{.code = ErrorCode::resource,
                 .message = "no memory for another " + std::to_string(size) +
                            " bytes: free some, or ask for less"};
  }
  return Buffer(data, size);
}

void set_allocation_gate(AllocationGate gate) {
  allocation_gate.store(gate, std::memory_order_release);
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

Result<Buffer> BufferPool::take() {
  if (free_.empty()) return Buffer::allocate(buffer_bytes_);
  Buffer buffer = std::move(free_.back());
  free_.pop_back();
  return buffer;
}

void BufferPool::give(Buffer buffer) {
  SCANT_CHECK(buffer.size() == buffer_bytes_, "a buffer of another size was given to the pool");
  if (free_.size() < keep_max_) free_.push_back(std::move(buffer));
}

}  // namespace scant::base
