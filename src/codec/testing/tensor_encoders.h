// What every TensorEncoder must do, on whatever device: the bits of codec::Encoder, step by step.
#pragma once

#include <atomic>
#include <gtest/gtest.h>
#include <vector>

#include "codec/device/device.h"
#include "codec/device/tensor_encoder.h"
#include "codec/testing/encoders.h"
#include "codec/testing/records.h"

namespace scant::codec::testing {

// A gradient where the encoder wants it: `device` null for the host.
class PlacedGradient {
 public:
  PlacedGradient(Device* device, Stream stream, std::vector<float> values)
      : device_(device), stream_(stream), values_(std::move(values)) {
    if (device_ == nullptr) return;
    auto memory = device_->allocate(Place::Kind::device, values_.size() * sizeof(float));
    EXPECT_TRUE(memory.ok());
    memory_ = memory.value();
    EXPECT_TRUE(device_->copy(memory_, std::as_bytes(std::span(values_)), stream_).ok());
  }
  ~PlacedGradient() {
    if (device_ != nullptr) device_->release(Place::Kind::device, memory_);
  }
  PlacedGradient(const PlacedGradient&) = delete;
  PlacedGradient& operator=(const PlacedGradient&) = delete;

  [[nodiscard]] Placed<const float> get() const {
    if (device_ == nullptr) return {.memory = values_};
    return {.memory = {reinterpret_cast<const float*>(memory_.data()), values_.size()},
            .place = {Place::Kind::device, device_->ordinal(), stream_}};
  }
  [[nodiscard]] const std::vector<float>& values() const { return values_; }

 private:
  Device* device_;
  Stream stream_;
  std::vector<float> values_;
  MutableBytes memory_;
};

inline void expect_the_bits_of(Encoder twin, TensorEncoder& encoder, Device* device, Stream stream,
                               Workspace& workspace) {
  base::Rng rng = printed_rng(20261130);
  const uint64_t n = twin.range().elements;
  for (uint64_t t = 0; t < 16; ++t) {
    const Point point{t % 2 == 0 ? 1.0 : 0.05, static_cast<ValueKind>(t / 2)};
    SCOPED_TRACE(std::string(name(point.values)) + " at " + std::to_string(point.density));
    PlacedGradient gradient(device, stream, gaussians(n, 7, t));
    std::atomic<int> woken = 0;
    ASSERT_TRUE(encoder.begin(gradient.get(), point, [&] { ++woken; }).ok());
    const auto encoded = encoder.finish();
    ASSERT_TRUE(encoded.ok()) << encoded.error().to_string();
    const auto expected = step(twin, gradient.values(), point, workspace);
    const auto& record = encoded.value().record;
    ASSERT_EQ(record.place.kind, encoder.records().kind);
    ASSERT_EQ(std::vector<std::byte>(record.memory.begin(), record.memory.end()), expected.bytes);
    EXPECT_EQ(encoded.value().report.bytes, expected.bytes.size());
    EXPECT_EQ(encoded.value().report.entries, expected.report.entries);
    if (device != nullptr) {
      ASSERT_TRUE(device->wait(stream).ok());  // for what follows done()
    }
    EXPECT_EQ(woken, 1);
    const auto view = std::move(RecordView::parse(expected.bytes)).value();
    const auto lost = random_ranges(rng, twin.range());
    ASSERT_TRUE(encoder.take_back(view, lost).ok());
    ASSERT_TRUE(twin.take_back(view, lost, workspace).ok());
    std::vector<float> own(n);
    std::vector<float> kept(n);
    ASSERT_TRUE(encoder.read_residual(own).ok());
    twin.read_residual(kept);
    ASSERT_EQ(own, kept);
  }
  const auto saved = encoder.save();
  ASSERT_TRUE(saved.ok());
  EXPECT_EQ(saved.value(), twin.save());
}

inline void expect_refusals(TensorEncoder& encoder, Device* device, Stream stream, uint64_t n) {
  PlacedGradient gradient(device, stream, std::vector<float>(n));
  PlacedGradient shorter(device, stream, std::vector<float>(n - 1));
  const auto refused = [&](const Placed<const float>& given, Point point, const char* what) {
    const auto begun = encoder.begin(given, point, [] { FAIL() << "of a step that is none"; });
    ASSERT_FALSE(begun.ok()) << what;
    EXPECT_EQ(begun.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(begun.error().message.find(what), std::string::npos) << begun.error().message;
  };
  refused(shorter.get(), {}, "the range has");
  refused(gradient.get(), {.density = 0}, "density must lie above 0");
  Placed<const float> elsewhere = gradient.get();
  elsewhere.place = {Place::Kind::device, 99, stream};
  refused(elsewhere, {}, "lie");
  ASSERT_TRUE(encoder.begin(gradient.get(), {}, nullptr).ok());
  EXPECT_TRUE(encoder.finish().ok()) << "a refusal is no step";
}

}  // namespace scant::codec::testing
