// One suite for encoders wherever they live, and what the staged one does while its device works.
#include "codec/device/tensor_encoder.h"

#include <gtest/gtest.h>

#include "codec/device/host_encoder.h"
#include "codec/device/staged_encoder.h"
#include "codec/testing/late_encoder.h"
#include "codec/testing/simulated_device.h"
#include "codec/testing/tensor_encoders.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::PlacedGradient;
using testing::SimulatedDevice;

constexpr Shape kShape{5, 3000};
constexpr uint64_t kElements = 15000;

Encoder plain() {
  return testing::make(kShape, {.residual = ResidualKind::bf16, .momentum = 0.5f});
}

Encoder restored(const TensorEncoder& encoder) {
  return std::move(Encoder::restore(encoder.save().value())).value();
}

TEST(TensorEncoder, OfTheHostHasTheBitsOfAnEncoder) {
  Workspace workspace;
  RecordBuffer record;
  HostEncoder encoder(plain(), workspace, record);
  testing::expect_the_bits_of(plain(), encoder, nullptr, nullptr, workspace);
  testing::expect_the_residual_of(restored(encoder), encoder, nullptr, nullptr, workspace);
  testing::expect_refusals(encoder, nullptr, nullptr, kElements);
}

TEST(TensorEncoder, OfADeviceHasTheBitsOfAnEncoder) {
  Workspace workspace;
  Workspace own;
  SimulatedDevice device(3);
  int stream = 0;
  auto encoder = std::move(StagedEncoder::create(plain(), device, workspace)).value();
  testing::expect_the_bits_of(plain(), *encoder, &device, &stream, own);
  testing::expect_the_residual_of(restored(*encoder), *encoder, &device, &stream, own);
  testing::expect_refusals(*encoder, &device, &stream, kElements);
}

TEST(TensorEncoder, ThatEndsLateHasTheBitsOfAnEncoder) {
  Workspace workspace;
  testing::LateEncoder encoder(plain());
  testing::expect_the_bits_of(plain(), encoder, nullptr, nullptr, workspace);
  testing::expect_the_residual_of(restored(encoder), encoder, nullptr, nullptr, workspace);
}

// Nothing is read, encoded or said before the stream comes to it.
TEST(TensorEncoder, OfADeviceWaitsForTheStream) {
  Workspace workspace;
  SimulatedDevice device(0);
  auto first = std::move(StagedEncoder::create(plain(), device, workspace)).value();
  auto second = std::move(StagedEncoder::create(plain(), device, workspace)).value();
  PlacedGradient gradient(&device, nullptr, gaussians(kElements, 1, 1));
  int woken = 0;
  ASSERT_TRUE(first->begin(gradient.get(), {}, [&] { woken += 1; }).ok());
  ASSERT_TRUE(second->begin(gradient.get(), {}, [&] { woken += 10; }).ok());
  EXPECT_TRUE(device.run_one(nullptr));  // the gradient comes to be
  EXPECT_TRUE(device.run_one(nullptr));  // its first copy
  EXPECT_FALSE(first->done());
  EXPECT_EQ(woken, 0);
  EXPECT_TRUE(device.run_one(nullptr));
  EXPECT_TRUE(first->done());
  EXPECT_FALSE(second->done());
  EXPECT_EQ(woken, 1);
  ASSERT_TRUE(second->finish().ok());
  EXPECT_EQ(woken, 11);
  ASSERT_TRUE(first->finish().ok());
}

TEST(TensorEncoder, OfADeviceEndsItsStepBeforeItself) {
  Workspace workspace;
  SimulatedDevice device(0);
  PlacedGradient gradient(&device, nullptr, gaussians(kElements, 1, 1));
  bool woken = false;
  {
    auto encoder = std::move(StagedEncoder::create(plain(), device, workspace)).value();
    ASSERT_TRUE(encoder->begin(gradient.get(), {}, [&] { woken = true; }).ok());
  }
  EXPECT_TRUE(woken);
}

TEST(TensorEncoder, WhatADeviceRefusesIsNoStep) {
  Workspace workspace;
  SimulatedDevice device(0);
  device.bytes_left = kElements;
  EXPECT_EQ(StagedEncoder::create(plain(), device, workspace).error().code, ErrorCode::resource);
  device.bytes_left = SIZE_MAX;
  auto encoder = std::move(StagedEncoder::create(plain(), device, workspace)).value();
  PlacedGradient gradient(&device, nullptr, gaussians(kElements, 1, 1));
  for (const int fails_after : {0, 1}) {  // the copy, the call
    device.fails_after = fails_after;
    const auto begun = encoder->begin(gradient.get(), {}, [] { FAIL(); });
    ASSERT_FALSE(begun.ok());
    EXPECT_EQ(begun.error().code, ErrorCode::io);
  }
  ASSERT_TRUE(encoder->begin(gradient.get(), {}, nullptr).ok());
  Encoder twin = plain();
  const auto expected = testing::step(twin, gradient.values(), {}, workspace);
  const auto encoded = encoder->finish();
  ASSERT_TRUE(encoded.ok());
  const Bytes record = encoded.value().record.memory;
  EXPECT_EQ(std::vector<std::byte>(record.begin(), record.end()), expected.bytes);
}

}  // namespace
}  // namespace scant::codec
