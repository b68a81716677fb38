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

void add_times_right(const MatrixOut& a, const float* kept, float decay, const Factor& right,
                     float* left) {
  for (size_t i = 0; i < a.rows; ++i) {
    for (size_t j = 0; j < a.columns; ++j) {
      const float more = decay * kept[i * a.stride + j];
      a.values[i * a.stride + j] += more;
    }
  }
  times_right({a.values, a.stride, a.rows, a.columns}, right, left);
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

void add_product(const float* left, const Factor& right, const float* from, const MatrixOut& out) {
  for (size_t i = 0; i < out.rows; ++i) {
    for (size_t j = 0; j < out.columns; ++j) {
      float sum = from[i * out.stride + j];
      for (size_t k = 0; k < right.rank; ++k) {
        sum = std::fma(left[i * right.rank + k], right.values[k * right.stride + j], sum);
      }
      out.values[i * out.stride + j] = sum;
    }
  }
}

void column_products(const Columns& columns, const double* by, double* sums) {
  for (size_t k = 0; k < columns.count; ++k) {
    const double* const column = columns.values + k * columns.stride;
    double lanes[kSumLanes] = {};
    for (size_t i = 0; i < columns.stride; ++i) {
      lanes[i % kSumLanes] = std::fma(column[i], by[i], lanes[i % kSumLanes]);
    }
    sums[k] = fold(lanes);
  }
}

void take_columns(const Columns& columns, const double* times, double* from) {
  for (size_t k = 0; k < columns.count; ++k) {
    const double* const column = columns.values + k * columns.stride;
    for (size_t i = 0; i < columns.stride; ++i) from[i] = std::fma(-times[k], column[i], from[i]);
  }
}

}  // namespace scant::codec::reference
