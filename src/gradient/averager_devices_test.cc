// Averagers whose gradients lie on a device with a thread of its own: that thread wakes scant-grad,
// and what it works on ends before the averager does.
#include <gtest/gtest.h>

#include "codec/device/staged_encoder.h"
#include "codec/testing/threaded_device.h"
#include "collective/testing/threads_as_ranks.h"
#include "gradient/testing/averagers.h"
#include "gradient/testing/fusion_plans.h"

namespace scant::gradient {
namespace {

using codec::Place;
using codec::testing::ThreadedDevice;

// Memory for the gradients of a rank, and its encoders.
class OnDevice {
 public:
  explicit OnDevice(const Layout& layout) : device(2) {
    memory_ = device.allocate(Place::Kind::device, layout.arena_elements() * sizeof(float)).value();
  }
  ~OnDevice() { device.release(Place::Kind::device, memory_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  [[nodiscard]] AveragerOptions options(bool copies = true) {
    AveragerOptions made;
    made.encoders =
        [this](const codec::EncoderSpec& spec) -> Result<std::unique_ptr<codec::TensorEncoder>> {
      auto encoder =
          codec::Encoder::create(spec.tensor, spec.shape, spec.options, spec.range).value();
      auto staged = codec::StagedEncoder::create(std::move(encoder), device, workspace_);
      if (!staged) return staged.error();
      return std::unique_ptr<codec::TensorEncoder>(std::move(staged).value());
    };
    if (copies) made.device = &device;
    made.gradients = {.memory = gradients(),
                      .place = {.kind = Place::Kind::device, .ordinal = device.ordinal()}};
    return made;
  }
  [[nodiscard]] std::span<float> gradients() {
    return {reinterpret_cast<float*>(memory_.data()), memory_.size() / sizeof(float)};
  }

  ThreadedDevice device;

 private:
  codec::Workspace workspace_;
  MutableBytes memory_;
};

// The gradients go to the device, and the arena keeps what it held.
Result<StepReport> step_of(Host& host, OnDevice* device, int number) {
  for (uint32_t tensor = 0; tensor < host.layout.tensors().size(); ++tensor) {
    const std::span<float> of_arena = host.of(tensor);
    const std::vector<float> before(of_arena.begin(), of_arena.end());
    host.fill(number, tensor);
    if (device != nullptr) {
      std::ranges::copy(of_arena,
                        device->gradients().begin() + (of_arena.data() - host.arena.data()));
      std::ranges::copy(before, of_arena.begin());
    }
    EXPECT_TRUE(host.averager->ready(tensor).ok());
  }
  return host.end();
}

TEST(AveragerDevices, HaveTheBitsOfHosts) {
  collective::on_ranks(3, [&](Communicator& communicator) {
    const Layout layout = layout_for(3);
    const bool with_device = communicator.rank() != 0;
    OnDevice device(layout);
    AveragerOptions options = with_device ? device.options() : AveragerOptions{};
    options.key = "devices";
    Host host(communicator, layout, options);
    Host twin(communicator, layout, {.key = "hosts"});
    for (int number = 1; number <= 8; ++number) {
      FusionPlan plan = uniform(layout, number == 4 ? Path::all_reduce : Path::split,
                                number % 2 == 0 ? 0.1 : 1.0, codec::ValueKind::q4);
      if (number > 5) {
        const codec::Point rest =
            number == 7 ? codec::kKeepAll : codec::Point{1, codec::ValueKind::q1};
        plan =
            testing::plan_of(layout, Path::split, testing::ranked(2, codec::ValueKind::q4, rest));
        ASSERT_FALSE(SliceTable(layout, plan).matrices().empty());
      }
      host.set(plan);
      twin.set(plan);
      const auto report = step_of(host, with_device ? &device : nullptr, number);
      ASSERT_TRUE(report.ok()) << report.error().to_string();
      ASSERT_TRUE(step_of(twin, nullptr, number).ok());
      ASSERT_EQ(host.arena, twin.arena) << "step " << number;
      ASSERT_EQ(host.averager->save().value(), twin.averager->save().value());
    }
  });
}

TEST(AveragerDevices, ThatNobodyCopiesFromHaveNoPlainBuffers) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    const bool with_device = communicator.rank() == 1;
    OnDevice device(layout);
    Host host(communicator, layout, with_device ? device.options(false) : AveragerOptions{});
    host.set(uniform(layout, Path::all_reduce, 1.0, codec::ValueKind::f32));
    const auto refused = step_of(host, with_device ? &device : nullptr, 1);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, with_device ? ErrorCode::unsupported : ErrorCode::closed)
        << refused.error().to_string();
  });
}

// Steps that measure curves, too.
TEST(AveragerDevices, AreLookedAtAsHostsAre) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    OnDevice device(layout);
    AveragerOptions options = device.options();
    options.key = "devices";
    Host host(communicator, layout, options);
    Host twin(communicator, layout, {.key = "hosts"});
    for (int number = 1; number <= 3; ++number) {
      const codec::Point rest{1, codec::ValueKind::q2};
      const codec::Point point =
          number == 2 ? testing::ranked(2, codec::ValueKind::q4, rest) : rest;
      const FusionPlan plan = testing::plan_of(layout, Path::split, point);
      for (Host* one : {&host, &twin}) {
        one->set(plan);
        one->averager->ask_for_curves();
      }
      const auto own = step_of(host, &device, number);
      const auto other = step_of(twin, nullptr, number);
      ASSERT_TRUE(own.ok()) << own.error().to_string();
      ASSERT_TRUE(other.ok());
      ASSERT_EQ(host.arena, twin.arena);
      ASSERT_EQ(own.value().curves.size(), layout.parts().size());
      double held = 0;
      for (size_t part = 0; part < layout.parts().size(); ++part) {
        EXPECT_EQ(own.value().curves[part].energy, other.value().curves[part].energy);
        EXPECT_EQ(own.value().curves[part].held, other.value().curves[part].held);
        held += own.value().curves[part].held.back();
      }
      EXPECT_GT(held, 0);
    }
  });
}

// One rank's. A step that is closed cancels its lanes first, which lets the device go on.
class LonelyExchange final : public Exchange {
 public:
  explicit LonelyExchange(ThreadedDevice& device) : device_(device) {}
  [[nodiscard]] Time now() const override { return Time{}; }
  [[nodiscard]] Members members() const override { return everyone(1, 0); }
  void submit(const Members&, Operation, Done done) override {
    ADD_FAILURE() << "nothing was encoded";
    done({.result = Error{.code = ErrorCode::closed, .message = "not here"}});
  }
  void cancel(const Members&, Lane) override {
    if (!std::exchange(cancelled_, true)) device_.release();
  }

 private:
  ThreadedDevice& device_;
  bool cancelled_ = false;
};

TEST(AveragerDevices, ThatAreHeldBackAreWaitedForAtTheEnd) {
  const Layout layout = layout_for(1);
  OnDevice device(layout);
  LonelyExchange exchange(device.device);
  std::vector<float> arena(layout.arena_elements(), 0.0f);
  std::ranges::fill(device.gradients(), 0.0f);
  auto averager = Averager::create(exchange, everyone(1, 0), layout, arena, device.options());
  ASSERT_TRUE(averager.ok());
  ASSERT_TRUE(
      averager.value()->set_plan(uniform(layout, Path::split, 1.0, codec::ValueKind::q4)).ok());
  device.device.hold();
  ASSERT_TRUE(averager.value()->ready(0).ok());
  device.device.wait_for_call();
  averager.value().reset();
}

}  // namespace
}  // namespace scant::gradient
