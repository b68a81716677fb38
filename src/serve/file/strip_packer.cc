#include "serve/file/strip_packer.h"

#include <cmath>
#include <utility>

#include "base/check.h"
#include "codec/quantise/rounding.h"
#include "codec/tile/sparse.h"
#include "codec/tile/tile.h"

namespace scant::serve {

StripPacker::StripPacker(PackPoint point, size_t columns, std::vector<float> column_weights)
    : point_(point), columns_(columns), column_weights_(std::move(column_weights)) {
  SCANT_CHECK(!row_by_row(point.kind));
  SCANT_CHECK(column_weights_.empty() || column_weights_.size() == columns);
}

void StripPacker::keep(const float* values, size_t rows) {
  const size_t words = codec::tiles(columns_);
  const auto count =
      static_cast<size_t>(std::lround(point_.density * static_cast<double>(columns_)));
  kept_.resize(rows * words);
  row_.resize(columns_);
  for (size_t row = 0; row < rows; ++row) {
    std::span<const float> compared(values + row * columns_, columns_);
    if (!column_weights_.empty()) {
      for (size_t i = 0; i < columns_; ++i) row_[i] = compared[i] * column_weights_[i];
      compared = row_;
    }
    codec::keep_largest(compared, count, std::span(kept_).subspan(row * words, words));
  }
}

Bytes StripPacker::pack(float* values, size_t rows) {
  const codec::ValueKind kind = strip_values(point_.kind);
  const size_t elements = rows * columns_;
  if (sparse(point_.kind)) {
    keep(values, rows);
    strip_.clear();
    base_ = codec::pack_sparse_strip(kind, values, kept_, rows, columns_, strip_, entries_);
    unpacked_.resize(elements);
    codec::unpack_sparse_strip(kind, strip_, base_, 0, rows, columns_, unpacked_.data());
    for (size_t i = 0; i < elements; ++i) values[i] -= unpacked_[i];
    return strip_;
  }
  strip_.resize(codec::strip_bytes(kind, columns_));
  if (codec::quantised(kind)) {
    base_ = codec::pack_strip(kind, values, rows, columns_, strip_);
    return strip_;
  }
  halves_.resize(elements);
  for (size_t i = 0; i < elements; ++i) {
    halves_[i] = codec::bf16_nearest(values[i]);
    values[i] -= codec::bf16_widen(halves_[i]);
  }
  codec::pack_strip16(halves_.data(), rows, columns_, strip_);
  return strip_;
}

uint64_t table_bytes(TensorKind kind, uint64_t rows) {
  const codec::ValueKind values = strip_values(kind);
  return sparse(kind) ? codec::sparse_table_bytes(values, rows) : codec::base_bytes(values, rows);
}

}  // namespace scant::serve
