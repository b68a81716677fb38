// Gradients on a device, encoded on the host: the device copies a gradient to pinned memory in the
// order of its stream and then calls the encoder, so neither the owner thread nor the stream's
// giver waits. Residual and records lie on the host. One owner thread; the encoder itself runs on
// the device's thread between begin() and done().
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "codec/device/device.h"
#include "codec/device/tensor_encoder.h"

namespace scant::codec {

class StagedEncoder final : public TensorEncoder {
 public:
  // ErrorCode::resource: no pinned memory for a gradient. Device and workspace outlive it; encoders
  // that share a workspace are given gradients of one stream, which calls them one by one.
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
  Result<void> begin(Placed<const float> gradient, Point point,
                     std::function<void()> wake) override;
  [[nodiscard]] bool done() const override {
    return done_.load(std::memory_order_acquire);  // pairs with the store in encode()
  }
  Result<Encoded> finish() override;
  Result<void> take_back(const RecordView& record, std::span<const Range> ranges) override;
  Result<void> read_residual(std::span<float> out) override;
  Result<std::vector<std::byte>> save() override;

 private:
  StagedEncoder(Encoder encoder, Device& device, Workspace& workspace, MutableBytes staging)
      : encoder_(std::move(encoder)), device_(device), workspace_(workspace), staging_(staging) {}
  static void encode(void* self);

  Encoder encoder_;
  Device& device_;
  Workspace& workspace_;
  MutableBytes staging_;  // pinned
  RecordBuffer record_;
  bool begun_ = false;
  Stream stream_ = nullptr;  // of the step that was begun
  Point point_{};
  std::function<void()> wake_;
  std::optional<Result<EncodeReport>> outcome_;  // before done_ the device's thread's
  std::atomic<bool> done_{false};
};

}  // namespace scant::codec
