#include "codec/rank/basis.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

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

void subtract(float* from, const float* column, double times, size_t n) {
  for (size_t i = 0; i < n; ++i) {
    from[i] = static_cast<float>(from[i] - times * static_cast<double>(column[i]));
  }
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
  if (!std::ranges::all_of(columns, [](float value) { return std::isfinite(value); })) {
    std::ranges::fill(columns, 0.0f);
    return 0;
  }
  size_t found = 0;
  for (size_t at = 0; at < columns.size(); at += rows) {
    const std::span<float> column = columns.subspan(at, rows);
    bool left = normalise(column);
    for (int pass = 0; left && pass < 2; ++pass) {
      for (size_t before = 0; before < at; before += rows) {
        const float* const other = columns.data() + before;
        subtract(column.data(), other, product(column.data(), other, rows), rows);
      }
      const double length = std::sqrt(product(column.data(), column.data(), rows));
      left = length > kLeastLeft;
      if (left) scale(column, 1 / length);
    }
    if (left) {
      ++found;
    } else {
      std::ranges::fill(column, 0.0f);
    }
  }
  return found;
}

}  // namespace scant::codec
