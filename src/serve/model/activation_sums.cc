#include "serve/model/activation_sums.h"

namespace scant::serve {

void ActivationSums::read(const Tensor& matrix, const float* inputs, size_t rows) {
  ActivationSum& sum = sums_[&matrix];
  const size_t columns = matrix.shape.columns;
  sum.inputs.resize(columns);
  sum.tokens += rows;
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < columns; ++i) {
      const double one = inputs[row * columns + i];
      sum.inputs[i] += one * one;
    }
  }
}

void ActivationSums::add(const Tensor& matrix, const float* results, const float* stream,
                         size_t values) {
  ActivationSum& sum = sums_[&matrix];
  for (size_t i = 0; i < values; ++i) {
    sum.added += double{results[i]} * results[i];
    sum.stream += double{stream[i]} * stream[i];
  }
}

}  // namespace scant::serve
