// What directions hold: against matrices whose strengths are known.
#include "codec/rate/spectrum.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "codec/rank/basis.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

// Directions of these strengths, and noise of 0.01 an element.
std::vector<float> matrix_of(Shape shape, const std::vector<float>& strengths, uint64_t seed) {
  std::vector<float> all = draw_values(Family::normal, shape.elements(), seed);
  std::vector<float> left;
  std::vector<float> right;
  for (size_t k = 0; k < strengths.size(); ++k) {
    const auto more = draw_values(Family::normal, shape.rows, seed + 2 * k + 1);
    const auto other = draw_values(Family::normal, shape.columns, seed + 2 * k + 2);
    left.insert(left.end(), more.begin(), more.end());
    right.insert(right.end(), other.begin(), other.end());
  }
  orthonormalise(left, shape.rows);
  orthonormalise(right, shape.columns);
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t k = 0; k < strengths.size(); ++k) {
      all[i] += strengths[k] * left[k * shape.rows + i / shape.columns] *
                right[k * shape.columns + i % shape.columns];
    }
  }
  return all;
}

Spectrum spectrum_of(Shape shape, std::vector<float>& values) {
  Workspace workspace;
  const Range range{0, shape.elements()};
  const MatrixSlice slice{.range = range, .gradient = values};
  const Result<Spectrum> found = spectrum(shape, range, {&slice, 1}, workspace);
  EXPECT_TRUE(found.ok());
  return found.value();
}

TEST(Spectrum, IsThatOfAKnownMatrix) {
  const Shape shape{300, 200};
  std::vector<float> values = matrix_of(shape, {10, 5, 2}, 1);
  const Spectrum found = spectrum_of(shape, values);
  ASSERT_EQ(found.held.size(), kSpectrumRank + 1);
  EXPECT_EQ(found.held[0], 0);
  EXPECT_NEAR(found.held[1], 100, 2);
  EXPECT_NEAR(found.held[2], 125, 2);
  EXPECT_NEAR(found.held[3], 129, 2);
  for (size_t r = 1; r < found.held.size(); ++r) EXPECT_GE(found.held[r], found.held[r - 1]);
  EXPECT_NEAR(found.share(2), 125 / found.energy, 0.02);
  EXPECT_EQ(found.share(kSpectrumRank), found.share(kSpectrumRank + 100));
  EXPECT_LE(found.share(kSpectrumRank), 1);
}

TEST(Spectrum, ASampleTellsOfALargeMatrix) {
  const Shape shape{3000, 1500};
  std::vector<float> values = matrix_of(shape, {100, 50}, 1);
  const Spectrum found = spectrum_of(shape, values);
  double energy = 0;
  for (const float value : values) energy += static_cast<double>(value) * value;
  EXPECT_NEAR(found.share(1), 10000 / energy, 0.05);
  EXPECT_NEAR(found.share(2), 12500 / energy, 0.05);
}

TEST(Spectrum, NoiseHasNoDirections) {
  const Shape shape{400, 400};
  std::vector<float> values = draw_values(Family::normal, shape.elements(), 1);
  EXPECT_LT(spectrum_of(shape, values).share(4), 0.05);
}

TEST(Spectrum, OfNothingIsNothing) {
  const Shape shape{40, 30};
  std::vector<float> values(shape.elements(), 0.0f);
  EXPECT_EQ(spectrum_of(shape, values).share(4), 0);
  std::ranges::fill(values, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(spectrum_of(shape, values).share(4), 0);
}

}  // namespace
}  // namespace scant::codec
