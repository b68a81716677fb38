// One call at a time in the order of a device's stream, with an event and a wake. One owner thread;
// the call itself runs on the device's.
#pragma once

#include <atomic>
#include <functional>

#include "codec/device/device.h"

namespace scant::codec {

class StreamCall {
 public:
  StreamCall() = default;
  ~StreamCall() { end(); }
  StreamCall(const StreamCall&) = delete;
  StreamCall& operator=(const StreamCall&) = delete;

  // When the stream has come so far, `body` runs, if there is one; then the call is done(), and
  // `wake` is called, if there is one. After an error there is no call. Not before the last is
  // done(); the device outlives it.
  Result<void> begin(Device& device, Stream stream, void (*body)(void* context), void* context,
                     std::function<void()> wake);
  [[nodiscard]] bool done() const {
    return done_.load(std::memory_order_acquire);  // pairs with the store in run()
  }
  // Until the last that was begun is done(). Nothing where none was.
  Result<void> wait() const;
  // The same, and until `wake` has returned: the device's thread touches nothing here from then on.
  void end();

 private:
  static void run(void* self);

  Device* device_ = nullptr;  // of the call that was begun
  Stream stream_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::function<void()> wake_;
  std::atomic<bool> done_{true};
  std::atomic<bool> left_{true};
};

}  // namespace scant::codec
