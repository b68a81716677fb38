// Gradients on a device, encoded on the host: the device copies a gradient to pinned memory in the
// order of its stream and then calls the encoder, so neither the owner thread nor the stream's
// giver waits. Residual and records lie on the host. One owner thread; the encoder itself runs on
// the device's thread between begin() and done(), and on the owner's in begin_rest().
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "codec/device/device.h"
#include "codec/device/stream_call.h"
#include "codec/device/tensor_encoder.h"

namespace scant::codec {

class StagedEncoder final : public TensorEncoder {
 public:
  // ErrorCode::resource: no pinned memory for a gradient. Device and workspace outlive it; encoders
  // that share a workspace are given gradients of one stream, which calls them one by one, and
  // nobody else uses that workspace.
  static Result<std::unique_ptr<StagedEncoder>> create(Encoder encoder, Device& device,
                                                       Workspace& workspace);
  // Waits for a step that was begun.
  ~StagedEncoder() override;
  StagedEncoder(const StagedEncoder&) = delete;
  StagedEncoder& operator=(const StagedEncoder&) = delete;

  [[nodiscard]] Place gradients() const override {
    return {.kind = Place::Kind::device, .ordinal = device_.ordinal()};
  }
  [[nodiscard]] Place records() const override { return {}; }
  [[nodiscard]] Range range() const override { return encoder_.range(); }
  [[nodiscard]] size_t memory_bytes() const override {
    return encoder_.memory_bytes() + staging_.size() + record_.capacity();
  }
  [[nodiscard]] const Encoder* kept_on_host() const override { return &encoder_; }
  Result<void> begin(Placed<const float> gradient, Point point,
                     std::function<void()> wake) override;
  Result<void> begin_rest(std::span<float> whole, const Product& rest, Point point,
                          Workspace& workspace) override;
  [[nodiscard]] bool done() const override { return begun_ && call_.done(); }
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
  StagedEncoder(Encoder encoder, Device& device, Workspace& workspace, MutableBytes staging)
      : encoder_(std::move(encoder)), device_(device), workspace_(workspace), staging_(staging) {}
  static void encode(void* self);
  [[nodiscard]] std::span<const float> staged() const {
    return {reinterpret_cast<const float*>(staging_.data()), staging_.size() / sizeof(float)};
  }
  [[nodiscard]] std::optional<Error> fault_of(const Placed<const float>& gradient) const;

  Encoder encoder_;
  Device& device_;
  Workspace& workspace_;
  MutableBytes staging_;  // pinned
  RecordBuffer record_;
  bool begun_ = false;
  Point point_{};
  std::optional<Result<EncodeReport>> outcome_;  // of the device's thread, before done()
  StreamCall call_;
};

}  // namespace scant::codec
