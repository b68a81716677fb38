// What every TensorEncoder must do, on whatever device: the bits of codec::Encoder, step by step.
#pragma once

#include <atomic>
#include <gtest/gtest.h>
#include <limits>
#include <string>
#include <utility>
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

inline void expect_equal_states(const TensorEncoder& encoder, const Encoder& twin) {
  std::vector<float> own(twin.range().elements);
  std::vector<float> kept(own.size());
  ASSERT_TRUE(encoder.read_residual(own).ok());
  twin.read_residual(kept);
  ASSERT_EQ(own, kept);
  const auto saved = encoder.save();
  ASSERT_TRUE(saved.ok());
  ASSERT_EQ(saved.value(), twin.save());
}

inline void expect_the_bits_of(Encoder twin, TensorEncoder& encoder, Device* device, Stream stream,
                               Workspace& workspace) {
  base::Rng rng = printed_rng(20261130);
  const uint64_t n = twin.range().elements;
  EXPECT_EQ(encoder.range(), twin.range());
  EXPECT_GE(encoder.memory_bytes(), twin.memory_bytes());
  for (uint64_t t = 0; t < 16; ++t) {
    const Point point{t % 2 == 0 ? 1.0 : 0.05, static_cast<ValueKind>(t / 2)};
    SCOPED_TRACE(std::string(name(point.values)) + " at " + std::to_string(point.density));
    PlacedGradient gradient(device, stream, gaussians(n, 7, t));
    std::atomic<int> woken = 0;
    ASSERT_TRUE(encoder.begin(gradient.get(), point, [&] { ++woken; }).ok());
    const bool over_at_once = encoder.done();
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
    EXPECT_EQ(woken, over_at_once ? 0 : 1);
    const auto view = std::move(RecordView::parse(expected.bytes)).value();
    const auto lost = random_ranges(rng, twin.range());
    ASSERT_TRUE(encoder.take_back(view, lost, workspace).ok());
    ASSERT_TRUE(twin.take_back(view, lost, workspace).ok());
    ASSERT_NO_FATAL_FAILURE(expect_equal_states(encoder, twin));
  }
}

// What changes a residual between steps, what looks at it, and a step after each.
inline void expect_the_residual_of(Encoder twin, TensorEncoder& encoder, Device* device,
                                   Stream stream, Workspace& workspace) {
  const uint64_t n = twin.range().elements;
  const Point point{0.1, ValueKind::q4};
  uint64_t t = 100;
  const auto step_both = [&](const char* after) {
    SCOPED_TRACE(after);
    PlacedGradient gradient(device, stream, gaussians(n, 7, ++t));
    ASSERT_TRUE(encoder.begin(gradient.get(), point, nullptr).ok());
    const auto expected = step(twin, gradient.values(), point, workspace);
    ASSERT_NO_FATAL_FAILURE(expect_equal_states(encoder, twin)) << "of a step that was begun";
    const auto encoded = encoder.finish();
    ASSERT_TRUE(encoded.ok());
    const Bytes record = encoded.value().record.memory;
    ASSERT_EQ(std::vector<std::byte>(record.begin(), record.end()), expected.bytes);
  };
  ASSERT_NO_FATAL_FAILURE(step_both("nothing"));
  const std::vector<float> addend = gaussians(n, 8, 0);
  ASSERT_TRUE(encoder.add_residual(addend).ok());
  ASSERT_TRUE(twin.add_residual(addend).ok());
  ASSERT_NO_FATAL_FAILURE(step_both("an addition"));
  const std::vector<float> endless(n, std::numeric_limits<float>::infinity());
  EXPECT_EQ(encoder.add_residual(endless).error().code, ErrorCode::invalid_argument);
  encoder.scale_residual(-3.0f);
  twin.scale_residual(-3.0f);
  ASSERT_NO_FATAL_FAILURE(step_both("a scaling"));
  Encoder other = std::move(Encoder::restore(twin.save())).value();
  ASSERT_TRUE(encoder.take_over(other).ok());
  ASSERT_TRUE(twin.take_over(other).ok());
  ASSERT_NO_FATAL_FAILURE(step_both("another's residual"));
  const PlacedGradient gradient(device, stream, gaussians(n, 7, ++t));
  for (const bool placed : {true, false}) {  // a gradient of the host is taken, too
    const Placed<const float> looked =
        placed ? gradient.get() : Placed<const float>{.memory = gradient.values()};
    const auto curve = encoder.probe(looked, default_points(), workspace);
    const auto expected = probe(twin, gradient.values(), default_points(), workspace);
    ASSERT_TRUE(curve.ok());
    EXPECT_EQ(curve.value().energy, expected.value().energy);
    ASSERT_EQ(curve.value().points.size(), expected.value().points.size());
    for (size_t i = 0; i < curve.value().points.size(); ++i) {
      EXPECT_EQ(curve.value().points[i].energy, expected.value().points[i].energy);
    }
  }
  ASSERT_NO_FATAL_FAILURE(step_both("a look"));
  encoder.clear_residual();
  twin.clear_residual();
  ASSERT_NO_FATAL_FAILURE(step_both("an end of the residual"));
  ASSERT_TRUE(encoder.go_on_from(std::move(other)).ok());
  EXPECT_NE(encoder.save().value(), twin.save());
  ASSERT_TRUE(encoder.go_on_from(std::move(Encoder::restore(twin.save())).value()).ok());
  ASSERT_NO_FATAL_FAILURE(step_both("a saved state"));
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
  refused(gradient.get(), {.density = 1.5}, "density must lie above 0");
  Placed<const float> elsewhere = gradient.get();
  elsewhere.place = {Place::Kind::device, 99, stream};
  refused(elsewhere, {}, "lie");
  ASSERT_TRUE(encoder.begin(gradient.get(), {}, nullptr).ok());
  EXPECT_TRUE(encoder.finish().ok()) << "a refusal is no step";
}

}  // namespace scant::codec::testing
