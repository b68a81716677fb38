#include "codec/device/stream_call.h"

#include <thread>
#include <utility>

#include "base/check.h"

namespace scant::codec {

Result<void> StreamCall::begin(Device& device, Stream stream, void (*body)(void*), void* context,
                               std::function<void()> wake) {
  end();
  device_ = &device;
  stream_ = stream;
  body_ = body;
  context_ = context;
  wake_ = std::move(wake);
  done_.store(false, std::memory_order_relaxed);
  left_.store(false, std::memory_order_relaxed);
  Result<void> called = device.call(stream, &StreamCall::run, this);
  if (called) return called;
  done_.store(true, std::memory_order_relaxed);
  left_.store(true, std::memory_order_relaxed);
  return called;
}

void StreamCall::run(void* self) {
  auto& call = *static_cast<StreamCall*>(self);
  if (call.body_ != nullptr) call.body_(call.context_);
  {
    const std::function<void()> wake = std::move(call.wake_);
    call.done_.store(true, std::memory_order_release);  // pairs with the load in done()
    if (wake) wake();
  }
  call.left_.store(true, std::memory_order_release);  // pairs with the load in end()
}

Result<void> StreamCall::wait() const {
  if (done()) return {};
  if (Result<void> waited = device_->wait(stream_); !waited) return waited;
  SCANT_CHECK(done(), "a stream ended without the call that it was given");
  return {};
}

// What the device's thread does after done() is to wake somebody, which never waits.
void StreamCall::end() {
  static_cast<void>(wait());
  SCANT_CHECK(done(), "a device that fails still holds memory which is about to go");
  while (!left_.load(std::memory_order_acquire)) std::this_thread::yield();
}

}  // namespace scant::codec
