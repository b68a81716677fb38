// SCANT_CHECK: always on. A failed check is a programmer's error: it prints the condition with
// rank, seed and commit, then aborts. Operating errors travel as Result<T> (scant/base/result.h)
// instead.
#pragma once

#include <cstdint>
#include <string_view>

namespace scant::base {

// What a failed check prints beside the condition; set once, early, by whoever knows.
void set_check_rank(int32_t rank);
void set_check_seed(uint64_t seed);
[[nodiscard]] std::string_view commit();  // the commit this build was made from, or "unknown"

[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               std::string_view detail);

}  // namespace scant::base

#define SCANT_CHECK(condition, ...)                                                           \
  (static_cast<bool>(condition) ? static_cast<void>(0)                                        \
                                : ::scant::base::check_failed(__FILE__, __LINE__, #condition, \
                                                              ::std::string_view{__VA_ARGS__}))
