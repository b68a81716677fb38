// Cutting tensors into parts and slices, and giving each slice an owner: a pure function of shapes
// and ranks. Memory and time grow with the number of slices, never with that of elements.
#include "gradient/layout.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/fault.h"
#include "codec/rank/factors.h"
#include "gradient/owners.h"

namespace scant::gradient {
namespace {

using codec::Shape;

constexpr int kRanksMax = 65535;  // as a communicator's

Error invalid(std::string message) { return base::invalid("layout: " + std::move(message)); }

Result<void> check(std::span<const Shape> tensors, int ranks) {
  if (ranks < 1 || ranks > kRanksMax)
    return invalid("ranks must be 1 to 65535, got " + std::to_string(ranks));
  if (tensors.empty()) return invalid("there is no tensor");
  if (tensors.size() > kTensorsMax) {
    return invalid(std::to_string(tensors.size()) + " tensors, at most " +
                   std::to_string(kTensorsMax) + " are possible");
  }
  return {};
}

// Its elements, which end within the arena when they begin at `offset`.
Result<uint64_t> elements_of(const Shape& shape, size_t tensor, uint64_t offset) {
  if (shape.rows == 0 || shape.columns == 0)
    return invalid("tensor " + std::to_string(tensor) + " (" + text(shape) + ") is empty");
  const bool overflows = shape.columns > std::numeric_limits<uint64_t>::max() / shape.rows;
  if (overflows || offset > kArenaElementsMax || shape.elements() > kArenaElementsMax - offset) {
    return invalid("tensor " + std::to_string(tensor) + " (" + text(shape) +
                   ") is too large: an arena has at most 2^40 elements");
  }
  return shape.elements();
}

void cut(PartLayout& part, uint32_t number, uint64_t elements_min, Owners& owners,
         std::vector<SliceLayout>& slices) {
  const uint64_t ranks = owners.ranks();
  part.first_slice = static_cast<uint32_t>(slices.size());
  part.slices = static_cast<uint32_t>(codec::slice_count(part.range.elements, ranks, elements_min));
  if (part.slices == 1) {
    slices.push_back({number, owners.least(part.range.elements), part.range});
    return;
  }
  uint64_t begin = 0;
  for (uint64_t s = 0; s < ranks; ++s) {
    const uint64_t end = slice_end(part.range.elements, s, ranks);
    const auto owner = static_cast<Rank>((s + number) % ranks);
    slices.push_back({number, owner, {part.range.first + begin, end - begin}});
    begin = end;
  }
  owners.everyone(number, std::span(slices).subspan(part.first_slice));
}

}  // namespace

Result<Layout> Layout::create(std::span<const Shape> tensors, int ranks,
                              const LayoutOptions& options) {
  if (auto checked = check(tensors, ranks); !checked) return checked.error();
  if (options.slice_elements_min < kSliceElementsLeast) {
    return invalid("slice_elements_min is " + std::to_string(options.slice_elements_min) +
                   ", at least " + std::to_string(kSliceElementsLeast) + " are needed");
  }
  Layout layout;
  layout.ranks_ = ranks;
  layout.slice_elements_min_ = options.slice_elements_min;
  layout.tensors_.reserve(tensors.size());
  Owners owners(ranks);
  uint64_t end = 0;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const uint64_t offset = (end + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
    const auto elements = elements_of(tensors[t], t, offset);
    if (!elements) return elements.error();
    TensorLayout& tensor = layout.tensors_.emplace_back(TensorLayout{
        .shape = tensors[t],
        .offset = offset,
        .first_part = static_cast<uint32_t>(layout.parts_.size()),
        .parts =
            static_cast<uint32_t>((elements.value() + kPartElementsMax - 1) / kPartElementsMax)});
    for (uint32_t p = 0; p < tensor.parts; ++p) {
      const uint64_t first = p * kPartElementsMax;
      const auto number = static_cast<uint32_t>(layout.parts_.size());
      PartLayout& part = layout.parts_.emplace_back(
          PartLayout{.tensor = static_cast<uint32_t>(t),
                     .range = {first, std::min(kPartElementsMax, elements.value() - first)}});
      cut(part, number, options.slice_elements_min, owners, layout.slices_);
    }
    layout.elements_ += elements.value();
    end = offset + elements.value();
  }
  layout.arena_elements_ = end;
  return layout;
}

codec::Shape Layout::matrix_of(uint32_t part) const {
  const codec::Range range = parts_[part].range;
  return {codec::rows_touched(tensors_[parts_[part].tensor].shape, range),
          tensors_[parts_[part].tensor].shape.columns};
}

uint64_t Layout::rank_max(uint32_t part) const { return codec::rank_max(matrix_of(part)); }

}  // namespace scant::gradient
