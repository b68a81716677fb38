// What a failed check prints. The rank and the seed are process-wide facts, set once.
#include "base/check.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>

#ifndef SCANT_COMMIT
#define SCANT_COMMIT "unknown"
#endif

namespace scant::base {
namespace {
std::atomic<int32_t> check_rank{-1};  // pairs with nothing: read only to print
std::atomic<uint64_t> check_seed{0};  // pairs with nothing: read only to print
}  // namespace

void set_check_rank(int32_t rank) { check_rank.store(rank, std::memory_order_relaxed); }
void set_check_seed(uint64_t seed) { check_seed.store(seed, std::memory_order_relaxed); }
std::string_view commit() { return SCANT_COMMIT; }

void check_failed(const char* file, int line, const char* condition, std::string_view detail) {
  std::fprintf(stderr, "scant: check failed at %s:%d: %s%s%.*s [rank=%d seed=%llu commit=%s]\n",
               file, line, condition, detail.empty() ? "" : ": ", static_cast<int>(detail.size()),
               detail.data(), check_rank.load(std::memory_order_relaxed),
               static_cast<unsigned long long>(check_seed.load(std::memory_order_relaxed)),
               SCANT_COMMIT);
  std::fflush(stderr);
  std::abort();
}

}  // namespace scant::base
