#include "codec/rank/product.h"

#include <algorithm>

#include "codec/kernels/kernels.h"

namespace scant::codec {

Product::Product(uint64_t columns, uint64_t first_row, std::span<const float> basis,
                 std::span<const float> right, float times)
    : columns_(columns),
      first_row_(first_row),
      basis_(basis),
      right_(right.begin(), right.end()),
      rank_(right.size() / columns) {
  for (float& value : right_) value *= times;
}

void Product::add(uint64_t first, size_t n, const float* from, float* to) const {
  for (size_t at = 0; at < n;) {
    const uint64_t row = (first + at) / columns_;
    const uint64_t column = (first + at) % columns_;
    const uint64_t left = n - at;
    const bool whole = column == 0 && left >= columns_;
    const size_t rows = whole ? left / columns_ : 1;
    const size_t wide = whole ? columns_ : std::min(columns_ - column, left);
    kernels().add_product(basis_.data() + (row - first_row_) * rank_,
                          {right_.data() + column, columns_, rank_}, from + at,
                          {to + at, columns_, rows, wide});
    at += rows * wide;
  }
}

void Product::add(Range range, std::span<float> out, Workspace& workspace) const {
  const uint64_t blocks = (range.elements + kSparseBlockElements - 1) / kSparseBlockElements;
  workspace.pool().for_each(blocks, [&](size_t block, size_t) {
    const uint64_t at = block * kSparseBlockElements;
    float* const to = out.data() + at;
    add(range.first + at, std::min<uint64_t>(kSparseBlockElements, range.elements - at), to, to);
  });
}

}  // namespace scant::codec
