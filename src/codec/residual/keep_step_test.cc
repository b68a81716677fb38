// Steps that send nothing: all is kept, as often as residuals round.
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <vector>

#include "codec/encoder.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

constexpr Shape kShape{3, 3000};  // blocks of 4096, 4096 and 808 elements

Encoder encoder_of(const EncoderOptions& options) {
  Result<Encoder> made = Encoder::create(1, kShape, options);
  EXPECT_TRUE(made.ok());
  return std::move(made).value();
}
std::vector<float> residual_of(const Encoder& encoder) {
  std::vector<float> all(kShape.elements());
  encoder.read_residual(all);
  return all;
}

TEST(KeepStep, SendsNothingAndKeepsAll) {
  Workspace workspace;
  ASSERT_TRUE(workspace.start(2));
  Encoder encoder = encoder_of({.decay = 0.5f});
  const std::vector<float> first = draw_values(Family::normal, kShape.elements(), 1);
  const std::vector<float> second = draw_values(Family::normal, kShape.elements(), 2);
  RecordBuffer record;
  ASSERT_TRUE(encoder.encode(first, kKeepAll, workspace, record).ok());
  EXPECT_EQ(residual_of(encoder), first);
  const auto report = encoder.encode(second, kKeepAll, workspace, record);
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(record.view().empty());
  EXPECT_EQ(report.value().bytes, 0u);
  EXPECT_EQ(report.value().entries, 0u);
  double energy = 0;
  const std::vector<float> kept = residual_of(encoder);
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ(kept[i], second[i] + 0.5f * first[i]);
    energy += static_cast<double>(kept[i]) * kept[i];
  }
  EXPECT_NEAR(report.value().energy, energy, 1e-4 * energy);
  EXPECT_EQ(report.value().energy_left, report.value().energy);
  EXPECT_EQ(encoder.step(), 2u);
}

TEST(KeepStep, RoundsWithoutADrift) {
  for (const ResidualKind kind : {ResidualKind::bf16, ResidualKind::i8}) {
    Workspace workspace;
    Encoder encoder = encoder_of({.residual = kind});
    const std::vector<float> gradient(kShape.elements(), 0.3f);
    RecordBuffer record;
    for (int step = 0; step < 200; ++step) {
      ASSERT_TRUE(encoder.encode(gradient, kKeepAll, workspace, record).ok());
    }
    double sum = 0;
    for (const float value : residual_of(encoder)) sum += value;
    // 9000 random walks of 200 roundings by at most 1/127 of 60.
    EXPECT_NEAR(sum / static_cast<double>(kShape.elements()), 60.0, 0.25);
  }
}

TEST(KeepStep, WhatIsNotFiniteIsCountedAndGone) {
  Workspace workspace;
  Encoder encoder = encoder_of({.momentum = 0.9f});
  std::vector<float> gradient = draw_values(Family::normal, kShape.elements(), 1);
  gradient[5000] = std::numeric_limits<float>::quiet_NaN();
  gradient[8999] = std::numeric_limits<float>::infinity();
  RecordBuffer record;
  const auto report = encoder.encode(gradient, kKeepAll, workspace, record);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report.value().nonfinite, 2u);
  gradient[5000] = gradient[8999] = 0;
  EXPECT_EQ(residual_of(encoder), gradient);
  ASSERT_TRUE(
      encoder.encode(std::vector<float>(gradient.size()), kKeepAll, workspace, record).ok());
  for (const float value : residual_of(encoder)) EXPECT_TRUE(std::isfinite(value));
}

}  // namespace
}  // namespace scant::codec
