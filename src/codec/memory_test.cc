// What encoders do when memory runs out: an error before anything has changed, whichever of their
// allocations it is.
#include <gtest/gtest.h>
#include <limits>

#include "base/testing/failing_allocations.h"
#include "codec/rate/probe.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using base::testing::FailingAllocations;
using Which = FailingAllocations::Which;
using testing::gaussians;
using testing::make;
using testing::step;

constexpr uint64_t kSeed = 20261130;

// Encodes with fresh memory, of which the allocations from `number` on fail.
Result<EncodeReport> encode_short_of_memory(Encoder& encoder, std::span<const float> gradient,
                                            Point point, uint64_t number, Which which,
                                            std::vector<std::byte>& bytes) {
  Workspace workspace;
  RecordBuffer record;
  const FailingAllocations failing(number, which);
  auto report = encoder.encode(gradient, point, workspace, record);
  const Bytes view = std::as_const(record).view();
  if (report) bytes.assign(view.begin(), view.end());
  return report;
}

void expect_no_harm(ResidualKind residual, Point point, bool with_infinities, Which which) {
  const Shape shape{3, 50001};
  const EncoderOptions options{.residual = residual, .momentum = 0.5f, .seed = kSeed};
  Encoder encoder = make(shape, options);
  Encoder reference = make(shape, options);
  Workspace workspace;
  size_t refused = 0;
  for (uint64_t t = 0; t < 3; ++t) {
    std::vector<float> gradient = gaussians(shape.elements(), kSeed, t);
    if (with_infinities) gradient[70'000] = std::numeric_limits<float>::infinity();
    const std::vector<std::byte> before = encoder.save();
    std::vector<std::byte> bytes;
    for (uint64_t number = 0;; ++number) {
      const auto report = encode_short_of_memory(encoder, gradient, point, number, which, bytes);
      if (report) break;
      ++refused;
      EXPECT_EQ(report.error().code, ErrorCode::resource);
      ASSERT_EQ(encoder.save(), before) << "allocation " << number;
    }
    EXPECT_EQ(bytes, step(reference, gradient, point, workspace).bytes);
    EXPECT_EQ(encoder.save(), reference.save());
  }
  EXPECT_GE(refused, 6u);  // the workspace's and the spare record's, in each step
}

TEST(EncoderMemory, WhatFailsChangesNothingAndTheNextTryGivesTheSameRecord) {
  for (const Which which : {Which::one, Which::from_there_on}) {
    for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
      for (const Point point : {Point{1.0, ValueKind::q4}, Point{1.0, ValueKind::f32},
                                Point{0.01, ValueKind::q4}, Point{0.01, ValueKind::f32, true}}) {
        for (const bool with_infinities : {false, true}) {
          SCOPED_TRACE(std::string(name(residual)) + " " + name(point.values) + " at " +
                       std::to_string(point.density) + (with_infinities ? " with infinities" : ""));
          expect_no_harm(residual, point, with_infinities, which);
        }
      }
    }
  }
}

TEST(EncoderMemory, NoneOfItForAResidualIsAnErrorThatNamesTheElements) {
  const EncoderOptions options{.residual = ResidualKind::i8, .momentum = 0.9f};
  for (uint64_t number = 0; number < 3; ++number) {  // levels, scales, velocity
    const FailingAllocations failing(number);
    const auto made = Encoder::create(1, {2, 1000}, options);
    ASSERT_FALSE(made.ok()) << number;
    EXPECT_EQ(made.error().code, ErrorCode::resource);
  }
  const FailingAllocations failing(3);
  EXPECT_TRUE(Encoder::create(1, {2, 1000}, options).ok());
  const auto huge = Encoder::create(1, {1, uint64_t{1} << 62}, options);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.error().code, ErrorCode::resource);
  EXPECT_NE(huge.error().message.find(std::to_string(uint64_t{1} << 62)), std::string::npos);
}

TEST(EncoderMemory, DecodingAndProbingReportIt) {
  const Shape shape{1, 10'000};
  Encoder encoder = make(shape);
  Workspace workspace;
  const auto gradient = gaussians(shape.elements(), kSeed, 1);
  const auto stepped = step(encoder, gradient, {0.1, ValueKind::q8}, workspace);
  const auto record = RecordView::parse(stepped.bytes);
  ASSERT_TRUE(record.ok());
  std::vector<float> out(shape.elements(), 1.0f);
  {
    Workspace empty;
    const FailingAllocations failing(0);
    const auto added = accumulate({&record.value(), 1}, encoder.tensor(), shape, 0, out, 1, empty);
    ASSERT_FALSE(added.ok());
    EXPECT_EQ(added.error().code, ErrorCode::resource);
  }
  EXPECT_EQ(out, std::vector<float>(shape.elements(), 1.0f));
  for (uint64_t number = 0; number < 2; ++number) {
    Workspace empty;
    const FailingAllocations failing(number);
    const auto curve = probe(encoder, gradient, default_points(), empty);
    ASSERT_FALSE(curve.ok()) << number;
    EXPECT_EQ(curve.error().code, ErrorCode::resource);
  }
}

}  // namespace
}  // namespace scant::codec
