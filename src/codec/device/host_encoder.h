// The interface over an encoder of this host: a step is over when begin() returns, `wake` is never
// called, and nothing is copied.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "codec/device/tensor_encoder.h"

namespace scant::codec {

class HostEncoder final : public TensorEncoder {
 public:
  // Workspace and record outlive it. Encoders may share both: a record is there until the next of
  // them begins.
  HostEncoder(Encoder encoder, Workspace& workspace, RecordBuffer& record)
      : encoder_(std::move(encoder)), workspace_(workspace), record_(record) {}

  [[nodiscard]] Place gradients() const override { return {}; }
  [[nodiscard]] Place records() const override { return {}; }
  [[nodiscard]] Range range() const override { return encoder_.range(); }
  [[nodiscard]] size_t memory_bytes() const override { return encoder_.memory_bytes(); }
  [[nodiscard]] const Encoder* kept_on_host() const override { return &encoder_; }
  Result<void> begin(Placed<const float> gradient, Point point,
                     std::function<void()> wake) override;
  Result<void> begin_rest(std::span<float> whole, const Product& rest, Point point,
                          Workspace& workspace) override;
  [[nodiscard]] bool done() const override { return report_.has_value(); }
  Result<Encoded> finish() override;
  Result<Curve> probe(Placed<const float> gradient, std::span<const Point> points,
                      Workspace& workspace) override;
  Result<void> take_back(const RecordView& record, std::span<const Range> ranges,
                         Workspace& workspace) override;
  Result<void> add_residual(std::span<const float> addend) override;
  Result<void> take_over(const Encoder& other) override;
  Result<void> go_on_from(Encoder saved) override;
  void clear_residual() override;
  void scale_residual(float factor) override;
  Result<void> read_residual(std::span<float> out) const override;
  [[nodiscard]] Result<std::vector<std::byte>> save() const override;

 private:
  Encoder encoder_;
  Workspace& workspace_;
  RecordBuffer& record_;
  std::optional<EncodeReport> report_;  // of a step that was not finished
};

}  // namespace scant::codec
