// What a model's gradients are cut into, from their shapes and the number of ranks alone: tensors
// in one arena, parts that a plan deals in, slices that have an owner and an encoder. Plain values,
// any thread. docs/gradients.md, "Names".
#pragma once

#include <span>
#include <vector>

#include "codec/encoder.h"
#include "codec/point.h"
#include "codec/range.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::gradient {

using codec::kPartElementsMax;
using codec::kSliceElementsMin;
using codec::slice_end;
inline constexpr uint64_t kSliceElementsLeast = 64;  // a group of the codec
inline constexpr uint64_t kArenaAlignment = 16;      // elements: a cache line
inline constexpr uint64_t kArenaElementsMax = uint64_t{1} << 40;
inline constexpr size_t kTensorsMax = size_t{1} << 20;

struct TensorLayout {
  codec::Shape shape;
  uint64_t offset = 0;      // of its first element in the arena
  uint32_t first_part = 0;  // its parts are consecutive
  uint32_t parts = 0;
};

struct PartLayout {
  uint32_t tensor = 0;
  codec::Range range;        // of the tensor
  uint32_t first_slice = 0;  // its slices are consecutive, in the order of their elements
  uint32_t slices = 0;
};

struct SliceLayout {
  uint32_t part = 0;
  Rank owner = 0;
  codec::Range range;  // of the tensor
};

struct LayoutOptions {
  // A part is cut where each rank gets at least so many elements. The same on all ranks.
  uint64_t slice_elements_min = kSliceElementsMin;
};

class Layout {
 public:
  // Tensors in the order in which backward is expected to reach them. An error names the tensor
  // that is empty or too large, or the option.
  static Result<Layout> create(std::span<const codec::Shape> tensors, int ranks,
                               const LayoutOptions& options = {});

  [[nodiscard]] int ranks() const { return ranks_; }
  [[nodiscard]] uint64_t slice_elements_min() const { return slice_elements_min_; }
  [[nodiscard]] uint64_t arena_elements() const { return arena_elements_; }  // gaps included
  [[nodiscard]] uint64_t elements() const { return elements_; }              // without them
  [[nodiscard]] std::span<const TensorLayout> tensors() const { return tensors_; }
  [[nodiscard]] std::span<const PartLayout> parts() const { return parts_; }
  [[nodiscard]] std::span<const SliceLayout> slices() const { return slices_; }
  [[nodiscard]] std::span<const SliceLayout> slices_of(const PartLayout& part) const {
    return slices().subspan(part.first_slice, part.slices);
  }
  // The rows that a part touches, and the columns of its tensor.
  [[nodiscard]] codec::Shape matrix_of(uint32_t part) const;
  // The most directions that a part may send as factors: 0 unless it has rows and columns.
  [[nodiscard]] uint64_t rank_max(uint32_t part) const;
  // Where a range of a tensor begins in the arena.
  [[nodiscard]] uint64_t arena_offset(uint32_t tensor, const codec::Range& range) const {
    return tensors_[tensor].offset + range.first;
  }

 private:
  Layout() = default;
  int ranks_ = 1;
  uint64_t slice_elements_min_ = kSliceElementsMin;
  uint64_t arena_elements_ = 0;
  uint64_t elements_ = 0;
  std::vector<TensorLayout> tensors_;
  std::vector<PartLayout> parts_;
  std::vector<SliceLayout> slices_;
};

}  // namespace scant::gradient
