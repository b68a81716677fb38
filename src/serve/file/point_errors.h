// What each of several points would cost a tensor, and lose of it: bytes in a packed file, and the
// sum of squared errors, each weighted by the square of its column's weight. With the root mean
// squares of a product's inputs as weights this is the mean squared error of its output, as far as
// inputs do not depend on each other. One owner thread.
#pragma once

#include <vector>

#include "scant/base/result.h"
#include "serve/file/strip_packer.h"

namespace scant::serve {

struct PointError {
  uint64_t bytes = 0;
  double error = 0;
};

class PointErrors {
 public:
  // Points in strips. `column_weights`: empty, or one for each column, finite.
  PointErrors(codec::Shape shape, const std::vector<PackPoint>& points,
              std::vector<float> column_weights);

  // Any number of whole rows, row by row. ErrorCode::invalid_argument: rows that do not fit, or a
  // value that is NaN or infinite.
  Result<void> add_rows(TensorKind kind, Bytes rows);
  // After all rows; ErrorCode::invalid_argument: some are missing. The error of a tensor of zeros
  // is energy().
  [[nodiscard]] Result<std::vector<PointError>> errors() const;
  [[nodiscard]] double energy() const { return energy_; }

 private:
  [[nodiscard]] double weighted(const float* values, size_t rows) const;
  void measure_strip();

  codec::Shape shape_;
  std::vector<double> squares_;  // of the weights
  std::vector<PackPoint> points_;
  std::vector<StripPacker> packers_;
  std::vector<PointError> errors_;
  double energy_ = 0;
  uint64_t rows_ = 0;
  size_t gathered_ = 0;
  std::vector<float> floats_;
  std::vector<float> left_;
};

}  // namespace scant::serve
