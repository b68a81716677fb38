// Test support: one rank's averager with an arena of its own, gradients that every rank can compute
// of every other, random plans, and arenas compared over the ranks.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gradient/averager.h"
#include "gradient/testing/fusion_plans.h"

namespace scant::gradient {

inline const std::vector<codec::Shape> kShapes = {{1, 10}, {300, 200}, {1, 300},  {64, 4096},
                                                  {7, 33}, {1, 1},     {128, 129}};

inline Layout layout_for(int ranks, const std::vector<codec::Shape>& shapes = kShapes) {
  return Layout::create(shapes, ranks).value();
}

// Gradients that every rank can compute of every rank.
inline float gradient_at(int step, Rank rank, uint32_t tensor, uint64_t element) {
  const uint64_t drawn = base::random_at(static_cast<uint64_t>(step) << 32 | tensor,
                                         static_cast<uint64_t>(rank), element);
  const double uniform = static_cast<double>(drawn >> 11) * 0x1p-53 - 0.5;
  return static_cast<float>(uniform * uniform * uniform * (1.0 + tensor));
}

// One rank: its averager, its arena, and what it has done.
struct Host {
  Host(Communicator& with, const Layout& given, const AveragerOptions& options = {})
      : communicator(with), layout(given), arena(layout.arena_elements(), 0.0f) {
    auto made = Averager::create(communicator, layout, arena, options);
    if (!made) {
      ADD_FAILURE() << made.error().to_string();
      std::abort();
    }
    averager = std::move(made).value();
  }
  void set(const FusionPlan& plan) const {
    const Result<void> done = averager->set_plan(plan);
    EXPECT_TRUE(done.ok()) << done.error().to_string();
  }
  [[nodiscard]] std::span<float> of(uint32_t tensor) {
    const TensorLayout& known = layout.tensors()[tensor];
    return std::span(arena).subspan(known.offset, known.shape.elements());
  }
  void fill(int step, uint32_t tensor) {
    const std::span<float> out = of(tensor);
    for (uint64_t i = 0; i < out.size(); ++i) {
      out[i] = gradient(step, communicator.rank(), tensor, i);
    }
  }
  Result<StepReport> end(uint64_t hash = 0) const {
    if (Result<void> told = averager->finish(hash); !told) return told.error();
    auto outcome = averager->wait(std::chrono::seconds(60));
    if (!outcome) return Error{.code = ErrorCode::timeout, .message = "the step did not end"};
    return *std::move(outcome);
  }
  // All tensors but `absent`, in an order of its own.
  Result<StepReport> step(int number, uint64_t seed, const std::vector<uint32_t>& absent = {}) {
    base::Rng rng(seed, static_cast<uint64_t>(communicator.rank()));
    std::vector<uint32_t> order(layout.tensors().size());
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
    for (const uint32_t tensor : order) {
      if (std::ranges::find(absent, tensor) != absent.end()) continue;
      fill(number, tensor);
      EXPECT_TRUE(averager->ready(tensor).ok());
    }
    return end();
  }

  Communicator& communicator;
  const Layout layout;
  std::vector<float> arena;
  std::unique_ptr<Averager> averager;
  std::function<float(int, Rank, uint32_t, uint64_t)> gradient = gradient_at;
};

inline FusionPlan uniform(const Layout& layout, Path path, double density, codec::ValueKind values,
                          uint64_t buffer_bytes = 300'000) {
  return uniform_plan({.path = path,
                       .point = {density, values},
                       .buffer_bytes = buffer_bytes,
                       .first_buffer_bytes = 10'000,
                       .small_elements = 100},
                      layout);
}

// A plan of random paths and points; on demand some matrices have factors.
inline FusionPlan random_plan(base::Rng& rng, const Layout& layout, bool factors = false) {
  FusionPlan plan;
  const auto parts = static_cast<uint32_t>(layout.parts().size());
  for (uint32_t first = 0; first < parts;) {
    const auto count = 1 + static_cast<uint32_t>(rng.below(parts - first));
    BufferPlan buffer{first, count, static_cast<Path>(rng.below(kPathCount)), {}};
    const auto point = [&rng] {
      constexpr double kDensities[] = {1.0, 0.3, 0.05};
      return codec::Point{kDensities[rng.below(3)],
                          static_cast<codec::ValueKind>(rng.below(codec::kValueKindCount)),
                          rng.below(2) == 1};
    };
    for (uint32_t i = 0; buffer.path != Path::all_reduce && i < count; ++i) {
      PartPlan part{point(), buffer.path == Path::split ? point() : codec::Point{}};
      const uint64_t most = factors ? std::min<uint64_t>(layout.rank_max(first + i), 8) : 0;
      if (most > 0 && rng.chance(0.4)) {
        testing::add_random_factors(rng, most, buffer.path, part);
      }
      buffer.points.push_back(part);
    }
    plan.buffers.push_back(std::move(buffer));
    first += count;
  }
  const uint64_t reversed = rng.below(plan.buffers.size() + 1);
  if (reversed != 1) plan.reversed = static_cast<uint32_t>(reversed);
  return plan;
}

inline double exact_average(int step, int ranks, uint32_t tensor, uint64_t element) {
  double sum = 0;
  for (Rank rank = 0; rank < ranks; ++rank) sum += gradient_at(step, rank, tensor, element);
  return sum / ranks;
}

// Collects one arena from each rank, to compare them afterwards.
class Collected {
 public:
  void add(Rank rank, const std::vector<float>& arena) {
    const std::lock_guard lock(mutex_);
    by_rank_.resize(std::max(by_rank_.size(), static_cast<size_t>(rank) + 1));
    std::vector<float>& all = by_rank_[static_cast<size_t>(rank)];
    all.insert(all.end(), arena.begin(), arena.end());
  }
  void expect_alike() const {
    for (size_t rank = 1; rank < by_rank_.size(); ++rank) {
      ASSERT_EQ(by_rank_[rank].size(), by_rank_[0].size());
      EXPECT_EQ(std::memcmp(by_rank_[rank].data(), by_rank_[0].data(),
                            by_rank_[0].size() * sizeof(float)),
                0)
          << "rank " << rank;
    }
  }

 private:
  std::mutex mutex_;
  std::vector<std::vector<float>> by_rank_;
};

// Steps 1 to `steps`, the last by a plain plan, which sends what the others kept. `applied`: the
// sum of the averages, by element of the arena.
inline void step_by_random_plans(Host& host, uint64_t seed, int steps, Collected& collected,
                                 std::vector<double>& applied) {
  applied.assign(host.layout.arena_elements(), 0.0);
  base::Rng plans(seed);
  for (int number = 1; number <= steps; ++number) {
    host.set(number < steps ? random_plan(plans, host.layout, true)
                            : uniform(host.layout, Path::all_reduce, 1.0, codec::ValueKind::f32));
    const auto report = host.step(number, seed * 100 + static_cast<uint64_t>(number));
    ASSERT_TRUE(report.ok()) << report.error().to_string();
    collected.add(host.communicator.rank(), host.arena);
    for (size_t i = 0; i < applied.size(); ++i) applied[i] += host.arena[i];
  }
  EXPECT_EQ(host.averager->residual_energy(), 0.0);
}

}  // namespace scant::gradient
