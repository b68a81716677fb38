#include "codec/range.h"

#include <algorithm>

#include "codec/point.h"

namespace scant::codec {
namespace {

std::string text(Range range) {
  return std::to_string(range.elements) + " elements from " + std::to_string(range.first);
}

}  // namespace

std::optional<std::string> ranges_fault(std::span<const Range> ranges, Range whole) {
  uint64_t end = whole.first;
  const uint64_t whole_end = whole.first + whole.elements;
  for (size_t i = 0; i < ranges.size(); ++i) {
    const Range& range = ranges[i];
    const std::string place = "range " + std::to_string(i) + " (" + text(range) + ") ";
    // Compared so that nothing overflows.
    if (range.first < whole.first || range.first > whole_end ||
        range.elements > whole_end - range.first) {
      return place + "leaves the " + text(whole);
    }
    if (range.first < end) return place + "begins before the end of the one ahead of it";
    end = range.first + range.elements;
  }
  return std::nullopt;
}

std::span<const Range> ranges_within(std::span<const Range> ranges, uint64_t begin, uint64_t end) {
  const auto from = std::partition_point(ranges.begin(), ranges.end(), [&](const Range& range) {
    return range.first + range.elements <= begin;
  });
  const auto to = std::partition_point(from, ranges.end(),
                                       [&](const Range& range) { return range.first < end; });
  return {from, to};
}

// The last is not rounded, so it is given one of the larger shares, where there are two sizes.
uint64_t slice_end(uint64_t elements, uint64_t index, uint64_t count) {
  if (index + 1 == count) return elements;
  const uint64_t units = (elements + kGroupElements - 1) / kGroupElements;
  return units * (index + 1) / count * kGroupElements;
}

}  // namespace scant::codec
