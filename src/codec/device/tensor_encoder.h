// An encoder wherever it lives: gradients, residual and records may lie on a device, and a step may
// end after the call that began it. docs/codec.md, "Encoders on devices", is the contract; one
// suite holds all implementations to it and to the bits of codec::Encoder. One owner thread.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "codec/device/place.h"
#include "codec/encoder.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::codec {

class TensorEncoder {
 public:
  struct Encoded {
    EncodeReport report{};
    Placed<const std::byte> record{};  // until the next begin()
  };

  virtual ~TensorEncoder() = default;
  // Where the gradients that it takes lie, and the records that it makes. The streams say nothing.
  [[nodiscard]] virtual Place gradients() const = 0;
  [[nodiscard]] virtual Place records() const = 0;

  // Begins a step. The gradient covers the range, lies at gradients() and stays untouched until
  // done(). `wake` is called once when the step is over, from within begin() or on another thread,
  // and may only wake somebody. After an error there is no step, and no call of `wake`.
  // ErrorCode::invalid_argument: another place, size or point.
  virtual Result<void> begin(Placed<const float> gradient, Point point,
                             std::function<void()> wake) = 0;
  // The event: whether the step that was begun is over.
  [[nodiscard]] virtual bool done() const = 0;
  // What the step gave; waits for it. Once for each begin().
  virtual Result<Encoded> finish() = 0;

  // Between finish() and begin(). Records and results lie on the host.
  virtual Result<void> take_back(const RecordView& record, std::span<const Range> ranges) = 0;
  virtual Result<void> read_residual(std::span<float> out) = 0;
  virtual Result<std::vector<std::byte>> save() = 0;
};

}  // namespace scant::codec
