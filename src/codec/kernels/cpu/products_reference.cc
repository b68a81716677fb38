// The readable reference for the skinny products of kernels.h: what every vector kernel must equal,
// bit for bit.
#include <cmath>

#include "codec/kernels/cpu/internal.h"

namespace scant::codec::reference {

void times_right(const Matrix& a, const Factor& right, float* left) {
  const size_t padded = (a.columns + kSumLanes - 1) / kSumLanes * kSumLanes;
  for (size_t i = 0; i < a.rows; ++i) {
    const float* const row = a.values + i * a.stride;
    for (size_t k = 0; k < right.rank; ++k) {
      const float* const column = right.values + k * right.stride;
      float lanes[kSumLanes] = {};
      for (size_t j = 0; j < padded; ++j) {
        const bool there = j < a.columns;
        lanes[j % kSumLanes] =
            std::fma(there ? row[j] : 0.0f, there ? column[j] : 0.0f, lanes[j % kSumLanes]);
      }
      left[i * right.rank + k] += fold(lanes);
    }
  }
}

void times_left(const Matrix& a, const float* left, const FactorOut& right) {
  for (size_t i = 0; i < a.rows; ++i) {
    for (size_t k = 0; k < right.rank; ++k) {
      const float by = left[i * right.rank + k];
      float* const column = right.values + k * right.stride;
      for (size_t j = 0; j < a.columns; ++j) {
        column[j] = std::fma(a.values[i * a.stride + j], by, column[j]);
      }
    }
  }
}

void add_product(const float* left, const Factor& right, const MatrixOut& out) {
  for (size_t i = 0; i < out.rows; ++i) {
    float* const row = out.values + i * out.stride;
    for (size_t k = 0; k < right.rank; ++k) {
      const float by = left[i * right.rank + k];
      for (size_t j = 0; j < out.columns; ++j) {
        row[j] = std::fma(by, right.values[k * right.stride + j], row[j]);
      }
    }
  }
}

}  // namespace scant::codec::reference
