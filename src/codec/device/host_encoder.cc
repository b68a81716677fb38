#include "codec/device/host_encoder.h"

#include <utility>

#include "base/check.h"

namespace scant::codec {

Result<void> HostEncoder::begin(Placed<const float> gradient, Point point,
                                std::function<void()> wake) {
  SCANT_CHECK(!report_, "begin() before finish()");
  if (gradient.place.kind == Place::Kind::device) {
    return Error{.code = ErrorCode::invalid_argument,
                 .message = "the gradient lies on device " +
                            std::to_string(gradient.place.ordinal) +
                            ", this encoder takes memory of the host"};
  }
  auto encoded = encoder_.encode(gradient.memory, point, workspace_, record_);
  if (!encoded) return encoded.error();
  report_ = encoded.value();
  if (wake) wake();
  return {};
}

Result<TensorEncoder::Encoded> HostEncoder::finish() {
  SCANT_CHECK(report_.has_value(), "finish() without begin()");
  const EncodeReport report = *std::exchange(report_, std::nullopt);
  return Encoded{.report = report, .record = {.memory = std::as_const(record_).view()}};
}

Result<void> HostEncoder::take_back(const RecordView& record, std::span<const Range> ranges) {
  SCANT_CHECK(!report_, "take_back() before finish()");
  return encoder_.take_back(record, ranges, workspace_);
}

Result<void> HostEncoder::read_residual(std::span<float> out) {
  SCANT_CHECK(!report_, "read_residual() before finish()");
  encoder_.read_residual(out);
  return {};
}

Result<std::vector<std::byte>> HostEncoder::save() {
  SCANT_CHECK(!report_, "save() before finish()");
  return encoder_.save();
}

}  // namespace scant::codec
