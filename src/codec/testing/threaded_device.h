// A device with a thread of its own, which does what streams are given in one order, and can be
// held back. Its memory is the host's.
#pragma once

#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <semaphore>

#include "base/queue.h"
#include "base/thread.h"
#include "codec/device/device.h"

namespace scant::codec::testing {

class ThreadedDevice final : public Device {
 public:
  explicit ThreadedDevice(int ordinal) : ordinal_(ordinal) {
    EXPECT_TRUE(thread_
                    .start("test-device",
                           [this] {
                             while (const auto work = work_.pop()) (*work)();
                           })
                    .ok());
  }
  ~ThreadedDevice() override {
    work_.close();
    thread_.join();
    EXPECT_TRUE(memory_.empty()) << "memory that nobody released";
  }
  // What is given from now on waits for release().
  void hold() {
    EXPECT_TRUE(work_.push([this] { released_.acquire(); }));
  }
  void release() { released_.release(); }
  // Returns once a call waits for the stream.
  void wait_for_call() { called_.acquire(); }

  [[nodiscard]] int ordinal() const override { return ordinal_; }
  Result<MutableBytes> allocate(Place::Kind, size_t bytes) override {
    auto made = std::make_unique<std::byte[]>(bytes);
    const MutableBytes view(made.get(), bytes);
    memory_.emplace(view.data(), std::move(made));
    return view;
  }
  void release(Place::Kind, MutableBytes memory) override {
    EXPECT_EQ(memory_.erase(memory.data()), 1u) << "memory of somebody else";
  }
  Result<void> copy(MutableBytes to, Bytes from, Stream) override {
    EXPECT_TRUE(work_.push([=] { std::memcpy(to.data(), from.data(), from.size()); }));
    return {};
  }
  Result<void> call(Stream, void (*function)(void*), void* context) override {
    EXPECT_TRUE(work_.push([=] { function(context); }));
    called_.release();
    return {};
  }
  Result<void> wait(Stream) override {
    std::binary_semaphore over{0};
    EXPECT_TRUE(work_.push([&over] { over.release(); }));
    over.acquire();
    return {};
  }

 private:
  int ordinal_;
  std::map<std::byte*, std::unique_ptr<std::byte[]>> memory_;  // the owner thread's
  base::BoundedQueue<std::function<void()>> work_{4096};
  std::counting_semaphore<> released_{0};
  std::counting_semaphore<> called_{0};
  base::Thread thread_;
};

}  // namespace scant::codec::testing
