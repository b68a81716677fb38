// An encoder whose steps end when the test wants, in any order, on whatever thread: begin() takes
// note, end() encodes.
#pragma once

#include <atomic>
#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/check.h"
#include "codec/device/host_encoder.h"

namespace scant::codec::testing {

class LateEncoder final : public TensorEncoder {
 public:
  explicit LateEncoder(Encoder encoder) : encoder_(std::move(encoder), workspace_, record_) {}
  ~LateEncoder() override {
    end();
    if (gone) gone();
  }
  // The next step's, told by finish().
  void fail_next(Error error) { failure_ = std::move(error); }
  [[nodiscard]] bool works() const { return begun_ && !done(); }
  void end() const {
    if (done_.exchange(true)) return;
    if (failure_) {
      outcome_ = *std::exchange(failure_, std::nullopt);
    } else {
      outcome_ = encoder_.begin(gradient_, point_, nullptr);
    }
    if (wake_) wake_();
  }

  [[nodiscard]] Place gradients() const override { return encoder_.gradients(); }
  [[nodiscard]] Place records() const override { return encoder_.records(); }
  [[nodiscard]] Range range() const override { return encoder_.range(); }
  [[nodiscard]] size_t memory_bytes() const override { return encoder_.memory_bytes(); }
  Result<void> begin(Placed<const float> gradient, Point point,
                     std::function<void()> wake) override {
    SCANT_CHECK(!begun_);
    gradient_ = gradient;
    point_ = point;
    wake_ = std::move(wake);
    done_ = false;
    begun_ = true;
    return {};
  }
  [[nodiscard]] const Encoder* kept_on_host() const override {
    return keeps_elsewhere ? nullptr : encoder_.kept_on_host();
  }
  Result<void> begin_rest(std::span<float> whole, const Product& rest, Point point,
                          Workspace& workspace) override {
    SCANT_CHECK(!begun_);
    if (keeps_elsewhere) return TensorEncoder::begin_rest(whole, rest, point, workspace);
    if (failure_) return *std::exchange(failure_, std::nullopt);
    outcome_ = encoder_.begin_rest(whole, rest, point, workspace);
    begun_ = outcome_.ok();
    return outcome_;
  }
  [[nodiscard]] bool done() const override { return begun_ && done_; }
  Result<Encoded> finish() override {
    end();
    begun_ = false;
    if (!outcome_) return outcome_.error();
    return encoder_.finish();
  }
  Result<Curve> probe(Placed<const float> gradient, std::span<const Point> points,
                      Workspace& workspace) override {
    return encoder_.probe(gradient, points, workspace);
  }
  Result<void> take_back(const RecordView& record, std::span<const Range> ranges,
                         Workspace& workspace) override {
    return encoder_.take_back(record, ranges, workspace);
  }
  Result<void> add_residual(std::span<const float> addend) override {
    return encoder_.add_residual(addend);
  }
  Result<void> take_over(const Encoder& other) override { return encoder_.take_over(other); }
  Result<void> go_on_from(Encoder saved) override { return encoder_.go_on_from(std::move(saved)); }
  void clear_residual() override { encoder_.clear_residual(); }
  void scale_residual(float factor) override { encoder_.scale_residual(factor); }
  Result<void> read_residual(std::span<float> out) const override {
    end();
    return encoder_.read_residual(out);
  }
  [[nodiscard]] Result<std::vector<std::byte>> save() const override {
    end();
    return encoder_.save();
  }

  std::function<void()> gone;    // called when this object goes
  bool keeps_elsewhere = false;  // as if its residual lay out of the host's reach

 private:
  Workspace workspace_;
  RecordBuffer record_;
  mutable HostEncoder encoder_;
  mutable std::optional<Error> failure_;
  Placed<const float> gradient_{};
  Point point_{};
  std::function<void()> wake_;
  bool begun_ = false;
  mutable std::atomic<bool> done_{true};
  mutable Result<void> outcome_;
};

}  // namespace scant::codec::testing
