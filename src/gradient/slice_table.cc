#include "gradient/slice_table.h"

#include <algorithm>

#include "codec/rank/factors.h"

namespace scant::gradient {

SliceTable::SliceTable(const Layout& layout, const FusionPlan& plan) : layout_(&layout) {
  for (const BufferPlan& buffer : plan.buffers) {
    for (uint32_t i = 0; i < buffer.points.size(); ++i) {
      const uint32_t rank = buffer.points[i].first.rank;
      if (rank > 0) add_matrix(buffer.first_part + i, rank);
    }
  }
}

void SliceTable::add_matrix(uint32_t part, uint32_t rank) {
  const codec::Shape shape = layout_->matrix_of(part);
  MatrixPart matrix{.part = part,
                    .rank = rank,
                    .left_elements = rank * shape.rows,
                    .right_elements = rank * shape.columns};
  matrix.left_at = take(matrix.left_elements);
  matrix.right_at = take(matrix.right_elements);
  matrix.left = cut(part, false, matrix.left_elements);
  matrix.right = cut(part, true, matrix.right_elements);
  matrices_.push_back(matrix);
}

uint64_t SliceTable::take(uint64_t elements) {
  const uint64_t at = factor_elements_;
  factor_elements_ += (elements + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  return at;
}

// As a part is cut: one slice for each of the part's own where all are large enough, else one for
// all, whose owner differs from part to part and from side to side.
SliceSpan SliceTable::cut(uint32_t part, bool right, uint64_t elements) {
  const PartLayout& known = layout_->parts()[part];
  const auto matrix = static_cast<uint32_t>(matrices_.size());
  const uint32_t first = size();
  const auto count = static_cast<uint32_t>(
      codec::slice_count(elements, known.slices, layout_->slice_elements_min()));
  const bool whole = count == 1;
  uint64_t begin = 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t end = slice_end(elements, i, count);
    const uint32_t like = whole ? (part + (right ? 1 : 0)) % known.slices : i;
    factors_.push_back({matrix, right, {begin, end - begin}, known.first_slice + like});
    begin = end;
  }
  return {first, count};
}

uint32_t SliceTable::size() const {
  return static_cast<uint32_t>(layout_->slices().size() + factors_.size());
}

bool SliceTable::is_factor(uint32_t slice) const { return slice >= layout_->slices().size(); }

const SliceTable::FactorSlice& SliceTable::factor(uint32_t slice) const {
  return factors_[slice - layout_->slices().size()];
}

SliceRecord SliceTable::record_of(uint32_t slice) const {
  if (!is_factor(slice)) {
    const SliceLayout& known = layout_->slices()[slice];
    const uint32_t tensor = layout_->parts()[known.part].tensor;
    return {tensor, layout_->tensors()[tensor].shape, known.range};
  }
  const FactorSlice& one = factor(slice);
  const MatrixPart& matrix = matrices_[one.matrix];
  const uint64_t elements = one.right ? matrix.right_elements : matrix.left_elements;
  return {matrix.part + (one.right ? codec::kRightFactors : codec::kLeftFactors),
          {matrix.rank, elements / matrix.rank},
          one.range};
}

uint32_t SliceTable::part_of(uint32_t slice) const {
  return is_factor(slice) ? matrices_[factor(slice).matrix].part : layout_->slices()[slice].part;
}

uint32_t SliceTable::owned_like(uint32_t slice) const {
  return is_factor(slice) ? factor(slice).owned_like : slice;
}

uint64_t SliceTable::factor_at(uint32_t slice) const {
  const FactorSlice& one = factor(slice);
  const MatrixPart& matrix = matrices_[one.matrix];
  return (one.right ? matrix.right_at : matrix.left_at) + one.range.first;
}

std::optional<uint32_t> SliceTable::matrix_of(uint32_t part) const {
  const auto found = std::ranges::lower_bound(matrices_, part, {}, &MatrixPart::part);
  if (found == matrices_.end() || found->part != part) return std::nullopt;
  return static_cast<uint32_t>(found - matrices_.begin());
}

}  // namespace scant::gradient
