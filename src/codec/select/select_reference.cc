#include "codec/select/select_reference.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/rng.h"
#include "codec/quantise/rounding.h"

namespace scant::codec {
namespace {

// The `count` positions below `elements` that come first in the order `before`, ascending.
template <typename Before>
std::vector<size_t> first_in_order(size_t elements, size_t count, const Before& before) {
  std::vector<size_t> positions(elements);
  std::iota(positions.begin(), positions.end(), size_t{0});
  count = std::min(count, elements);
  const auto end = positions.begin() + static_cast<std::ptrdiff_t>(count);
  std::nth_element(positions.begin(), end, positions.end(), before);
  positions.resize(count);
  std::sort(positions.begin(), positions.end());
  return positions;
}

}  // namespace

std::vector<size_t> select_top_k(std::span<const float> values, size_t count) {
  return first_in_order(values.size(), count, [&](size_t a, size_t b) {
    const uint32_t of_a = magnitude_bits(values[a]);
    const uint32_t of_b = magnitude_bits(values[b]);
    return of_a != of_b ? of_a > of_b : a < b;
  });
}

std::vector<size_t> select_row_top_k(std::span<const float> values, size_t columns,
                                     double density) {
  SCANT_CHECK(columns > 0 && values.size() % columns == 0 && density > 0 && density <= 1);
  const auto wanted = static_cast<size_t>(std::floor(density * static_cast<double>(columns)));
  std::vector<size_t> positions;
  for (size_t row = 0; row < values.size(); row += columns) {
    for (const size_t column :
         select_top_k(values.subspan(row, columns), std::max<size_t>(wanted, 1)))
      positions.push_back(row + column);
  }
  return positions;
}

std::vector<size_t> select_random_k(size_t elements, size_t count, uint64_t seed, uint64_t step) {
  std::vector<uint64_t> draws(elements);
  for (size_t i = 0; i < elements; ++i) draws[i] = base::random_at(seed, step, i);
  return first_in_order(elements, count, [&](size_t a, size_t b) {
    return draws[a] != draws[b] ? draws[a] < draws[b] : a < b;
  });
}

std::vector<size_t> select_threshold(std::span<const float> values, float threshold) {
  std::vector<size_t> positions;
  for (size_t i = 0; i < values.size(); ++i)
    if (!(std::fabs(values[i]) < threshold)) positions.push_back(i);
  return positions;
}

}  // namespace scant::codec
