// Estimates against the truth: the bytes and the energy of real records of the same gradients.
#include "codec/rate/probe.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numbers>

#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::printed_rng;
using Values = std::vector<float>;

double gaussian(base::Rng& rng) {
  const double radius = std::sqrt(-2 * std::log(1 - rng.uniform()));
  return radius * std::cos(2 * std::numbers::pi * rng.uniform());
}

Values gaussian_values(base::Rng& rng, size_t n) {
  Values values(n);
  for (float& value : values) value = static_cast<float>(1e-3 * gaussian(rng));
  return values;
}

// Student's t with five degrees of freedom: tails of gradients.
Values student_values(base::Rng& rng, size_t n) {
  Values values(n);
  for (float& value : values) {
    double squares = 0;
    for (int i = 0; i < 5; ++i) squares += std::pow(gaussian(rng), 2);
    value = static_cast<float>(gaussian(rng) / std::sqrt(squares / 5));
  }
  return values;
}

// Rows whose sizes differ: log-normal, half of them within a factor of 1.4 of the median.
Values row_values(base::Rng& rng, size_t n, size_t columns) {
  Values values(n);
  double size = 1;
  for (size_t i = 0; i < n; ++i) {
    if (i % columns == 0) size = std::exp(0.5 * gaussian(rng));
    values[i] = static_cast<float>(size * gaussian(rng));
  }
  return values;
}

Encoder encoder_for(size_t n, size_t columns, const EncoderOptions& options = {}) {
  return Encoder::create(1, {n / columns, columns}, options).value();
}

struct Tolerance {
  double total = 0;  // of the tensor's energy, relative
  double share = 0;  // of that energy, absolute
  double bytes = 0;  // relative, for densities of 0.005 and more
};

// Every point of the grid against a first encode. Prints the largest errors.
void compare(const Values& gradient, size_t columns, const Tolerance& tolerance,
             const EncoderOptions& options = {}) {
  Workspace workspace;
  RecordBuffer record;
  const auto curve =
      probe(encoder_for(gradient.size(), columns, options), gradient, default_points(), workspace);
  ASSERT_TRUE(curve.ok());
  ASSERT_EQ(curve.value().points.size(), default_points().size());
  Tolerance worst;
  for (const CurvePoint& point : curve.value().points) {
    Encoder encoder = encoder_for(gradient.size(), columns, options);
    const auto report = encoder.encode(gradient, point.point, workspace, record);
    ASSERT_TRUE(report.ok());
    const double energy = report.value().energy;
    const double share = std::max(0.0, energy - report.value().energy_left) / energy;
    const double share_error = std::abs(point.energy / curve.value().energy - share);
    const auto bytes = static_cast<double>(report.value().bytes);
    const double bytes_error = std::abs(point.bytes / bytes - 1);
    const double total_error = std::abs(curve.value().energy / energy - 1);
    const std::string at =
        "density " + std::to_string(point.point.density) + ", " + name(point.point.values);
    EXPECT_LE(total_error, tolerance.total) << at;
    EXPECT_LE(share_error, tolerance.share) << at << ": kept " << share;
    if (point.point.density >= 0.005) {
      EXPECT_LE(bytes_error, tolerance.bytes) << at << ": " << bytes;
      worst.bytes = std::max(worst.bytes, bytes_error);
    }
    worst.total = std::max(worst.total, total_error);
    worst.share = std::max(worst.share, share_error);
  }
  std::printf("errors up to: energy %.4f, share kept %.4f, bytes %.4f\n", worst.total, worst.share,
              worst.bytes);
}

// 8192 of 1 M elements are looked at.
constexpr size_t kElements = 1 << 20;
constexpr size_t kColumns = 1 << 10;

TEST(Probe, Gaussian) {
  base::Rng rng = printed_rng(31);
  compare(gaussian_values(rng, kElements), kColumns, {.total = 0.06, .share = 0.02, .bytes = 0.05});
}

TEST(Probe, HeavyTails) {
  base::Rng rng = printed_rng(32);
  compare(student_values(rng, kElements), kColumns, {.total = 0.15, .share = 0.05, .bytes = 0.05});
}

// 32 pieces see 32 of 1024 rows: the energy of log-normal rows then has a standard deviation of
// 23 %, and how close together the entries of the large rows lie is known as roughly.
TEST(Probe, RowsOfDifferentSizes) {
  base::Rng rng = printed_rng(33);
  compare(row_values(rng, kElements, kColumns), kColumns,
          {.total = 0.5, .share = 0.1, .bytes = 0.12});
}

TEST(Probe, StochasticRounding) {
  base::Rng rng = printed_rng(34);
  compare(gaussian_values(rng, kElements / 4), kColumns,
          {.total = 0.06, .share = 0.03, .bytes = 0.05}, {.stochastic = true});
}

// Looked at as a whole. A first step sends whole entries only, an estimate is the mean of many.
TEST(Probe, SmallTensors) {
  base::Rng rng = printed_rng(35);
  for (const size_t n : {8192u, 5000u, 4099u, 1000u, 255u})
    compare(gaussian_values(rng, n), n, {.total = 1e-5, .share = 0.025, .bytes = 0.05});
}

// Every element of the tensor is equally likely to be seen, the last one too.
TEST(Probe, SizesAroundThatOfASample) {
  base::Rng rng = printed_rng(36);
  for (const size_t n : {8193u, 8256u, 8447u, 8448u, 16411u, 65537u})
    compare(gaussian_values(rng, n), n, {.total = 0.08, .share = 0.03, .bytes = 0.05});
}

TEST(Probe, SeesTheResidual) {
  base::Rng rng = printed_rng(37);
  const Values gradient = gaussian_values(rng, kElements);
  Encoder encoder = encoder_for(kElements, kColumns, {.residual = ResidualKind::i8});
  Workspace workspace;
  RecordBuffer record;
  ASSERT_TRUE(encoder.encode(gradient, {0.01, ValueKind::q4}, workspace, record).ok());
  const std::vector<Point> points = {{0.01, ValueKind::q4}};
  const auto first = probe(encoder, gradient, points, workspace);
  const auto again = probe(encoder, gradient, points, workspace);
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_EQ(first.value().energy, again.value().energy);  // it changes nothing
  EXPECT_EQ(first.value().points[0].energy, again.value().points[0].energy);
  const auto report = encoder.encode(gradient, points[0], workspace, record);
  ASSERT_TRUE(report.ok());
  EXPECT_NEAR(first.value().energy / report.value().energy, 1, 0.06);
  EXPECT_NEAR(first.value().points[0].energy / report.value().energy,
              1 - report.value().energy_left / report.value().energy, 0.02);
}

void expect_finite(const Curve& curve) {
  EXPECT_TRUE(std::isfinite(curve.energy));
  for (const CurvePoint& point : curve.points) {
    EXPECT_TRUE(std::isfinite(point.bytes) && point.bytes >= 64) << point.point.density;
    EXPECT_TRUE(std::isfinite(point.energy)) << point.point.density;
    EXPECT_GE(point.energy, 0);
    EXPECT_LE(point.energy, curve.energy * (1 + 1e-5)) << point.point.density;
  }
}

Curve curve_of(const Values& gradient) {
  Workspace workspace;
  const size_t columns = std::max<size_t>(gradient.size(), 1);
  const auto curve =
      probe(encoder_for(gradient.size(), columns), gradient, default_points(), workspace);
  EXPECT_TRUE(curve.ok());
  expect_finite(curve.value());
  return curve.value();
}

TEST(Probe, ZerosKeepNothingAndCostTheirHeadersWhenSparse) {
  for (const size_t n : {300u, 20000u, 200000u}) {
    const Curve curve = curve_of(Values(n));
    EXPECT_EQ(curve.energy, 0);
    const size_t blocks = (n + kSparseBlockElements - 1) / kSparseBlockElements;
    for (const CurvePoint& point : curve.points) {
      EXPECT_EQ(point.energy, 0);
      const double headers = 64.0 + 12.0 * static_cast<double>(blocks);
      if (point.point.density < 1) {
        EXPECT_EQ(point.bytes, headers);
      } else {
        EXPECT_EQ(point.bytes, static_cast<double>(dense_record_bytes(n, point.point.values)));
      }
    }
  }
}

TEST(Probe, EmptyTensor) {
  const Curve curve = curve_of({});
  EXPECT_EQ(curve.energy, 0);
  for (const CurvePoint& point : curve.points) EXPECT_EQ(point.bytes, 64);
}

TEST(Probe, NanAndInfinityCountAsZeros) {
  base::Rng rng = printed_rng(38);
  for (const size_t n : {5000u, 40000u}) {
    Values values = gaussian_values(rng, n);
    Values zeros = values;
    for (size_t i = 0; i < n; i += 7) {
      values[i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -HUGE_VALF;
      zeros[i] = 0;
    }
    const Curve curve = curve_of(values);
    const Curve expected = curve_of(zeros);
    EXPECT_EQ(curve.energy, expected.energy);
    for (size_t p = 0; p < curve.points.size(); ++p) {
      EXPECT_EQ(curve.points[p].energy, expected.points[p].energy);
      EXPECT_EQ(curve.points[p].bytes, expected.points[p].bytes);
    }
    EXPECT_EQ(curve_of(Values(n, std::numeric_limits<float>::quiet_NaN())).energy, 0);
  }
}

TEST(Probe, SquaresBeyondTheRangeOfFloats) {
  base::Rng rng = printed_rng(39);
  const Values values = gaussian_values(rng, 30000);
  const Curve plain = curve_of(values);
  for (const float factor : {0x1p-90f, 0x1p120f}) {
    Values scaled = values;
    for (float& value : scaled) value *= factor;
    const Curve curve = curve_of(scaled);
    const double squared = std::pow(static_cast<double>(factor), 2);
    EXPECT_NEAR(curve.energy / squared / plain.energy, 1, 1e-4);
    for (size_t p = 0; p < curve.points.size(); ++p) {
      EXPECT_NEAR(curve.points[p].energy / squared / plain.energy,
                  plain.points[p].energy / plain.energy, 1e-4);
    }
  }
  curve_of(Values(3000, std::numeric_limits<float>::max()));
  curve_of(Values(3000, std::numeric_limits<float>::denorm_min()));
}

// One value holds nearly all of the energy: no density loses it, and the others are told apart by
// nothing but how many are sent.
TEST(Probe, OneValueFarAboveAllOthers) {
  base::Rng rng = printed_rng(41);
  Values values = gaussian_values(rng, 8192);
  values[5000] = 1e12f;
  const Curve curve = curve_of(values);
  for (const CurvePoint& point : curve.points) {
    if (point.point.values == ValueKind::f32) {
      EXPECT_NEAR(point.energy / curve.energy, 1, 1e-6) << point.point.density;
    }
    const double bytes = expected_record_bytes(values.size(), point.point);
    EXPECT_NEAR(point.bytes / bytes, 1, 0.06) << point.point.density;
  }
}

// All groups but each second, fourth or eighth hold nothing: the groups that are quantised must not
// all be of these.
TEST(Probe, MostGroupsAreZero) {
  base::Rng rng = printed_rng(42);
  for (const size_t period : {2u, 4u, 8u}) {
    Values values = gaussian_values(rng, 8192);
    for (size_t i = 0; i < values.size(); ++i)
      if (i / kGroupElements % period != 1) values[i] = 0;
    compare(values, values.size(), {.total = 1e-5, .share = 0.02, .bytes = 0.05});
  }
}

// Of equal values any share keeps that share of the energy.
TEST(Probe, OneRepeatedValue) {
  for (const size_t n : {4096u, 300000u}) {
    const Curve curve = curve_of(Values(n, -0.75f));
    EXPECT_NEAR(curve.energy, 0.5625 * static_cast<double>(n), 1e-3 * static_cast<double>(n));
    for (const CurvePoint& point : curve.points)
      EXPECT_NEAR(point.energy / curve.energy, point.point.density, 0.01 * point.point.density);
  }
}

TEST(Probe, PointsComeBackInTheirOrder) {
  base::Rng rng = printed_rng(40);
  const Values gradient = gaussian_values(rng, 100000);
  const std::vector<Point> points = {{0.02, ValueKind::q2}, {1, ValueKind::f16},
                                     {0.5, ValueKind::q8},  {0.02, ValueKind::f16},
                                     {1, ValueKind::q1},    {1e-9, ValueKind::f32}};
  Workspace workspace;
  const Encoder encoder = encoder_for(gradient.size(), 100);
  const auto curve = probe(encoder, gradient, points, workspace);
  ASSERT_TRUE(curve.ok());
  expect_finite(curve.value());
  for (size_t p = 0; p < points.size(); ++p) {
    EXPECT_EQ(curve.value().points[p].point, points[p]);
    const auto alone = probe(encoder, gradient, {&points[p], 1}, workspace);
    EXPECT_EQ(alone.value().points[0].energy, curve.value().points[p].energy);
    EXPECT_EQ(alone.value().points[0].bytes, curve.value().points[p].bytes);
  }
}

TEST(Probe, RefusesWrongSizesAndPoints) {
  Workspace workspace;
  const Encoder encoder = encoder_for(128, 128);
  const Values gradient(128);
  const auto refused = [&](std::span<const float> values, Point point, const char* part) {
    const std::vector<Point> points = {{1, ValueKind::f32}, point};
    const auto got = probe(encoder, values, points, workspace);
    ASSERT_FALSE(got.ok()) << part;
    EXPECT_EQ(got.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(got.error().message.find(part), std::string::npos) << got.error().message;
  };
  refused(Values(127), {1, ValueKind::f32}, "127 elements");
  for (const double density : {0.0, -0.5, 1.01, std::numeric_limits<double>::quiet_NaN()})
    refused(gradient, {density, ValueKind::q4}, "point 1");
  refused(gradient, {0.5, static_cast<ValueKind>(8)}, "point 1");
  const auto none = probe(encoder, gradient, {}, workspace);
  EXPECT_TRUE(none.ok() && none.value().points.empty());
}

}  // namespace
}  // namespace scant::codec
