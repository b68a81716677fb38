// Element types, reductions and byte views of the public API.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace scant {

using Bytes = std::span<const std::byte>;
using MutableBytes = std::span<std::byte>;

// A point on a monotonic clock, real or virtual, and a distance on it.
using Duration = std::chrono::nanoseconds;
using Time = std::chrono::time_point<std::chrono::steady_clock, Duration>;
inline constexpr Time kNever = Time::max();

enum class DType : uint8_t { f32, f64, bf16, f16, i8, i32, i64, u8, boolean };
inline constexpr int kDTypeCount = 9;
[[nodiscard]] size_t size_bytes(DType dtype);
[[nodiscard]] const char* name(DType dtype);

// Elements that are only moved, never reduced, have codes of their own behind those of the
// enumeration, so that ranks which disagree on them get a mismatch that names both.
inline constexpr int kMovedDTypeFirst = 32;
[[nodiscard]] int moved_dtype_count();  // codes from kMovedDTypeFirst on, without gaps
// By the name in NumPy and torch: int16, complex64, float8_e4m3fn; "other" for what is not listed.
[[nodiscard]] DType moved_dtype(std::string_view name);
[[nodiscard]] bool is_dtype(int code);

// average divides the sum by the group's size; integers truncate towards zero.
// bit_* act on integers and booleans only; sum of booleans is "or", product is "and".
enum class ReduceOp : uint8_t { sum, average, product, min, max, bit_and, bit_or, bit_xor };
inline constexpr int kReduceOpCount = 8;
[[nodiscard]] const char* name(ReduceOp op);

}  // namespace scant
