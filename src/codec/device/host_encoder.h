// The interface over an encoder of this host: a step is over when begin() returns, and nothing is
// copied. What has the encoder itself at hand uses that.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "codec/device/tensor_encoder.h"

namespace scant::codec {

class HostEncoder final : public TensorEncoder {
 public:
  // Encoders may share a workspace; it outlives them.
  HostEncoder(Encoder encoder, Workspace& workspace)
      : encoder_(std::move(encoder)), workspace_(workspace) {}

  [[nodiscard]] Place gradients() const override { return {}; }
  [[nodiscard]] Place records() const override { return {}; }
  Result<void> begin(Placed<const float> gradient, Point point,
                     std::function<void()> wake) override;
  [[nodiscard]] bool done() const override { return report_.has_value(); }
  Result<Encoded> finish() override;
  Result<void> take_back(const RecordView& record, std::span<const Range> ranges) override;
  Result<void> read_residual(std::span<float> out) override;
  Result<std::vector<std::byte>> save() override;

 private:
  Encoder encoder_;
  Workspace& workspace_;
  RecordBuffer record_;
  std::optional<EncodeReport> report_;  // of a step that was not finished
};

}  // namespace scant::codec
