// Lists for vector loops, whose memory begins with a cache line, so that no vector lies in two; and
// sizes up to the next whole unit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace scant::base {

[[nodiscard]] constexpr uint64_t align_up(uint64_t n, uint64_t to) {
  return (n + to - 1) / to * to;
}

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  LineAllocator() = default;
  template <typename U>
  // NOLINTNEXTLINE(google-explicit-constructor): as every allocator has it
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  friend bool operator==(const LineAllocator&, const LineAllocator&) { return true; }
};

template <typename T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

}  // namespace scant::base
