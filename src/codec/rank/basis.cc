#include "codec/rank/basis.h"

#include <algorithm>
#include <cmath>

#include "base/aligned.h"
#include "base/check.h"
#include "codec/kernels/kernels.h"

namespace scant::codec {
namespace {

// What is left of a column, as a share of its length, below which rounding is most of it.
constexpr double kLeastLeft = 0x1p-18;

constexpr size_t kLanes = 16;

double fold(double* lanes) {
  for (size_t half = kLanes / 2; half != 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

double product(const float* a, const float* b, size_t n) {
  double lanes[kLanes] = {};
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(a[i + lane]) * static_cast<double>(b[i + lane]);
    }
  }
  for (; i < n; ++i) lanes[i % kLanes] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return fold(lanes);
}

void scale(std::span<float> column, double by) {
  for (float& value : column) value = static_cast<float>(value * by);
}

}  // namespace

bool normalise(std::span<float> column) {
  const double length = std::sqrt(product(column.data(), column.data(), column.size()));
  if (!std::isfinite(length) || length == 0) return false;
  scale(column, 1 / length);
  return true;
}

size_t orthonormalise(std::span<float> columns, size_t rows) {
  SCANT_CHECK(rows == 0 ? columns.empty() : columns.size() % rows == 0);
  if (columns.empty()) return 0;
  const size_t count = columns.size() / rows;
  const size_t stride = (rows + kLanes - 1) / kLanes * kLanes;
  base::AlignedVector<double> work(count * stride);
  std::vector<double> products(count);
  const auto column = [&](size_t k) { return work.data() + k * stride; };
  // Finite squares of floats add up to a finite f64.
  const auto length_of = [&](size_t k) {
    double square = 0;
    kernels().column_products({column(k), stride, 1}, column(k), &square);
    return std::sqrt(square);
  };
  bool finite = true;
  for (size_t k = 0; k < count; ++k) {
    std::ranges::copy(columns.subspan(k * rows, rows), column(k));
    finite = finite && std::isfinite(length_of(k));
  }
  if (!finite) {
    std::ranges::fill(columns, 0.0f);
    return 0;
  }
  size_t found = 0;
  for (size_t k = 0; k < count; ++k) {
    double length = length_of(k);
    bool left = length > 0;
    for (int pass = 0; left && pass < 2; ++pass) {
      const double before = length;
      kernels().column_products({work.data(), stride, k}, column(k), products.data());
      kernels().take_columns({work.data(), stride, k}, products.data(), column(k));
      length = length_of(k);
      left = length > before * kLeastLeft;
    }
    const double by = left ? 1 / length : 0;
    found += left ? 1u : 0u;
    for (size_t i = 0; i < stride; ++i) column(k)[i] *= by;
    const auto narrow = [](double value) { return static_cast<float>(value); };
    std::transform(column(k), column(k) + rows, columns.data() + k * rows, narrow);
  }
  return found;
}

}  // namespace scant::codec
