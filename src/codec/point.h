// What a codec is: a point (rank, density, kind of value), and the shape of the tensor that it acts
// on. Plain values, shared by every part of the room; docs/record.md defines the numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace scant::codec {

// How a value is written. q8 to q1 are codes of so many bits, with a scale for each group of 64.
enum class ValueKind : uint8_t { f32, bf16, f16, q8, q4, q3, q2, q1 };
inline constexpr int kValueKindCount = 8;
[[nodiscard]] const char* name(ValueKind kind);
[[nodiscard]] std::optional<ValueKind> value_kind(std::string_view name);
[[nodiscard]] constexpr bool quantised(ValueKind kind) { return kind >= ValueKind::q8; }
// Bits of one value, its share of a scale not counted.
[[nodiscard]] constexpr unsigned bits(ValueKind kind) {
  constexpr unsigned kBits[kValueKindCount] = {32, 16, 16, 8, 4, 3, 2, 1};
  return kBits[static_cast<size_t>(kind)];
}

struct Point {
  double density = 1.0;  // share of the elements that are sent; 1 is dense, without positions
  ValueKind values = ValueKind::f32;
  bool by_row = false;  // below density 1: each row sends its share, not the tensor its largest
  // So many strong directions of a matrix go as two thin factors, and the rest by what stands
  // above, or by density 0 not at all. docs/codec.md, "Rank".
  uint16_t rank = 0;
  ValueKind factors = ValueKind::q8;  // of rank 0: q8, so that equal points are equal
  friend bool operator==(const Point&, const Point&) = default;
};
// The point of the rest alone.
[[nodiscard]] constexpr Point rest_of(Point point) {
  return {point.density, point.values, point.by_row};
}
// A point's values as text: "q4", where each row sends its share "q4 by row", and with factors
// "rank 8 of q4, q1"; where there is no rest, "rank 8 of q4".
inline constexpr std::string_view kByRow = " by row";
[[nodiscard]] std::string values_text(Point point);
// The point of a density and such a text; nothing where it names none.
[[nodiscard]] std::optional<Point> point_of(double density, std::string_view values);
// All of a point: "q4", "1% q4", "rank 8 of q8, 5% q4".
[[nodiscard]] std::string text(Point point);

// A tensor as rows of `columns` elements; one of one dimension is a single row.
struct Shape {
  uint64_t rows = 1;
  uint64_t columns = 0;
  [[nodiscard]] constexpr uint64_t elements() const { return rows * columns; }
  friend bool operator==(const Shape&, const Shape&) = default;
};
[[nodiscard]] std::string text(const Shape& shape);  // "20 x 40"

inline constexpr size_t kGroupElements = 64;             // share one scale
inline constexpr size_t kQuadElements = 256;             // four groups, whose codes are interleaved
inline constexpr uint32_t kDenseBlockElements = 4096;    // stays in the first-level cache
inline constexpr uint32_t kSparseBlockElements = 65536;  // what 16 bits can tell apart

}  // namespace scant::codec
