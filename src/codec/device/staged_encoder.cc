#include "codec/device/staged_encoder.h"

#include <string>
#include <utility>

#include "base/check.h"
#include "base/fault.h"

namespace scant::codec {
namespace {

using base::invalid;

}  // namespace

Result<std::unique_ptr<StagedEncoder>> StagedEncoder::create(Encoder encoder, Device& device,
                                                             Workspace& workspace) {
  const size_t bytes = encoder.range().elements * sizeof(float);
  auto staging = device.allocate(Place::Kind::pinned, bytes);
  if (!staging) return staging.error();
  return std::unique_ptr<StagedEncoder>(
      new StagedEncoder(std::move(encoder), device, workspace, staging.value()));
}

StagedEncoder::~StagedEncoder() {
  if (begun_ && !done()) static_cast<void>(device_.wait(stream_));
  SCANT_CHECK(!begun_ || done(), "a stream ended without the call that it was given");
  device_.release(Place::Kind::pinned, staging_);
}

Result<void> StagedEncoder::begin(Placed<const float> gradient, Point point,
                                  std::function<void()> wake) {
  SCANT_CHECK(!begun_, "begin() before finish()");
  const Place& place = gradient.place;
  if (place.kind != Place::Kind::device || place.ordinal != device_.ordinal())
    return invalid("the gradient does not lie on device " + std::to_string(device_.ordinal()));
  if (gradient.memory.size_bytes() != staging_.size()) {
    return invalid("gradient has " + std::to_string(gradient.memory.size()) +
                   " elements, the range has " + std::to_string(encoder_.range().elements));
  }
  if (auto fault = point_fault(point)) return invalid(*fault);
  stream_ = place.stream;
  point_ = point;
  wake_ = std::move(wake);
  outcome_.reset();
  done_.store(false, std::memory_order_relaxed);
  if (auto copied = device_.copy(staging_, std::as_bytes(gradient.memory), stream_); !copied)
    return copied;
  if (auto called = device_.call(stream_, &StagedEncoder::encode, this); !called) {
    static_cast<void>(device_.wait(stream_));  // for the copy
    return called;
  }
  begun_ = true;
  return {};
}

void StagedEncoder::encode(void* self) {
  auto& encoder = *static_cast<StagedEncoder*>(self);
  const std::span<const float> gradient(reinterpret_cast<const float*>(encoder.staging_.data()),
                                        encoder.staging_.size() / sizeof(float));
  encoder.outcome_ =
      encoder.encoder_.encode(gradient, encoder.point_, encoder.workspace_, encoder.record_);
  // Once done_ is set the encoder may be destroyed.
  const std::function<void()> wake = std::move(encoder.wake_);
  encoder.done_.store(true, std::memory_order_release);  // pairs with the load in done()
  if (wake) wake();
}

Result<TensorEncoder::Encoded> StagedEncoder::finish() {
  SCANT_CHECK(begun_, "finish() without begin()");
  if (!done()) {
    if (auto waited = device_.wait(stream_); !waited) return waited.error();
    SCANT_CHECK(done(), "a stream ended without the call that it was given");
  }
  begun_ = false;
  if (!*outcome_) return outcome_->error();
  return Encoded{.report = outcome_->value(), .record = {.memory = std::as_const(record_).view()}};
}

Result<void> StagedEncoder::take_back(const RecordView& record, std::span<const Range> ranges) {
  SCANT_CHECK(!begun_, "take_back() before finish()");
  return encoder_.take_back(record, ranges, workspace_);
}

Result<void> StagedEncoder::read_residual(std::span<float> out) {
  SCANT_CHECK(!begun_, "read_residual() before finish()");
  encoder_.read_residual(out);
  return {};
}

Result<std::vector<std::byte>> StagedEncoder::save() {
  SCANT_CHECK(!begun_, "save() before finish()");
  return encoder_.save();
}

}  // namespace scant::codec
