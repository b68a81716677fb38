// Ranges of a tensor's elements: what an encoder covers, what of a record did not arrive. Plain
// values and pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace scant::codec {

// Elements [first, first + elements) of the tensor. Of an encoder: first is a multiple of 64.
struct Range {
  uint64_t first = 0;
  uint64_t elements = 0;
  friend bool operator==(const Range&, const Range&) = default;
};

// What is wrong with ranges that are to ascend, to lie apart (they may touch) and to lie within
// `whole`; nothing where they do.
[[nodiscard]] std::optional<std::string> ranges_fault(std::span<const Range> ranges, Range whole);

// Of ranges that ascend and lie apart, those that reach into elements [begin, end).
[[nodiscard]] std::span<const Range> ranges_within(std::span<const Range> ranges, uint64_t begin,
                                                   uint64_t end);

// How a tensor is cut among members: docs/gradients.md, "Parts and slices". A part has at most
// kPartElementsMax elements; it is cut if each member gets at least kSliceElementsMin.
inline constexpr uint64_t kPartElementsMax = uint64_t{1} << 22;
inline constexpr uint64_t kSliceElementsMin = 4096;
// One slice for each member, or one slice if there are too few elements.
[[nodiscard]] constexpr uint64_t slice_count(uint64_t elements, uint64_t members,
                                             uint64_t elements_min = kSliceElementsMin) {
  return elements < members * elements_min ? 1 : members;
}
// Where slice `index` of `count` ends. Slices end at multiples of 64 and are nearly equal.
[[nodiscard]] uint64_t slice_end(uint64_t elements, uint64_t index, uint64_t count);

}  // namespace scant::codec
