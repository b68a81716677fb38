// Test support: rounds of members of which some encode elsewhere and later, on simulated devices or
// by encoders that end when the test wants.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "codec/device/staged_encoder.h"
#include "codec/testing/late_encoder.h"
#include "codec/testing/simulated_device.h"
#include "gradient/testing/fusion_plans.h"
#include "gradient/testing/round_of_members.h"

namespace scant::gradient::testing {

using codec::Place;
using codec::testing::LateEncoder;
using codec::testing::SimulatedDevice;

inline codec::Encoder encoder_of(const codec::EncoderSpec& spec) {
  return codec::Encoder::create(spec.tensor, spec.shape, spec.options, spec.range).value();
}

inline std::vector<Rank> all_of(int ranks) {
  std::vector<Rank> all(static_cast<size_t>(ranks));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

inline FusionPlan plan_of(const Layout& layout, Path path, double density,
                          uint64_t buffer_bytes = 3000) {
  return uniform_plan({.path = path,
                       .point = {density, codec::ValueKind::q4},
                       .buffer_bytes = buffer_bytes,
                       .first_buffer_bytes = buffer_bytes,
                       .small_elements = 100},
                      layout);
}

// Gradients of one rank on a simulated device, encoded on the way from there.
class StagedRank {
 public:
  explicit StagedRank(const Layout& layout) : device_(1) {
    memory_ =
        device_.allocate(Place::Kind::device, layout.arena_elements() * sizeof(float)).value();
  }
  ~StagedRank() { device_.release(Place::Kind::device, memory_); }
  StagedRank(const StagedRank&) = delete;
  StagedRank& operator=(const StagedRank&) = delete;

  [[nodiscard]] codec::MakeTensorEncoder encoders() {
    return [this](const codec::EncoderSpec& spec) -> Result<std::unique_ptr<codec::TensorEncoder>> {
      auto made = codec::StagedEncoder::create(encoder_of(spec), device_, workspace_);
      if (!made) return made.error();
      return std::unique_ptr<codec::TensorEncoder>(std::move(made).value());
    };
  }
  // The gradients go there; the arena holds none of them.
  void change(Member& member, RoundSpec& spec) {
    std::memcpy(memory_.data(), member.arena.data(), memory_.size());
    for (const TensorLayout& tensor : member.step->layout().tensors()) {
      std::fill_n(member.arena.begin() + static_cast<std::ptrdiff_t>(tensor.offset),
                  tensor.shape.elements(), 77.0f);
    }
    spec.gradients = {
        .memory = {reinterpret_cast<const float*>(memory_.data()), memory_.size() / sizeof(float)},
        .place = {Place::Kind::device, 1, &stream_}};
    spec.wake = [this] { ++woken; };
  }
  void add_possibilities(std::vector<std::function<void()>>& all) {
    if (!held && works()) all.emplace_back([this] { static_cast<void>(run_one()); });
  }
  [[nodiscard]] bool works() { return device_.pending(&stream_) > 0; }
  bool run_one() { return device_.run_one(&stream_); }
  [[nodiscard]] SimulatedDevice& device() { return device_; }

  bool held = false;
  int woken = 0;

 private:
  SimulatedDevice device_;
  int stream_ = 0;
  codec::Workspace workspace_;
  MutableBytes memory_;
};

// Encoders of one rank that end in any order.
class LateRank {
 public:
  [[nodiscard]] codec::MakeTensorEncoder encoders() {
    return [this](const codec::EncoderSpec& spec) -> Result<std::unique_ptr<codec::TensorEncoder>> {
      auto made = std::make_unique<LateEncoder>(encoder_of(spec));
      made->keeps_elsewhere = keeps_elsewhere;
      LateEncoder* const one = made.get();
      late_.emplace_back(spec.tensor, one);
      made->gone = [this, one] {
        std::erase_if(late_, [one](const auto& known) { return known.second == one; });
      };
      return std::unique_ptr<codec::TensorEncoder>(std::move(made));
    };
  }
  void change(RoundSpec& spec) {
    spec.wake = [this] { ++woken; };
  }
  void add_possibilities(std::vector<std::function<void()>>& all) {
    for (auto& [tensor, encoder] : late_) {
      if (tensor == held || !encoder->works()) continue;
      all.emplace_back([this, one = encoder] {
        one->end();
        ++ended;
      });
    }
  }
  [[nodiscard]] size_t working() const {
    return static_cast<size_t>(
        std::ranges::count_if(late_, [](const auto& one) { return one.second->works(); }));
  }
  [[nodiscard]] std::vector<std::pair<uint32_t, LateEncoder*>>& all() { return late_; }

  uint32_t held = UINT32_MAX;    // of this tensor nothing ends
  bool keeps_elsewhere = false;  // of encoders that are made from now on
  int ended = 0;
  int woken = 0;

 private:
  std::vector<std::pair<uint32_t, LateEncoder*>> late_;
};

enum class Kind { host, staged, late };

// Ranks of which some encode on devices.
struct Ranks {
  Ranks(const Layout& layout, const std::vector<Kind>& kinds, const StepOptions& options)
      : network(static_cast<int>(kinds.size())) {
    std::vector<StepOptions> by_rank(kinds.size(), options);
    for (size_t i = 0; i < kinds.size(); ++i) {
      const auto rank = static_cast<Rank>(i);
      if (kinds[i] == Kind::staged) {
        staged[rank] = std::make_unique<StagedRank>(layout);
        by_rank[i].encoders = staged[rank]->encoders();
        by_rank[i].device = &staged[rank]->device();
      }
      if (kinds[i] == Kind::late) by_rank[i].encoders = late[rank].encoders();
    }
    rounds = std::make_unique<RoundOfMembers>(network, layout, by_rank);
    rounds->change = [this](Member& member, RoundSpec& spec) {
      spec.curves = curves;
      if (staged.contains(member.station)) staged[member.station]->change(member, spec);
      if (late.contains(member.station)) late[member.station].change(spec);
    };
    rounds->elsewhere = [this](std::vector<std::function<void()>>& possible) {
      for (auto& [rank, one] : staged) one->add_possibilities(possible);
      for (auto& [rank, one] : late) one.add_possibilities(possible);
    };
  }
  [[nodiscard]] Member& at(Rank rank) const { return rounds->at(rank); }

  FakeNetwork network;
  std::map<Rank, std::unique_ptr<StagedRank>> staged;
  std::map<Rank, LateRank> late;
  std::unique_ptr<RoundOfMembers> rounds;
  bool curves = false;
};

}  // namespace scant::gradient::testing
