#include "codec/device/host_encoder.h"

#include <string>

#include "base/check.h"
#include "base/fault.h"

namespace scant::codec {
namespace {

using base::invalid;

std::optional<Error> place_fault(const Place& place) {
  if (place.kind != Place::Kind::device) return std::nullopt;
  return invalid("the gradient lies on device " + std::to_string(place.ordinal) +
                 ", this encoder takes memory of the host");
}

}  // namespace

Result<void> HostEncoder::begin(Placed<const float> gradient, Point point,
                                std::function<void()> /*wake*/) {
  SCANT_CHECK(!report_, "begin() before finish()");
  if (auto fault = place_fault(gradient.place)) return *std::move(fault);
  const auto encoded = encoder_.encode(gradient.memory, point, workspace_, record_);
  if (!encoded) return encoded.error();
  report_ = encoded.value();
  return {};
}

Result<void> HostEncoder::begin_rest(std::span<float> whole, const Product& rest, Point point,
                                     Workspace& workspace) {
  SCANT_CHECK(!report_, "begin_rest() before finish()");
  const auto encoded = encoder_.encode_rest(whole, rest, point, workspace, record_);
  if (!encoded) return encoded.error();
  report_ = encoded.value();
  return {};
}

Result<TensorEncoder::Encoded> HostEncoder::finish() {
  SCANT_CHECK(report_.has_value(), "finish() without begin()");
  const EncodeReport report = *std::exchange(report_, std::nullopt);
  return Encoded{.report = report, .record = {.memory = std::as_const(record_).view()}};
}

Result<Curve> HostEncoder::probe(Placed<const float> gradient, std::span<const Point> points,
                                 Workspace& workspace) {
  SCANT_CHECK(!report_, "probe() before finish()");
  if (auto fault = place_fault(gradient.place)) return *std::move(fault);
  return codec::probe(encoder_, gradient.memory, points, workspace);
}

Result<void> HostEncoder::take_back(const RecordView& record, std::span<const Range> ranges,
                                    Workspace& workspace) {
  SCANT_CHECK(!report_, "take_back() before finish()");
  return encoder_.take_back(record, ranges, workspace);
}

Result<void> HostEncoder::add_residual(std::span<const float> addend) {
  SCANT_CHECK(!report_, "add_residual() before finish()");
  return encoder_.add_residual(addend);
}

Result<void> HostEncoder::take_over(const Encoder& other) {
  SCANT_CHECK(!report_, "take_over() before finish()");
  return encoder_.take_over(other);
}

Result<void> HostEncoder::go_on_from(Encoder saved) {
  SCANT_CHECK(!report_ && saved.range() == encoder_.range(), "go_on_from() of another range");
  encoder_ = std::move(saved);
  return {};
}

void HostEncoder::clear_residual() {
  SCANT_CHECK(!report_, "clear_residual() before finish()");
  encoder_.clear_residual();
}

void HostEncoder::scale_residual(float factor) {
  SCANT_CHECK(!report_, "scale_residual() before finish()");
  encoder_.scale_residual(factor);
}

Result<void> HostEncoder::read_residual(std::span<float> out) const {
  encoder_.read_residual(out);
  return {};
}

Result<std::vector<std::byte>> HostEncoder::save() const { return encoder_.save(); }

}  // namespace scant::codec
