// What an encoder needs of a device: memory, copies and calls in the order of a stream. Two
// implementations: CUDA (cuda_device.h, with SCANT_CUDA) and a simulated one for tests. Calls from
// the owner thread; what call() was given runs on a thread of the device's.
#pragma once

#include <cstddef>

#include "codec/device/place.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::codec {

class Device {
 public:
  virtual ~Device() = default;
  [[nodiscard]] virtual int ordinal() const = 0;
  // ErrorCode::resource. Of Kind::pinned or device; release() takes it back.
  [[nodiscard]] virtual Result<MutableBytes> allocate(Place::Kind kind, size_t bytes) = 0;
  virtual void release(Place::Kind kind, MutableBytes memory) = 0;
  // Both ends stay as they are until the stream has come so far.
  virtual Result<void> copy(MutableBytes to, Bytes from, Stream stream) = 0;
  // `function` runs on the host when the stream has come so far. It asks nothing of the device.
  virtual Result<void> call(Stream stream, void (*function)(void* context), void* context) = 0;
  // Until all that the stream was given has happened.
  virtual Result<void> wait(Stream stream) = 0;
};

}  // namespace scant::codec
