// Nothing is lost: what is decoded and what is kept add up to what came in, for every point and
// every residual store, also after saving, regrouping, resizing and thousands of steps.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::kAllKinds;
using testing::make;
using testing::step;

constexpr uint64_t kSeed = 20261121;

// f32: residual' = fl(fl(gradient + residual) - decoded), element by element, bit for bit.
TEST(Conservation, IsExactInTheStatedArithmetic) {
  Workspace workspace;
  for (const ValueKind kind : kAllKinds) {
    for (const double density : {1.0, 0.3, 0.01}) {
      for (const uint64_t columns : {uint64_t{1}, uint64_t{300}, uint64_t{70001}}) {
        SCOPED_TRACE(std::string(name(kind)) + " at " + std::to_string(density) + " of 3 x " +
                     std::to_string(columns));
        const Shape shape{3, columns};
        Encoder encoder = make(shape);
        std::vector<float> before(shape.elements());
        std::vector<float> after(shape.elements());
        for (uint64_t t = 0; t < 4; ++t) {
          const auto gradient = gaussians(shape.elements(), kSeed, t);
          const auto stepped = step(encoder, gradient, {density, kind}, workspace);
          encoder.read_residual(after);
          size_t wrong = 0;
          for (size_t i = 0; i < gradient.size(); ++i) {
            const float accumulated = gradient[i] + before[i];
            wrong += after[i] == accumulated - stepped.decoded[i] ? 0 : 1;
          }
          ASSERT_EQ(wrong, 0u) << "step " << t;
          before = after;
        }
      }
    }
  }
}

struct Drift {
  double mean = 0;     // of sent + kept - given, in units of the residual's rounding
  double largest = 0;  // the same, of one element
};

Drift drift_after(int steps, ResidualKind residual, Point point) {
  Workspace workspace;
  const Shape shape{8, 160};
  EncoderOptions options{.residual = residual, .seed = kSeed};
  Encoder encoder = make(shape, options);
  std::vector<double> balance(shape.elements());
  double largest_kept = 0;
  std::vector<float> kept(shape.elements());
  for (int t = 0; t < steps; ++t) {
    const auto gradient = gaussians(shape.elements(), kSeed, static_cast<uint64_t>(t));
    const auto stepped = step(encoder, gradient, point, workspace);
    encoder.read_residual(kept);
    for (size_t i = 0; i < balance.size(); ++i) {
      balance[i] += static_cast<double>(stepped.decoded[i]) - static_cast<double>(gradient[i]);
      largest_kept = std::max(largest_kept, static_cast<double>(std::abs(kept[i])));
    }
  }
  // One rounding moves an element by less than this.
  const double unit = largest_kept * (residual == ResidualKind::i8     ? 1.01 / 127
                                      : residual == ResidualKind::bf16 ? 1.0 / 128
                                                                       : 0x1p-24);
  Drift drift;
  for (size_t i = 0; i < balance.size(); ++i) {
    const double off = (balance[i] + static_cast<double>(kept[i])) / unit;
    drift.mean += off / static_cast<double>(balance.size());
    drift.largest = std::max(drift.largest, std::abs(off));
  }
  return drift;
}

// Each rounding is unbiased and below one unit, so an element's error is a random walk of at most
// sqrt(steps) / 2 units, and the mean of n elements one of a sqrt(n)-th of that: six deviations.
TEST(Conservation, DoesNotDriftOverTenThousandSteps) {
  constexpr int kSteps = 10000;
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    for (const Point point : {Point{1.0, ValueKind::q2}, Point{0.05, ValueKind::q4}}) {
      SCOPED_TRACE(std::string(name(residual)) + " with " + name(point.values));
      const Drift drift = drift_after(kSteps, residual, point);
      EXPECT_LT(std::abs(drift.mean), 6 * 0.5 * std::sqrt(kSteps / 1280.0));
      EXPECT_LT(drift.largest, 6 * 0.5 * std::sqrt(kSteps));
    }
  }
}

TEST(Conservation, DecayKeepsItsShareAndNoResidualKeepsNothing) {
  Workspace workspace;
  const Shape shape{1, 1000};
  Encoder decayed = make(shape, {.decay = 0.5f});
  Encoder none = make(shape, {.residual = ResidualKind::none});
  const auto gradient = gaussians(1000, kSeed, 1);
  const std::vector<float> zeros(1000);
  step(decayed, gradient, {0.1, ValueKind::f32}, workspace);
  const auto first = step(none, gradient, {0.1, ValueKind::f32}, workspace);
  std::vector<float> kept(1000);
  decayed.read_residual(kept);
  const auto stepped = step(decayed, zeros, {0.1, ValueKind::f32}, workspace);
  for (size_t i = 0; i < kept.size(); ++i) {
    if (stepped.decoded[i] != 0) {
      EXPECT_EQ(stepped.decoded[i], kept[i] * 0.5f);
    }
  }
  EXPECT_EQ(none.memory_bytes(), 0u);
  const auto second = step(none, zeros, {0.1, ValueKind::f32}, workspace);
  EXPECT_EQ(first.report.entries, 100u);
  EXPECT_EQ(second.report.entries, 0u);
}

// Momentum correction and masking against the equations of Lin et al.
TEST(Conservation, MomentumIsCorrectedAndMasked) {
  Workspace workspace;
  const size_t n = 500;
  for (const bool mask : {true, false}) {
    Encoder encoder = make({1, n}, {.momentum = 0.9f, .mask_momentum = mask});
    std::vector<float> u(n);
    std::vector<float> v(n);
    for (uint64_t t = 0; t < 30; ++t) {
      const auto gradient = gaussians(n, kSeed, t);
      for (size_t i = 0; i < n; ++i) {
        u[i] = gradient[i] + 0.9f * u[i];
        v[i] += u[i];
      }
      const auto stepped = step(encoder, gradient, {0.1, ValueKind::f32}, workspace);
      ASSERT_EQ(stepped.report.entries, 50u);
      for (size_t i = 0; i < n; ++i) {
        if (stepped.decoded[i] == 0) continue;
        ASSERT_EQ(stepped.decoded[i], v[i]);
        v[i] = 0;
        if (mask) u[i] = 0;
      }
    }
  }
}

TEST(Conservation, SavedStateContinuesWithTheSameBytes) {
  Workspace workspace;
  const Shape shape{40, 500};
  for (const ResidualKind residual :
       {ResidualKind::none, ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    Encoder encoder =
        make(shape, {.residual = residual, .momentum = 0.5f, .stochastic = true, .evenness = 0.5f});
    const auto run = [&](Encoder& one, uint64_t t) {
      return step(one, gaussians(shape.elements(), kSeed, t), {0.02, ValueKind::q4}, workspace);
    };
    for (uint64_t t = 0; t < 5; ++t) run(encoder, t);
    const auto saved = encoder.save();
    auto restored = Encoder::restore(saved);
    ASSERT_TRUE(restored.ok()) << restored.error().to_string();
    for (uint64_t t = 5; t < 10; ++t) {
      EXPECT_EQ(run(encoder, t).bytes, run(restored.value(), t).bytes);
    }
    EXPECT_EQ(encoder.save(), restored.value().save());
  }
}

// Each field has a value of its own, also those that small ranges never use.
TEST(Conservation, EveryFieldOfASavedStateComesBack) {
  const EncoderOptions options{.residual = ResidualKind::i8,
                               .decay = 0.75f,
                               .momentum = 0.5f,
                               .mask_momentum = false,
                               .stochastic = true,
                               .evenness = 0.25f,
                               .seed = 0x123456789ABCDEF0};
  auto made = Encoder::create(11, {5, 777}, options, Range{640, 1000});
  auto saved = std::move(made).value().save();
  base::store_little(saved.data() + 64, uint64_t{0x100000002});  // step
  base::store_little(saved.data() + 72, std::bit_cast<uint64_t>(-3.25));
  base::store_little(saved.data() + 80, std::bit_cast<uint64_t>(0.125));
  base::store_little(saved.data() + 88, std::bit_cast<uint32_t>(0.5f));     // threshold
  base::store_little(saved.data() + 92, std::bit_cast<uint32_t>(9.5f));     // slope
  base::store_little(saved.data() + 108, uint32_t{2});                      // settled
  base::store_little(saved.data() + 112, std::bit_cast<uint32_t>(0.125f));  // trend
  base::store_little(saved.data() + 116, uint32_t{31});                     // sweeps
  base::store_little(saved.data() + 120, std::bit_cast<uint64_t>(3.5));     // turn
  for (size_t at = 128; at < saved.size() - 4; at += 4)                     // small finite numbers
    base::store_little(saved.data() + at, static_cast<uint32_t>(0x3C000000u + at));
  const size_t body = saved.size() - 4;
  base::store_little(saved.data() + body, base::crc32c(Bytes(saved).first(body)));
  const auto restored = Encoder::restore(saved);
  ASSERT_TRUE(restored.ok()) << restored.error().to_string();
  EXPECT_EQ(restored.value().save(), saved);
  EXPECT_EQ(restored.value().step(), 0x100000002u);
  EXPECT_EQ(restored.value().range(), (Range{640, 1000}));
}

TEST(Conservation, StateOfANewerVersionIsRefusedByName) {
  auto saved = make({3, 100}, {}).save();
  saved[4] = std::byte{9};
  const auto restored = Encoder::restore(saved);
  ASSERT_FALSE(restored.ok());
  EXPECT_EQ(restored.error().code, ErrorCode::unsupported);
  EXPECT_EQ(restored.error().message,
            "the saved encoder is of version 9; this scant reads up to 1: upgrade scant");
}

TEST(Conservation, DamagedStateIsRefused) {
  Encoder encoder = make({3, 100}, {.residual = ResidualKind::i8, .momentum = 0.5f});
  const auto saved = encoder.save();
  auto resealed = saved;  // a debt that no step can leave, with the right checksum
  base::store_little(resealed.data() + 72, std::bit_cast<uint64_t>(-1e18));
  const Bytes body = Bytes(resealed).first(resealed.size() - 4);
  base::store_little(resealed.data() + body.size(), base::crc32c(body));
  EXPECT_FALSE(Encoder::restore(resealed).ok());
  for (size_t size = 0; size < saved.size(); size += 7) {
    const auto restored = Encoder::restore(Bytes(saved).first(size));
    ASSERT_FALSE(restored.ok());
    EXPECT_EQ(restored.error().code, ErrorCode::corrupt);
  }
  for (size_t bit = 0; bit < saved.size() * 8; bit += 5) {
    auto damaged = saved;
    damaged[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_FALSE(Encoder::restore(damaged).ok()) << bit;
  }
}

// energy - energy_left is what a record keeps: exact but for rounding in sparse steps and in dense
// steps of one block.
TEST(Conservation, EnergiesAreThoseOfTheResidual) {
  Workspace workspace;
  for (const Point point : {Point{0.05, ValueKind::q2}, Point{0.05, ValueKind::f32},
                            Point{1.0, ValueKind::q2}, Point{1.0, ValueKind::bf16}}) {
    Encoder encoder = make({4, 1000});
    const auto stepped = step(encoder, gaussians(4000, kSeed, 1), point, workspace);
    std::vector<float> kept(4000);
    encoder.read_residual(kept);
    double left = 0;
    for (const float value : kept) left += static_cast<double>(value) * static_cast<double>(value);
    EXPECT_NEAR(stepped.report.energy, 4000, 400);
    EXPECT_NEAR(stepped.report.energy_left / left, 1.0, 1e-4) << name(point.values);
  }
}

double energy_kept_by(const Encoder& encoder) {
  std::vector<float> kept(encoder.range().elements);
  encoder.read_residual(kept);
  double left = 0;
  for (const float value : kept) left += static_cast<double>(value) * static_cast<double>(value);
  return left;
}

// One block in eight stands for its neighbours, those that go as f32 for NaN's sake left out.
TEST(Conservation, EnergyLeftOfManyBlocksIsEstimated) {
  Workspace workspace;
  constexpr size_t kElements = 20 * 4096 + 100;
  for (const bool nan : {false, true}) {
    Encoder encoder = make({1, kElements});
    auto gradient = gaussians(kElements, kSeed, 1);
    if (nan) gradient[5] = gradient[9 * 4096] = std::nanf("");
    const auto stepped = step(encoder, gradient, {1.0, ValueKind::q2}, workspace);
    EXPECT_NEAR(stepped.report.energy_left / energy_kept_by(encoder), 1.0, 0.05) << nan;
  }
}

// A block that leaves nothing has been measured too: what stands behind it is no measure for it.
TEST(Conservation, BlocksThatLeaveNothingCountAsMeasured) {
  Workspace workspace;
  constexpr size_t kBlock = 4096;
  Encoder encoder = make({1, 8 * kBlock});
  auto gradient = gaussians(8 * kBlock, kSeed, 1);
  std::fill_n(gradient.begin(), kBlock, 16.0f);  // a number of q1
  const auto stepped = step(encoder, gradient, {1.0, ValueKind::q1}, workspace);
  const double left = energy_kept_by(encoder);
  EXPECT_GT(stepped.report.energy_left, left / 8);
  EXPECT_LT(stepped.report.energy_left, left * 2);
}

// The loss is scaled anew: the next step is that of gradients that always were so.
TEST(Conservation, AScaledResidualGoesOnAtTheNewScale) {
  Workspace workspace;
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    Encoder encoder = make({3, 3000}, {.residual = residual, .momentum = 0.5f});
    Encoder scaled = make({3, 3000}, {.residual = residual, .momentum = 0.5f});
    for (uint64_t t = 0; t < 3; ++t) {
      step(encoder, gaussians(9000, kSeed, t), {0.05, ValueKind::f32}, workspace);
      step(scaled, gaussians(9000, kSeed, t, 8), {0.05, ValueKind::f32}, workspace);
    }
    scaled.scale_residual(0.125f);
    const auto gradient = gaussians(9000, kSeed, 3);
    std::vector<float> expected(4096);
    std::vector<float> got(4096);
    encoder.peek(0, gradient.data(), expected);
    scaled.peek(0, gradient.data(), got);
    const float slack = residual == ResidualKind::i8 ? 0.1f : 0;  // rounded once more
    for (size_t i = 0; i < got.size(); ++i)
      ASSERT_NEAR(got[i], expected[i], slack) << name(residual) << " " << i;
    if (residual == ResidualKind::i8) continue;
    EXPECT_EQ(step(scaled, gradient, {0.05, ValueKind::f32}, workspace).bytes,
              step(encoder, gradient, {0.05, ValueKind::f32}, workspace).bytes);
  }
}

TEST(Conservation, AScaledResidualStaysFinite) {
  Workspace workspace;
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    for (const float factor : {1e38f, -1e38f, 0.0f}) {
      Encoder encoder = make({1, 5000}, {.residual = residual, .momentum = 0.5f});
      step(encoder, gaussians(5000, kSeed, 1, 1e6f), {0.1, ValueKind::f32}, workspace);
      encoder.scale_residual(factor);
      std::vector<float> kept(5000);
      encoder.read_residual(kept);
      EXPECT_TRUE(std::all_of(kept.begin(), kept.end(), [](float v) { return std::isfinite(v); }))
          << name(residual) << " " << factor;
      EXPECT_TRUE(Encoder::restore(encoder.save()).ok()) << name(residual) << " " << factor;
    }
  }
}

// World size or grouping changes: slices are cut anew, at multiples of 64, and every element's
// residual moves as it is.
TEST(Conservation, ResidualsMoveBetweenSlicesUnrounded) {
  Workspace workspace;
  const Shape shape{16, 100};
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    const auto cut = [&](const std::vector<uint64_t>& bounds) {
      std::vector<Encoder> slices;
      for (size_t i = 0; i + 1 < bounds.size(); ++i) {
        auto made = Encoder::create(3, shape, {.residual = residual},
                                    Range{bounds[i], bounds[i + 1] - bounds[i]});
        EXPECT_TRUE(made.ok());
        slices.push_back(std::move(made).value());
      }
      return slices;
    };
    const auto kept = [&](const std::vector<Encoder>& slices) {
      std::vector<float> all;
      for (const Encoder& slice : slices) {
        std::vector<float> part(slice.range().elements);
        slice.read_residual(part);
        all.insert(all.end(), part.begin(), part.end());
      }
      return all;
    };
    auto three = cut({0, 512, 1024, 1600});
    for (Encoder& slice : three)
      step(slice, gaussians(slice.range().elements, kSeed, slice.range().first),
           {0.1, ValueKind::q4}, workspace);
    auto five = cut({0, 320, 640, 960, 1280, 1600});
    for (Encoder& to : five)
      for (const Encoder& from : three) ASSERT_TRUE(to.take_over(from).ok());
    EXPECT_EQ(kept(three), kept(five));
    auto one = cut({0, 1600});
    for (const Encoder& from : five) ASSERT_TRUE(one[0].take_over(from).ok());
    EXPECT_EQ(kept(three), kept(one));
  }
}

TEST(Conservation, ALeaversResidualIsAdded) {
  Workspace workspace;
  const Shape shape{1, 1000};
  Encoder stays = make(shape);
  Encoder leaves = make(shape);
  step(stays, gaussians(1000, kSeed, 1), {0.1, ValueKind::q4}, workspace);
  step(leaves, gaussians(1000, kSeed, 2), {0.1, ValueKind::q4}, workspace);
  std::vector<float> a(1000);
  std::vector<float> b(1000);
  std::vector<float> sum(1000);
  stays.read_residual(a);
  leaves.read_residual(b);
  ASSERT_TRUE(stays.take_over(leaves).ok());
  stays.read_residual(sum);
  for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], a[i] + b[i]);
  Encoder a_moving = make(shape, {.momentum = 0.5f});
  Encoder b_moving = make(shape, {.momentum = 0.5f});
  const auto moved = gaussians(1000, kSeed, 3);
  step(b_moving, moved, {0.001, ValueKind::f32}, workspace);
  ASSERT_TRUE(a_moving.take_over(b_moving).ok());
  const std::vector<float> zeros(1000);
  step(a_moving, zeros, {0.001, ValueKind::f32}, workspace);
  a_moving.read_residual(sum);
  b_moving.read_residual(b);
  size_t grown = 0;  // residual and velocity were taken over: both add up in the next step
  for (size_t i = 0; i < sum.size(); ++i) grown += sum[i] == b[i] + 0.5f * b[i] ? 1 : 0;
  EXPECT_GT(grown, 990u);
  Encoder other = make({10, 100});
  const auto refused = other.take_over(stays);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::mismatch);
}

// Reduce-scatter of compressed gradients: workers send a record for each slice, the slice's owner
// adds them, encodes the mean with a residual of its own, and everybody decodes that.
TEST(Conservation, TwoLegsKeepTheMass) {
  constexpr size_t kRanks = 4;
  const Shape shape{64, 128};
  Workspace workspace;
  const uint64_t part = shape.elements() / kRanks;
  std::vector<std::vector<Encoder>> workers(kRanks);
  std::vector<Encoder> owners;
  for (size_t slice = 0; slice < kRanks; ++slice) {
    const Range range{slice * part, part};
    for (auto& worker : workers)
      worker.push_back(std::move(Encoder::create(1, shape, {}, range)).value());
    owners.push_back(std::move(Encoder::create(1, shape, {}, range)).value());
  }
  std::vector<double> given(shape.elements());
  std::vector<double> applied(shape.elements());
  for (uint64_t t = 0; t < 50; ++t) {
    for (size_t slice = 0; slice < kRanks; ++slice) {
      std::vector<RecordBuffer> buffers(kRanks);
      std::vector<RecordView> records;
      for (size_t rank = 0; rank < kRanks; ++rank) {
        const auto gradient = gaussians(part, kSeed, t * 100 + slice * 10 + rank);
        for (size_t i = 0; i < part; ++i)
          given[slice * part + i] += static_cast<double>(gradient[i]) / kRanks;
        ASSERT_TRUE(workers[rank][slice]
                        .encode(gradient, {1.0, ValueKind::q2}, workspace, buffers[rank])
                        .ok());
        records.push_back(std::move(RecordView::parse(buffers[rank].view())).value());
      }
      std::vector<float> mean(part);
      ASSERT_TRUE(accumulate(records, 1, shape, slice * part, mean, 1.0f / kRanks, workspace).ok());
      const auto out = step(owners[slice], mean, {1.0, ValueKind::q2}, workspace);
      for (size_t i = 0; i < part; ++i)
        applied[slice * part + i] += static_cast<double>(out.decoded[i]);
    }
  }
  std::vector<float> kept(part);
  for (size_t slice = 0; slice < kRanks; ++slice) {
    owners[slice].read_residual(kept);
    for (size_t i = 0; i < part; ++i) applied[slice * part + i] += static_cast<double>(kept[i]);
    for (auto& worker : workers) {
      worker[slice].read_residual(kept);
      for (size_t i = 0; i < part; ++i)
        applied[slice * part + i] += static_cast<double>(kept[i]) / kRanks;
    }
  }
  for (size_t i = 0; i < given.size(); ++i) ASSERT_NEAR(applied[i], given[i], 1e-4) << i;
}

}  // namespace
}  // namespace scant::codec
