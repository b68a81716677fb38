// A device without hardware: its memory is out of the host's sight but for copies, and nothing that
// a stream was given happens before the test runs it, by hand or on a thread by wait().
#pragma once

#include <cstring>
#include <deque>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "codec/device/device.h"

namespace scant::codec::testing {

class SimulatedDevice final : public Device {
 public:
  explicit SimulatedDevice(int ordinal) : ordinal_(ordinal) {}
  ~SimulatedDevice() override { EXPECT_TRUE(memory_.empty()) << "memory that nobody released"; }

  [[nodiscard]] int ordinal() const override { return ordinal_; }
  Result<MutableBytes> allocate(Place::Kind, size_t bytes) override {
    if (bytes > bytes_left)
      return Error{.code = ErrorCode::resource, .message = "the simulated device is full"};
    auto made = std::make_unique<std::byte[]>(bytes);
    const MutableBytes view(made.get(), bytes);
    memory_.emplace(view.data(), std::move(made));
    return view;
  }
  void release(Place::Kind, MutableBytes memory) override {
    EXPECT_EQ(memory_.erase(memory.data()), 1u) << "memory of somebody else";
  }
  Result<void> copy(MutableBytes to, Bytes from, Stream stream) override {
    if (fails_after-- == 0) return Error{.code = ErrorCode::io, .message = "a copy fails"};
    streams_[stream].push_back([=] { std::memcpy(to.data(), from.data(), from.size()); });
    return {};
  }
  Result<void> call(Stream stream, void (*function)(void*), void* context) override {
    if (fails_after-- == 0) return Error{.code = ErrorCode::io, .message = "a call fails"};
    streams_[stream].push_back([=] { function(context); });
    return {};
  }
  Result<void> wait(Stream stream) override {
    std::thread([&] {
      while (run_one(stream)) {
      }
    }).join();
    return {};
  }
  // The next of the stream's; false: there was none.
  bool run_one(Stream stream) {
    auto& work = streams_[stream];
    if (work.empty()) return false;
    const std::function<void()> next = std::move(work.front());
    work.pop_front();
    next();
    return true;
  }

  [[nodiscard]] size_t pending(Stream stream) { return streams_[stream].size(); }

  size_t bytes_left = SIZE_MAX;  // of each allocation
  int fails_after = -1;          // copies and calls, before one fails

 private:
  int ordinal_;
  std::map<std::byte*, std::unique_ptr<std::byte[]>> memory_;
  std::map<Stream, std::deque<std::function<void()>>> streams_;
};

}  // namespace scant::codec::testing
