// An encoder wherever it lives: gradients, residual and records may lie on a device, and a step may
// end after the call that began it. docs/codec.md, "Encoders on devices", is the contract; one
// suite holds all implementations to it and to the bits of codec::Encoder. One owner thread.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "codec/device/place.h"
#include "codec/encoder.h"
#include "codec/rate/probe.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::codec {

class TensorEncoder {
 public:
  struct Encoded {
    EncodeReport report{};
    Placed<const std::byte> record{};  // until the next begin()
  };

  // Ends after a step that was begun, and after its call of `wake`.
  virtual ~TensorEncoder() = default;
  // Where the gradients that it takes lie, and the records that it makes. The streams say nothing.
  [[nodiscard]] virtual Place gradients() const = 0;
  [[nodiscard]] virtual Place records() const = 0;
  [[nodiscard]] virtual Range range() const = 0;
  [[nodiscard]] virtual size_t memory_bytes() const = 0;  // of what it keeps, wherever that lies
  // The encoder itself where residual and records lie on the host, which can then make factors;
  // else null. It may be read between finish() and begin().
  [[nodiscard]] virtual const Encoder* kept_on_host() const { return nullptr; }

  // Begins a step. The gradient covers the range, lies at gradients() and stays untouched until
  // done(). A step that goes on after begin() calls `wake` once when it is over, on another thread;
  // that may only wake somebody. After an error there is no step, no call of `wake`, and nothing
  // has changed. ErrorCode::invalid_argument: another place, size or point.
  virtual Result<void> begin(Placed<const float> gradient, Point point,
                             std::function<void()> wake) = 0;
  // Encoder::encode_rest, on the caller's thread and in a workspace of its own; the step is over
  // when the call returns. `whole` lies on the host, wherever gradients() do.
  // ErrorCode::unsupported: nothing is kept_on_host().
  virtual Result<void> begin_rest(std::span<float> whole, const Product& rest, Point point,
                                  Workspace& workspace);
  // The event: whether the step that was begun is over.
  [[nodiscard]] virtual bool done() const = 0;
  // What the step gave; waits for it. Once for each begin(). After an error nothing has changed.
  virtual Result<Encoded> finish() = 0;

  // Between finish() and begin(), on the caller's thread and in a workspace of its own. Records,
  // addends and results lie on the host; a gradient to probe there or at gradients(), in which case
  // the call waits for its stream.
  virtual Result<Curve> probe(Placed<const float> gradient, std::span<const Point> points,
                              Workspace& workspace) = 0;
  virtual Result<void> take_back(const RecordView& record, std::span<const Range> ranges,
                                 Workspace& workspace) = 0;
  virtual Result<void> add_residual(std::span<const float> addend) = 0;
  virtual Result<void> take_over(const Encoder& other) = 0;
  // Goes on where an encoder of the same range and kind of residual stopped.
  virtual Result<void> go_on_from(Encoder saved) = 0;
  // If a device fails at these, the next call says so.
  virtual void clear_residual() = 0;
  virtual void scale_residual(float factor) = 0;

  // At any time: what the last step left. Wait for a step that was begun.
  virtual Result<void> read_residual(std::span<float> out) const = 0;
  [[nodiscard]] virtual Result<std::vector<std::byte>> save() const = 0;
};

inline Result<void> TensorEncoder::begin_rest(std::span<float> /*whole*/, const Product& /*rest*/,
                                              Point /*point*/, Workspace& /*workspace*/) {
  return Error{.code = ErrorCode::unsupported,
               .message =
                   "a residual that lies on a device goes with no factors: plan the tensor "
                   "without a rank"};
}

// What an encoder is made of.
struct EncoderSpec {
  uint32_t tensor = 0;
  Shape shape{};
  EncoderOptions options{};
  Range range{};
};
using MakeTensorEncoder = std::function<Result<std::unique_ptr<TensorEncoder>>(const EncoderSpec&)>;

}  // namespace scant::codec
