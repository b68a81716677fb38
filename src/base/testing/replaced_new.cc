#include "base/testing/replaced_new.h"

#include <cstdlib>
#include <new>

namespace {

void* allocate(size_t size) {
  if (scant::base::testing::allocation_fails()) throw std::bad_alloc();
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

bool scant::base::testing::buffer_may_allocate(size_t) { return !allocation_fails(); }

void* operator new(size_t size) { return allocate(size); }
void* operator new[](size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
