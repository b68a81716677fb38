// What a step adds up before anything is selected: gradient, decayed residual and velocity (Lin et
// al. 2018), for every residual and kind of step; and what NaN, new slices and a fresh start do to
// the velocity.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::make;
using testing::step;

constexpr uint64_t kSeed = 20261122;
constexpr float kDecay = 0.5f;
constexpr float kMomentum = 0.75f;
constexpr ResidualKind kResiduals[] = {ResidualKind::none, ResidualKind::f32, ResidualKind::bf16,
                                       ResidualKind::i8};

std::vector<float> residual_of(const Encoder& encoder) {
  std::vector<float> kept(encoder.range().elements);
  encoder.read_residual(kept);
  return kept;
}

// The largest error that storing these values may make of one.
float storing_error(ResidualKind residual, const std::vector<float>& values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return residual == ResidualKind::i8     ? largest * 1.02f / 127
         : residual == ResidualKind::bf16 ? largest / 128
                                          : 0;
}

void expect_peeked(const Encoder& encoder, const std::vector<float>& gradient,
                   const std::vector<float>& sum) {
  std::vector<float> seen(gradient.size());
  for (size_t at = 0; at < seen.size(); at += 1024) {
    const size_t n = std::min<size_t>(1024, seen.size() - at);
    encoder.peek(at, gradient.data() + at, std::span(seen).subspan(at, n));
  }
  ASSERT_EQ(seen, sum);
}

// velocity' = gradient + momentum * velocity; sum = velocity' + decay * residual; what is not sent
// is kept; what a sparse step sent starts without velocity.
TEST(Momentum, EveryKindOfStepAddsUpTheSame) {
  Workspace workspace;
  const Range range{192, 9001};
  for (const ResidualKind residual : kResiduals) {
    for (const Point point :
         {Point{1.0, ValueKind::f32}, Point{1.0, ValueKind::bf16}, Point{1.0, ValueKind::q4},
          Point{0.1, ValueKind::f32}, Point{0.1, ValueKind::q4}}) {
      SCOPED_TRACE(std::string(name(residual)) + ", " + name(point.values) + " at " +
                   std::to_string(point.density));
      const EncoderOptions options{.residual = residual, .decay = kDecay, .momentum = kMomentum};
      Encoder encoder = std::move(Encoder::create(7, {1, 20000}, options, range)).value();
      std::vector<float> velocity(range.elements);
      for (uint64_t t = 0; t < 4; ++t) {
        const auto gradient = gaussians(range.elements, kSeed, t);
        auto sum = residual_of(encoder);
        for (size_t i = 0; i < sum.size(); ++i) {
          velocity[i] = gradient[i] + kMomentum * velocity[i];
          sum[i] = velocity[i] + kDecay * sum[i];
        }
        expect_peeked(encoder, gradient, sum);
        const auto sent = step(encoder, gradient, point, workspace).decoded;
        auto left = sum;
        for (size_t i = 0; i < sum.size(); ++i) {
          left[i] = residual == ResidualKind::none ? 0 : sum[i] - sent[i];
          if (point.density < 1 && sent[i] != 0) velocity[i] = 0;
        }
        const auto kept = residual_of(encoder);
        const float slack = storing_error(residual, left);
        for (size_t i = 0; i < sum.size(); ++i) ASSERT_NEAR(kept[i], left[i], slack) << i;
      }
    }
  }
}

// Velocity that kept them would send them again in every later step.
TEST(Momentum, NanAndInfinitiesAreSentOnce) {
  Workspace workspace;
  constexpr size_t kElements = 9000;
  for (const ResidualKind residual : kResiduals) {
    for (const double density : {1.0, 0.1}) {
      for (const bool mask : {true, false}) {
        SCOPED_TRACE(std::string(name(residual)) + " at " + std::to_string(density) +
                     (mask ? ", masked" : ""));
        const Point point{density, ValueKind::q4};
        Encoder encoder = make(
            {1, kElements}, {.residual = residual, .momentum = kMomentum, .mask_momentum = mask});
        step(encoder, gaussians(kElements, kSeed, 0), point, workspace);
        auto gradient = gaussians(kElements, kSeed, 1);
        gradient[3] = std::numeric_limits<float>::quiet_NaN();
        gradient[5000] = -std::numeric_limits<float>::infinity();
        EXPECT_EQ(step(encoder, gradient, point, workspace).report.nonfinite, 2u);
        for (uint64_t t = 2; t < 5; ++t) {
          const auto later = step(encoder, gaussians(kElements, kSeed, t), point, workspace);
          EXPECT_EQ(later.report.nonfinite, 0u) << t;
        }
      }
    }
  }
}

// A block that sends a NaN sends all that it has; the velocity of the others goes on.
TEST(Momentum, NeighboursOfANanKeepTheirVelocity) {
  Workspace workspace;
  Encoder encoder = make({1, 100}, {.momentum = kMomentum});
  auto gradient = gaussians(100, kSeed, 1);
  gradient[3] = std::numeric_limits<float>::quiet_NaN();
  step(encoder, gradient, {1.0, ValueKind::q4}, workspace);
  gradient[3] = 0;
  const auto stepped = step(encoder, std::vector<float>(100), {1.0, ValueKind::f32}, workspace);
  for (size_t i = 0; i < gradient.size(); ++i)
    ASSERT_EQ(stepped.decoded[i], kMomentum * gradient[i]) << i;
}

// Slices are cut anew: the next step is that of the old ones.
TEST(Momentum, VelocityMovesWithItsElements) {
  Workspace workspace;
  const Shape shape{1, 1280};
  const auto cut = [&](const std::vector<uint64_t>& bounds) {
    std::vector<Encoder> slices;
    for (size_t i = 0; i + 1 < bounds.size(); ++i) {
      slices.push_back(std::move(Encoder::create(7, shape, {.momentum = kMomentum},
                                                 Range{bounds[i], bounds[i + 1] - bounds[i]}))
                           .value());
    }
    return slices;
  };
  const auto all_of_a_step = [&](std::vector<Encoder>& slices) {
    std::vector<float> all;
    for (Encoder& slice : slices) {
      const std::vector<float> zeros(slice.range().elements);
      const auto part = step(slice, zeros, {1.0, ValueKind::f32}, workspace).decoded;
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  };
  auto old = cut({0, 512, 1280});
  for (Encoder& slice : old) {
    step(slice, gaussians(slice.range().elements, kSeed, slice.range().first), {0.1, ValueKind::q4},
         workspace);
  }
  auto anew = cut({0, 320, 1024, 1280});
  for (Encoder& to : anew)
    for (const Encoder& from : old) ASSERT_TRUE(to.take_over(from).ok());
  EXPECT_EQ(all_of_a_step(anew), all_of_a_step(old));
}

TEST(Momentum, ClearForgetsResidualAndVelocity) {
  Workspace workspace;
  for (const ResidualKind residual : kResiduals) {
    Encoder encoder = make({1, 1000}, {.residual = residual, .momentum = kMomentum});
    step(encoder, gaussians(1000, kSeed, 1), {0.01, ValueKind::q4}, workspace);
    encoder.clear_residual();
    EXPECT_EQ(residual_of(encoder), std::vector<float>(1000));
    const std::vector<float> zeros(1000);
    EXPECT_EQ(step(encoder, zeros, {1.0, ValueKind::f32}, workspace).decoded, zeros);
  }
}

TEST(Momentum, AnAddendJoinsTheResidual) {
  Workspace workspace;
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    Encoder encoder = make({1, 1000}, {.residual = residual});
    step(encoder, gaussians(1000, kSeed, 1), {0.1, ValueKind::f32}, workspace);
    const auto addend = gaussians(1000, kSeed, 2);
    auto sum = residual_of(encoder);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += addend[i];
    ASSERT_TRUE(encoder.add_residual(addend).ok());
    const auto kept = residual_of(encoder);
    for (size_t i = 0; i < sum.size(); ++i)
      ASSERT_NEAR(kept[i], sum[i], storing_error(residual, sum)) << name(residual) << " " << i;
  }
}

TEST(Residual, WhatIsAddedStaysFinite) {
  for (const ResidualKind kind : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    Encoder encoder = std::move(Encoder::create(1, {1, 128}, {.residual = kind})).value();
    std::vector<float> addend(128, 3e38f);
    ASSERT_TRUE(encoder.add_residual(addend).ok());
    ASSERT_TRUE(encoder.add_residual(addend).ok());
    Encoder other = std::move(Encoder::create(1, {1, 128}, {.residual = kind})).value();
    ASSERT_TRUE(other.add_residual(addend).ok());
    ASSERT_TRUE(other.take_over(encoder).ok());
    std::vector<float> kept(128);
    for (const Encoder* one : {&encoder, &other}) {
      one->read_residual(kept);
      for (const float value : kept) EXPECT_TRUE(is_finite(value)) << name(kind);
    }
    addend[77] = std::numeric_limits<float>::quiet_NaN();
    const Result<void> refused = encoder.add_residual(addend);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().message, "addend 77 is not finite");
  }
}

TEST(Residual, ASavedOneThatIsNotFiniteIsRefused) {
  Encoder encoder = std::move(Encoder::create(1, {1, 128}, {})).value();
  std::vector<std::byte> saved = encoder.save();
  base::store_little(saved.data() + 128 + 4 * 5, 0x7F800000u);
  base::store_little(saved.data() + saved.size() - 4,
                     base::crc32c(Bytes(saved).first(saved.size() - 4)));
  const auto restored = Encoder::restore(saved);
  ASSERT_FALSE(restored.ok());
  EXPECT_EQ(restored.error().code, ErrorCode::corrupt);
}

}  // namespace
}  // namespace scant::codec
