#include "codec/device/staged_encoder.h"

#include <new>
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
  call_.end();
  device_.release(Place::Kind::pinned, staging_);
}

std::optional<Error> StagedEncoder::fault_of(const Placed<const float>& gradient) const {
  const Place& place = gradient.place;
  if (place.kind != Place::Kind::device || place.ordinal != device_.ordinal())
    return invalid("the gradient does not lie on device " + std::to_string(device_.ordinal()));
  if (gradient.memory.size_bytes() == staging_.size()) return std::nullopt;
  return invalid("gradient has " + std::to_string(gradient.memory.size()) +
                 " elements, the range has " + std::to_string(encoder_.range().elements));
}

Result<void> StagedEncoder::begin(Placed<const float> gradient, Point point,
                                  std::function<void()> wake) {
  SCANT_CHECK(!begun_, "begin() before finish()");
  if (auto fault = fault_of(gradient)) return *std::move(fault);
  if (auto fault = point_fault(point)) return invalid(*std::move(fault));
  point_ = point;
  outcome_.reset();
  Stream stream = gradient.place.stream;
  if (auto copied = device_.copy(staging_, std::as_bytes(gradient.memory), stream); !copied)
    return copied;
  auto called = call_.begin(device_, stream, &StagedEncoder::encode, this, std::move(wake));
  begun_ = called.ok();
  if (!called) static_cast<void>(device_.wait(stream));  // for the copy
  return called;
}

Result<void> StagedEncoder::begin_rest(std::span<float> whole, const Product& rest, Point point,
                                       Workspace& workspace) {
  SCANT_CHECK(!begun_, "begin_rest() before finish()");
  auto encoded = encoder_.encode_rest(whole, rest, point, workspace, record_);
  if (!encoded) return encoded.error();
  outcome_ = std::move(encoded);
  begun_ = true;
  return {};
}

void StagedEncoder::encode(void* self) {
  auto& encoder = *static_cast<StagedEncoder*>(self);
  try {
    encoder.outcome_ = encoder.encoder_.encode(encoder.staged(), encoder.point_, encoder.workspace_,
                                               encoder.record_);
  } catch (const std::bad_alloc&) {
    encoder.outcome_.emplace(Error{.code = ErrorCode::resource, .message = {}});
  }
}

Result<TensorEncoder::Encoded> StagedEncoder::finish() {
  SCANT_CHECK(begun_, "finish() without begin()");
  if (Result<void> waited = call_.wait(); !waited) return waited.error();
  begun_ = false;
  if (!*outcome_) return outcome_->error();
  return Encoded{.report = outcome_->value(), .record = {.memory = std::as_const(record_).view()}};
}

Result<Curve> StagedEncoder::probe(Placed<const float> gradient, std::span<const Point> points,
                                   Workspace& workspace) {
  SCANT_CHECK(!begun_, "probe() before finish()");
  if (gradient.place.kind != Place::Kind::device)
    return codec::probe(encoder_, gradient.memory, points, workspace);
  if (auto fault = fault_of(gradient)) return *std::move(fault);
  Stream stream = gradient.place.stream;
  if (auto copied = device_.copy(staging_, std::as_bytes(gradient.memory), stream); !copied)
    return copied.error();
  if (auto waited = device_.wait(stream); !waited) return waited.error();
  return codec::probe(encoder_, staged(), points, workspace);
}

Result<void> StagedEncoder::take_back(const RecordView& record, std::span<const Range> ranges,
                                      Workspace& workspace) {
  SCANT_CHECK(!begun_, "take_back() before finish()");
  return encoder_.take_back(record, ranges, workspace);
}

Result<void> StagedEncoder::add_residual(std::span<const float> addend) {
  SCANT_CHECK(!begun_, "add_residual() before finish()");
  return encoder_.add_residual(addend);
}

Result<void> StagedEncoder::take_over(const Encoder& other) {
  SCANT_CHECK(!begun_, "take_over() before finish()");
  return encoder_.take_over(other);
}

Result<void> StagedEncoder::go_on_from(Encoder saved) {
  SCANT_CHECK(!begun_ && saved.range() == encoder_.range(), "go_on_from() of another range");
  encoder_ = std::move(saved);
  return {};
}

void StagedEncoder::clear_residual() {
  SCANT_CHECK(!begun_, "clear_residual() before finish()");
  encoder_.clear_residual();
}

void StagedEncoder::scale_residual(float factor) {
  SCANT_CHECK(!begun_, "scale_residual() before finish()");
  encoder_.scale_residual(factor);
}

Result<void> StagedEncoder::read_residual(std::span<float> out) const {
  if (Result<void> waited = call_.wait(); !waited) return waited;
  encoder_.read_residual(out);
  return {};
}

Result<std::vector<std::byte>> StagedEncoder::save() const {
  if (Result<void> waited = call_.wait(); !waited) return waited.error();
  return encoder_.save();
}

}  // namespace scant::codec
