// The suite of encoders on a GPU, where this machine has one.
#include <gtest/gtest.h>

#include "codec/device/cuda_device.h"
#include "codec/device/staged_encoder.h"
#include "codec/testing/tensor_encoders.h"

namespace scant::codec {
namespace {

TEST(CudaEncoder, HasTheBitsOfAnEncoder) {
  auto device = open_cuda_device(0);
  if (!device.ok()) GTEST_SKIP() << device.error().to_string();
  Workspace workspace;
  Workspace own;
  const Shape shape{5, 3000};
  const EncoderOptions options{.residual = ResidualKind::bf16, .momentum = 0.5f};
  auto encoder = StagedEncoder::create(testing::make(shape, options), *device.value(), workspace);
  ASSERT_TRUE(encoder.ok()) << encoder.error().to_string();
  testing::expect_the_bits_of(testing::make(shape, options), *encoder.value(), device.value().get(),
                              nullptr, own);
  Encoder twin = std::move(Encoder::restore(encoder.value()->save().value())).value();
  testing::expect_the_residual_of(std::move(twin), *encoder.value(), device.value().get(), nullptr,
                                  own);
  testing::expect_refusals(*encoder.value(), device.value().get(), nullptr, shape.elements());
}

TEST(CudaEncoder, ADeviceThatIsNotThereIsRefused) {
  const auto device = open_cuda_device(-1);
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.error().code, ErrorCode::unsupported);
}

}  // namespace
}  // namespace scant::codec
