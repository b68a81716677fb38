#include "serve/kernels/multiply.h"

#include <vector>

#include "base/check.h"
#include "codec/tile/tile.h"
#include "serve/file/rows.h"

namespace scant::serve {
namespace {

float dot(const float* a, const float* b, size_t n) {
  float lanes[16] = {};
  for (size_t i = 0; i < n; ++i) lanes[i % 16] += a[i] * b[i];
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

}  // namespace

void Activations::set(const float* values, size_t rows, size_t columns) {
  values_ = values;
  rows_ = rows;
  columns_ = columns;
}

void multiply(std::span<const MatrixProduct> products, Activations& activations,
              base::WorkerPool& pool) {
  for (const MatrixProduct& product : products) {
    const codec::Shape shape = product.weights->shape;
    SCANT_CHECK(shape.columns == activations.columns());
    pool.for_each(codec::strips(shape.rows), [&](size_t strip, size_t) {
      std::vector<float> row(shape.columns);
      const uint64_t first = strip * codec::kTileRows;
      for (uint64_t r = first; r < std::min<uint64_t>(first + codec::kTileRows, shape.rows); ++r) {
        const auto read = read_rows(*product.weights, r, 1, TensorKind::f32,
                                    std::as_writable_bytes(std::span(row)));
        SCANT_CHECK(read.ok());
        for (size_t token = 0; token < activations.rows(); ++token) {
          product.out[token * product.stride + r] =
              dot(row.data(), activations.values() + token * shape.columns, shape.columns);
        }
      }
    });
  }
}

}  // namespace scant::serve
