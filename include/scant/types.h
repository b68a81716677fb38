// Element types, reductions and byte views of the public API.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

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

// average divides the sum by the group's size; integers truncate towards zero.
// bit_* act on integers and booleans only; sum of booleans is "or", product is "and".
enum class ReduceOp : uint8_t { sum, average, product, min, max, bit_and, bit_or, bit_xor };
inline constexpr int kReduceOpCount = 8;
[[nodiscard]] const char* name(ReduceOp op);

}  // namespace scant
