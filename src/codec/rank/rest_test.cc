// What an encoder makes of a matrix whose factors are sent: the bytes and the residual of a step
// that is given the rest as a gradient and has kept nothing.
#include <cmath>
#include <gtest/gtest.h>
#include <memory>
#include <string>
#include <vector>

#include "codec/device/host_encoder.h"
#include "codec/rank/factors.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

constexpr Shape kShape{96, 300};
constexpr Range kPart{320, 27000};  // begins and ends within rows, and has a short last block
constexpr uint32_t kRank = 3;
constexpr Point kPoints[] = {{1.0, ValueKind::q1},
                             {1.0, ValueKind::q4},
                             {1.0, ValueKind::f32},
                             {1.0, ValueKind::bf16},
                             {0.05, ValueKind::q4},
                             {0.02, ValueKind::f32},
                             kKeepAll};
constexpr ResidualKind kKinds[] = {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8,
                                   ResidualKind::none};

std::string text(ResidualKind kind, Point point) {
  return std::string(name(kind)) + " residual, density " + std::to_string(point.density) + " " +
         name(point.values);
}

Encoder encoder_of(ResidualKind kind, Workspace& workspace) {
  Result<Encoder> made =
      Encoder::create(3, kShape, {.residual = kind, .decay = 0.75f, .seed = 5}, kPart);
  EXPECT_TRUE(made.ok());
  RecordBuffer record;
  for (uint64_t step = 0; step < 3; ++step) {  // keeps something
    const std::vector<float> gradient = draw_values(Family::normal, kPart.elements, step + 1);
    EXPECT_TRUE(made.value().encode(gradient, {1.0, ValueKind::q2}, workspace, record).ok());
  }
  return std::move(made).value();
}

struct Encoded {
  std::vector<std::byte> record;
  std::vector<std::byte> state;
  EncodeReport report;
};

void expect_equal(double got, double expected) {
  EXPECT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)))
      << got << ", " << expected;
}
void expect_same(const Encoded& got, const Encoded& expected) {
  EXPECT_EQ(got.record, expected.record);
  EXPECT_EQ(got.state, expected.state);
  EXPECT_EQ(got.report.bytes, expected.report.bytes);
  EXPECT_EQ(got.report.nonfinite, expected.report.nonfinite);
  expect_equal(got.report.energy, expected.report.energy);
  expect_equal(got.report.energy_left, expected.report.energy_left);
}

std::vector<std::byte> bytes_of(const RecordBuffer& record) {
  return {record.view().begin(), record.view().end()};
}

// Two steps: factors, coefficients as they are, the rest at `point`; `family`: of the gradient.
Encoded through_factors(ResidualKind kind, Point point, Family family, size_t threads,
                        Encoded* expected) {
  Workspace workspace;
  EXPECT_TRUE(workspace.start(threads));
  HostEncoder::Encoded done;
  RecordBuffer record;
  HostEncoder host(encoder_of(kind, workspace), workspace, record);
  std::vector<float> whole = draw_values(family, kPart.elements, 9);
  std::vector<float> sum(kPart.elements);
  host.kept_on_host()->read_residual(sum);
  for (size_t i = 0; i < sum.size(); ++i) {
    const float kept = 0.75f * sum[i];
    sum[i] = whole[i] + kept;
  }

  Factors factors(kShape, kPart, 7);
  EXPECT_TRUE(factors.set_rank(kRank));
  const MatrixSlice slice{host.kept_on_host(), kPart, whole};
  std::vector<float> left(factors.left_elements());
  EXPECT_TRUE(factors.project({&slice, 1}, workspace, left));
  if (family == Family::normal) {
    EXPECT_EQ(whole, sum);
  }
  factors.set_basis(left);
  std::vector<float> right(factors.right_elements());
  EXPECT_TRUE(factors.coefficients({&slice, 1}, workspace, right).ok());
  const Product rest = factors.product(right, -1);

  if (expected != nullptr) {
    Result<Encoder> plain = Encoder::restore(host.save().value());
    EXPECT_TRUE(plain.ok());
    plain.value().clear_residual();
    std::vector<float> elements(kPart.elements);
    rest.add(kPart.first, elements.size(), sum.data(), elements.data());
    const auto report = plain.value().encode(elements, point, workspace, record);
    EXPECT_TRUE(report.ok());
    *expected = {bytes_of(record), plain.value().save(), report.value()};
  }
  EXPECT_TRUE(host.begin_rest(whole, rest, point, workspace));
  const auto encoded = host.finish();
  EXPECT_TRUE(encoded.ok());
  return {bytes_of(record), host.save().value(), encoded.value().report};
}

TEST(Rest, IsEncodedAsItsElementsAre) {
  for (const ResidualKind kind : kKinds) {
    for (const Point point : kPoints) {
      for (const Family family : {Family::normal, Family::nonfinite}) {
        SCOPED_TRACE(text(kind, point) + ", family " + std::to_string(static_cast<int>(family)));
        Encoded expected;
        const Encoded got = through_factors(kind, point, family, 1, &expected);
        expect_same(got, expected);
        expect_same(through_factors(kind, point, family, 3, nullptr), expected);
      }
    }
  }
}

TEST(Rest, ErrorsChangeNothing) {
  Workspace workspace;
  ASSERT_TRUE(workspace.start(1));
  Encoder encoder = encoder_of(ResidualKind::f32, workspace);
  Factors factors(kShape, kPart, 7);
  ASSERT_TRUE(factors.set_rank(kRank));
  const Product rest = factors.product(std::vector<float>(factors.right_elements()), -1);
  std::vector<float> whole(kPart.elements);
  RecordBuffer record;
  const std::vector<std::byte> before = encoder.save();
  const auto refused = [&](std::span<float> values, Point point) {
    return encoder.encode_rest(values, rest, point, workspace, record).error().message;
  };
  EXPECT_EQ(refused(std::span(whole).first(64), {1.0, ValueKind::q1}),
            "gradient has 64 elements, the range has 27000");
  EXPECT_EQ(refused(whole, {2.0, ValueKind::q1}), "density must lie above 0 and up to 1, got 2");
  EXPECT_EQ(encoder.save(), before);
}

TEST(Rest, MomentumGoesWithNoFactors) {
  Workspace workspace;
  ASSERT_TRUE(workspace.start(1));
  Result<Encoder> encoder = Encoder::create(3, kShape, {.momentum = 0.9f}, kPart);
  ASSERT_TRUE(encoder.ok());
  Factors factors(kShape, kPart, 7);
  ASSERT_TRUE(factors.set_rank(kRank));
  std::vector<float> whole(kPart.elements, 1.0f);
  std::vector<float> left(factors.left_elements());
  const MatrixSlice slice{&encoder.value(), kPart, whole};
  const Result<void> projected = factors.project({&slice, 1}, workspace, left);
  ASSERT_FALSE(projected);
  EXPECT_EQ(projected.error().message,
            "tensor 3: its encoder has momentum, which goes with no factors");
  EXPECT_EQ(whole, std::vector<float>(kPart.elements, 1.0f));
  const Product rest = factors.product(std::vector<float>(factors.right_elements()), -1);
  RecordBuffer record;
  const auto encoded =
      encoder.value().encode_rest(whole, rest, {1.0, ValueKind::q1}, workspace, record);
  ASSERT_FALSE(encoded.ok());
  EXPECT_EQ(encoded.error().code, ErrorCode::invalid_argument);
}

}  // namespace
}  // namespace scant::codec
