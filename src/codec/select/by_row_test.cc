// Selection by row: ADTopk's where shares are whole numbers; where they are not, the density all
// the same, and no row before others.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "codec/select/select_reference.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::make;
using testing::step;

constexpr uint64_t kSeed = 20261130;

Point by_row(double density, ValueKind values = ValueKind::f32) { return {density, values, true}; }

std::vector<size_t> nonzero(std::span<const float> values) {
  std::vector<size_t> positions;
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] != 0) positions.push_back(i);
  return positions;
}

// Rows whose sizes differ, so that one threshold would take most from a few.
std::vector<float> uneven_rows(Shape shape, uint64_t stream) {
  auto values = gaussians(shape.elements(), kSeed, stream);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] *= std::exp2(static_cast<float>(i / shape.columns % 8));
  return values;
}

TEST(ByRow, IsTheReferenceWhereSharesAreWhole) {
  Workspace workspace;
  const Shape shape{60, 1000};  // one block, so that no row is cut
  Encoder encoder = make(shape);
  std::vector<float> wanted(shape.elements());
  for (uint64_t t = 0; t < 5; ++t) {
    const auto gradient = uneven_rows(shape, t);
    encoder.read_residual(wanted);
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += gradient[i];
    const auto stepped = step(encoder, gradient, by_row(0.01), workspace);
    EXPECT_EQ(nonzero(stepped.decoded), select_row_top_k(wanted, shape.columns, 0.01)) << t;
    for (size_t i = 0; i < wanted.size(); ++i) wanted[i] -= stepped.decoded[i];
    std::vector<float> kept(wanted.size());
    encoder.read_residual(kept);
    ASSERT_EQ(kept, wanted) << t;
  }
}

// Rows that a range or its blocks cut: what is there of each sends its share, its largest.
TEST(ByRow, PiecesOfRowsSendTheirShares) {
  Workspace workspace;
  const Shape shape{200, 1000};
  const Range range{576, 150000};
  auto made = Encoder::create(7, shape, {.residual = ResidualKind::none}, range);
  ASSERT_TRUE(made.ok());
  const auto all = uneven_rows(shape, 1);
  const std::span<const float> gradient = std::span(all).subspan(range.first, range.elements);
  const auto sent = step(made.value(), gradient, by_row(0.0125), workspace).decoded;
  uint64_t to = 0;
  for (uint64_t from = 0; from < sent.size(); from = to) {
    to = std::min({uint64_t{sent.size()}, (from / kSparseBlockElements + 1) * kSparseBlockElements,
                   from + 1000 - (range.first + from) % 1000});
    const auto positions = nonzero(std::span(sent).subspan(from, to - from));
    EXPECT_NEAR(static_cast<double>(positions.size()), 0.0125 * static_cast<double>(to - from), 1);
    EXPECT_EQ(positions, select_top_k(gradient.subspan(from, to - from), positions.size())) << from;
  }
}

// Below one entry a row there is no floor of one: rows take turns by chance.
TEST(ByRow, HoldsTheDensityWithoutAFloor) {
  Workspace workspace;
  for (const Shape shape : {Shape{700, 27}, Shape{300, 700}, Shape{3, 100003}}) {
    Encoder encoder = make(shape, {.residual = ResidualKind::none});
    constexpr uint64_t kSteps = 40;
    std::vector<double> of_row(shape.rows);
    double sent = 0;
    for (uint64_t t = 0; t < kSteps; ++t) {
      const auto stepped = step(encoder, uneven_rows(shape, t), by_row(0.01), workspace);
      sent += static_cast<double>(stepped.report.entries);
      for (const size_t at : nonzero(stepped.decoded)) of_row[at / shape.columns] += 1;
    }
    const double wanted = 0.01 * static_cast<double>(shape.elements()) * kSteps;
    EXPECT_NEAR(sent / wanted, 1, 0.01) << shape.rows;
    const double fair = wanted / static_cast<double>(shape.rows);
    const auto [least, most] = std::ranges::minmax(of_row);
    EXPECT_GE(least, fair - 3 * std::sqrt(fair) - 3) << shape.rows;
    EXPECT_LE(most, fair + 3 * std::sqrt(fair) + 3) << shape.rows;
  }
}

TEST(ByRow, SendsNoZerosAndEveryNan) {
  Workspace workspace;
  const Shape shape{100, 500};
  auto gradient = gaussians(shape.elements(), kSeed, 1);
  std::fill_n(gradient.begin() + 500, 500, 0.0f);
  for (size_t i = 1000; i < 1020; ++i) gradient[i] = std::numeric_limits<float>::quiet_NaN();
  Encoder encoder = make(shape);
  const auto stepped = step(encoder, gradient, by_row(0.01, ValueKind::q4), workspace);
  EXPECT_EQ(stepped.report.nonfinite, 20u);
  EXPECT_EQ(stepped.report.entries, 98u * 5 + 20);
  EXPECT_TRUE(std::all_of(stepped.decoded.begin() + 500, stepped.decoded.begin() + 1000,
                          [](float value) { return value == 0; }));
}

TEST(ByRow, TheBytesDoNotDependOnThreadsAndPointsMayAlternate) {
  const Shape shape{300, 700};
  std::vector<std::vector<std::byte>> bytes;
  for (const size_t workers : {size_t{1}, size_t{3}}) {
    Workspace workspace;
    ASSERT_TRUE(workspace.start(workers).ok());
    Encoder encoder = make(shape, {.residual = ResidualKind::bf16});
    std::vector<std::byte> all;
    for (uint64_t t = 0; t < 6; ++t) {
      const Point point{0.01, ValueKind::q4, t % 3 != 2};
      const auto stepped = step(encoder, uneven_rows(shape, t), point, workspace);
      EXPECT_NEAR(static_cast<double>(stepped.report.entries), 2100, 25) << t;
      all.insert(all.end(), stepped.bytes.begin(), stepped.bytes.end());
    }
    bytes.push_back(all);
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

}  // namespace
}  // namespace scant::codec
