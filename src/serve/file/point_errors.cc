#include "serve/file/point_errors.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/fault.h"
#include "codec/tile/tile.h"
#include "serve/file/rows.h"

namespace scant::serve {

PointErrors::PointErrors(codec::Shape shape, const std::vector<PackPoint>& points,
                         std::vector<float> column_weights)
    : shape_(shape), points_(points), errors_(points.size()) {
  squares_.assign(shape.columns, 1);
  for (size_t i = 0; i < column_weights.size(); ++i)
    squares_[i] = double{column_weights[i]} * column_weights[i];
  for (const PackPoint& point : points) packers_.emplace_back(point, shape.columns, column_weights);
  floats_.resize(codec::kTileRows * shape.columns);
}

Result<void> PointErrors::add_rows(TensorKind kind, Bytes rows) {
  const auto of_row = row_by_row(kind) ? row_bytes(kind, shape_.columns) : std::nullopt;
  if (!of_row || rows.size() % *of_row != 0 || rows.size() / *of_row > shape_.rows - rows_)
    return base::invalid("rows that do not fit the tensor");
  while (!rows.empty()) {
    const uint64_t room = codec::kTileRows - gathered_;
    const Bytes now = rows.first(std::min<uint64_t>(room * *of_row, rows.size()));
    const uint64_t count = now.size() / *of_row;
    float* const to = floats_.data() + gathered_ * shape_.columns;
    widen_rows(kind, now, shape_.columns, to);
    if (const auto found = codec::find_not_finite(to, count, shape_.columns)) {
      return base::invalid("row " + std::to_string(rows_ + found->row) + ", column " +
                           std::to_string(found->column) + " is NaN or infinite");
    }
    gathered_ += count;
    rows_ += count;
    if (gathered_ == codec::kTileRows || rows_ == shape_.rows) measure_strip();
    rows = rows.subspan(now.size());
  }
  return {};
}

double PointErrors::weighted(const float* values, size_t rows) const {
  double sum = 0;
  for (size_t row = 0; row < rows; ++row) {
    const float* const at = values + row * shape_.columns;
    for (size_t i = 0; i < shape_.columns; ++i) sum += squares_[i] * (double{at[i]} * at[i]);
  }
  return sum;
}

void PointErrors::measure_strip() {
  energy_ += weighted(floats_.data(), gathered_);
  for (size_t i = 0; i < points_.size(); ++i) {
    left_.assign(floats_.begin(),
                 floats_.begin() + static_cast<ptrdiff_t>(gathered_ * shape_.columns));
    errors_[i].bytes += packers_[i].pack(left_.data(), gathered_).size();
    errors_[i].error += weighted(left_.data(), gathered_);
  }
  gathered_ = 0;
}

Result<std::vector<PointError>> PointErrors::errors() const {
  if (rows_ != shape_.rows)
    return base::invalid(std::to_string(rows_) + " of " + std::to_string(shape_.rows) +
                         " rows came");
  std::vector<PointError> all = errors_;
  for (size_t i = 0; i < all.size(); ++i) all[i].bytes += table_bytes(points_[i].kind, shape_.rows);
  return all;
}

}  // namespace scant::serve
