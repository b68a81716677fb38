// What is lost on the way returns: what arrived and what is kept add up to what came in, for random
// ranges, every kind of value and of residual, and for values that break arithmetic.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

#include "codec/testing/encoders.h"
#include "codec/testing/records.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::kAllKinds;
using testing::lies_in;
using testing::make;
using testing::random_ranges;
using testing::step;

constexpr ResidualKind kResiduals[] = {ResidualKind::none, ResidualKind::f32, ResidualKind::bf16,
                                       ResidualKind::i8};
constexpr Point kShapesOfRecords[] = {{1.0}, {0.3}, {0.01}, {0.1, ValueKind::f32, true}};

std::vector<float> kept(const Encoder& encoder) {
  std::vector<float> residual(encoder.range().elements);
  encoder.read_residual(residual);
  return residual;
}

RecordView view_of(const testing::Stepped& stepped) {
  return std::move(RecordView::parse(stepped.bytes)).value();
}

// What the receiver adds.
std::vector<float> arrived(const Encoder& encoder, const RecordView& record,
                           std::span<const Range> lost, Workspace& workspace) {
  std::vector<float> sum(encoder.range().elements);
  const auto added = accumulate({&record, 1}, encoder.tensor(), encoder.shape(),
                                encoder.range().first, sum, 1.0f, workspace, {&lost, 1});
  EXPECT_TRUE(added.ok()) << added.error().to_string();
  return sum;
}

// Of stores that round: one rounding of an element, given the largest that it shares a scale with.
float unit(ResidualKind residual, float value, float largest) {
  if (residual == ResidualKind::i8) return largest * 1.01f / 127;
  return residual == ResidualKind::bf16 ? std::abs(value) / 128 : 0;
}

// residual' = round(fl(residual + decoded)) where it was lost; elsewhere as it was, but for i8 in a
// group that lost something.
void check_returned(const Encoder& encoder, std::span<const float> before,
                    std::span<const float> decoded, std::span<const Range> lost) {
  const ResidualKind residual = encoder.options().residual;
  const auto after = kept(encoder);
  for (size_t group = 0; group < after.size(); group += kGroupElements) {
    const size_t end = std::min(group + kGroupElements, after.size());
    std::vector<float> expected;
    float largest = 0;
    for (size_t i = group; i < end; ++i) {
      const bool back = lies_in(lost, encoder.range().first + i);
      expected.push_back(back && residual != ResidualKind::none ? before[i] + decoded[i]
                                                                : before[i]);
      largest = std::max(largest, std::abs(expected.back()));
    }
    const bool touched =
        !ranges_within(lost, encoder.range().first + group, encoder.range().first + end).empty();
    for (size_t i = group; i < end; ++i) {
      const float sum = expected[i - group];
      const bool back = lies_in(lost, encoder.range().first + i);
      const bool rounded = back || (touched && residual == ResidualKind::i8);
      ASSERT_NEAR(after[i], sum, rounded ? unit(residual, sum, largest) : 0) << i;
    }
  }
}

TEST(TakeBack, ReturnsWhatDidNotArriveToEveryKindOfResidual) {
  base::Rng rng = testing::printed_rng(kSeed);
  Workspace workspace;
  for (const ResidualKind residual : kResiduals) {
    for (const ValueKind kind : kAllKinds) {
      for (Point point : kShapesOfRecords) {
        point.values = kind;
        SCOPED_TRACE(std::string(name(residual)) + " with " + name(kind) + " at " +
                     std::to_string(point.density));
        const Shape shape{3, 1 + rng.below(9000)};
        const Range range{64 * rng.below(shape.elements() / 64 + 1), 0};
        Encoder encoder =
            std::move(Encoder::create(7, shape, {.residual = residual},
                                      Range{range.first, shape.elements() - range.first}))
                .value();
        for (uint64_t t = 0; t < 3; ++t) {
          const auto gradient = gaussians(encoder.range().elements, kSeed, t);
          const auto stepped = step(encoder, gradient, point, workspace);
          const RecordView record = view_of(stepped);
          const auto lost = random_ranges(rng, encoder.range());
          const auto before = kept(encoder);
          const auto there = arrived(encoder, record, lost, workspace);
          for (size_t i = 0; i < there.size(); ++i) {
            const bool gone = lies_in(lost, encoder.range().first + i);
            ASSERT_EQ(there[i], gone ? 0.0f : stepped.decoded[i]);
          }
          const auto taken = encoder.take_back(record, lost, workspace);
          ASSERT_TRUE(taken.ok()) << taken.error().to_string();
          check_returned(encoder, before, stepped.decoded, lost);
        }
      }
    }
  }
}

// More than one piece, blocks of two sizes, and any number of workers.
TEST(TakeBack, ReturnsTheSameFromLargeRecordsOnAnyNumberOfWorkers) {
  base::Rng rng = testing::printed_rng(kSeed + 1);
  Workspace one;
  Workspace three;
  ASSERT_TRUE(three.start(3).ok());
  for (const ResidualKind residual : kResiduals) {
    for (const double density : {1.0, 0.05}) {
      const Shape shape{3, 70001};
      Encoder encoder = make(shape, {.residual = residual});
      const auto gradient = gaussians(shape.elements(), kSeed, 1);
      const auto stepped = step(encoder, gradient, {density, ValueKind::q4}, one);
      Encoder twin = std::move(Encoder::restore(encoder.save())).value();
      const auto lost = random_ranges(rng, encoder.range());
      const auto before = kept(encoder);
      ASSERT_TRUE(encoder.take_back(view_of(stepped), lost, one).ok());
      ASSERT_TRUE(twin.take_back(view_of(stepped), lost, three).ok());
      EXPECT_EQ(encoder.save(), twin.save());
      check_returned(encoder, before, stepped.decoded, lost);
    }
  }
}

// Nothing arrived: the next step finds what it would have found had nothing been sent. Exactly so
// for numbers, whose error of rounding is a number again; within two roundings for codes.
TEST(TakeBack, OfAllIsAsIfNothingHadBeenSent) {
  Workspace workspace;
  for (const ValueKind kind : kAllKinds) {
    for (const double density : {1.0, 0.1}) {
      SCOPED_TRACE(std::string(name(kind)) + " at " + std::to_string(density));
      const Shape shape{2, 5000};
      Encoder encoder = make(shape);
      for (uint64_t t = 0; t < 3; ++t) {
        const auto gradient = gaussians(shape.elements(), kSeed, t);
        const auto before = kept(encoder);
        const auto stepped = step(encoder, gradient, {density, kind}, workspace);
        const auto left = kept(encoder);
        const Range all = encoder.range();
        ASSERT_TRUE(encoder.take_back(view_of(stepped), {&all, 1}, workspace).ok());
        const auto after = kept(encoder);
        for (size_t i = 0; i < after.size(); ++i) {
          const float never_sent = gradient[i] + before[i];
          const float rounding =
              quantised(kind) ? 0x1p-24f * (std::abs(left[i]) + std::abs(never_sent)) : 0;
          ASSERT_NEAR(after[i], never_sent, rounding) << "step " << t << ", element " << i;
        }
      }
    }
  }
}

// Decay, momentum and thresholds go on from a residual that is larger, and from nothing else.
TEST(TakeBack, ChangesTheResidualAlone) {
  base::Rng rng = testing::printed_rng(kSeed + 2);
  Workspace workspace;
  for (const bool mask : {true, false}) {
    const EncoderOptions options{.decay = 0.5f,
                                 .momentum = 0.9f,
                                 .mask_momentum = mask,
                                 .stochastic = true,
                                 .evenness = 0.5f};
    Encoder encoder = make({3, 50000}, options);
    Encoder twin = make({3, 50000}, options);
    for (uint64_t t = 0; t < 3; ++t) {
      const auto gradient = gaussians(150000, kSeed, t);
      const auto stepped = step(encoder, gradient, {0.02, ValueKind::q4}, workspace);
      ASSERT_EQ(step(twin, gradient, {0.02, ValueKind::q4}, workspace).bytes, stepped.bytes);
      const auto lost = random_ranges(rng, encoder.range());
      std::vector<float> addend(150000);
      for (size_t i = 0; i < addend.size(); ++i)
        addend[i] = lies_in(lost, i) ? stepped.decoded[i] : 0.0f;
      ASSERT_TRUE(encoder.take_back(view_of(stepped), lost, workspace).ok());
      ASSERT_TRUE(twin.add_residual(addend).ok());
      ASSERT_EQ(encoder.save(), twin.save()) << t;
    }
  }
}

// Roundings are unbiased: with a loss in every step, what arrived and what is kept stay within a
// random walk of what came in.
TEST(TakeBack, LosesNoMassOverAThousandLossySteps) {
  base::Rng rng = testing::printed_rng(kSeed + 3);
  Workspace workspace;
  constexpr int kSteps = 1000;
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::bf16, ResidualKind::i8}) {
    for (const Point point : {Point{1.0, ValueKind::q2}, Point{0.05, ValueKind::q4}}) {
      SCOPED_TRACE(std::string(name(residual)) + " with " + name(point.values));
      Encoder encoder = make({8, 160}, {.residual = residual});
      std::vector<double> balance(1280);
      double largest = 0;
      for (uint64_t t = 0; t < kSteps; ++t) {
        const auto gradient = gaussians(1280, kSeed, t);
        const auto stepped = step(encoder, gradient, point, workspace);
        const auto lost = random_ranges(rng, encoder.range());
        const auto there = arrived(encoder, view_of(stepped), lost, workspace);
        ASSERT_TRUE(encoder.take_back(view_of(stepped), lost, workspace).ok());
        const auto residuals = kept(encoder);
        for (size_t i = 0; i < balance.size(); ++i) {
          balance[i] += static_cast<double>(there[i]) - static_cast<double>(gradient[i]);
          largest = std::max(largest, static_cast<double>(std::abs(residuals[i])));
        }
      }
      // Two roundings a step, each below a unit of the largest residual that there was.
      const double step_unit = largest * (residual == ResidualKind::i8     ? 1.01 / 127
                                          : residual == ResidualKind::bf16 ? 1.0 / 128
                                                                           : 0x1p-23);
      const auto residuals = kept(encoder);
      double mean = 0;
      for (size_t i = 0; i < balance.size(); ++i) {
        const double off = (balance[i] + static_cast<double>(residuals[i])) / step_unit;
        mean += off / 1280;
        ASSERT_LT(std::abs(off), 6 * std::sqrt(2.0 * kSteps)) << i;
      }
      EXPECT_LT(std::abs(mean), 6 * std::sqrt(2.0 * kSteps / 1280));
    }
  }
}

TEST(TakeBack, KeepsTheResidualFiniteWhateverWasSent) {
  Workspace workspace;
  for (const ResidualKind residual : kResiduals) {
    for (const ValueKind kind : kAllKinds) {
      for (const double density : {1.0, 0.2}) {
        for (int family = 0; family <= static_cast<int>(Family::nonfinite); ++family) {
          SCOPED_TRACE(std::string(name(residual)) + " with " + name(kind) + ", family " +
                       std::to_string(family));
          Encoder encoder = make({2, 700}, {.residual = residual});
          for (uint64_t t = 0; t < 3; ++t) {
            const auto gradient = draw_values(static_cast<Family>(family), 1400, t);
            const auto stepped = step(encoder, gradient, {density, kind}, workspace);
            const auto before = kept(encoder);
            const Range all = encoder.range();
            ASSERT_TRUE(encoder.take_back(view_of(stepped), {&all, 1}, workspace).ok());
            const auto after = kept(encoder);
            for (size_t i = 0; i < after.size(); ++i) {
              ASSERT_TRUE(is_finite(after[i])) << i;
              if (residual == ResidualKind::f32) {
                const float back = is_finite(stepped.decoded[i]) ? stepped.decoded[i] : 0;
                ASSERT_EQ(after[i], finite_sum(before[i], back)) << i;
              }
            }
            ASSERT_TRUE(Encoder::restore(encoder.save()).ok());
          }
        }
      }
    }
  }
}

TEST(TakeBack, RefusesWhatIsNotItsOwnAndChangesNothing) {
  Workspace workspace;
  const Shape shape{4, 640};
  const auto made = [&](uint32_t tensor, Shape of, Range range) {
    return std::move(Encoder::create(tensor, of, {}, range)).value();
  };
  Encoder encoder = made(9, shape, {640, 1280});
  const auto gradient = gaussians(1280, kSeed, 1);
  const auto own = step(encoder, gradient, {0.1, ValueKind::q4}, workspace);
  const auto saved = encoder.save();
  const auto refused = [&](const testing::Stepped& stepped, std::vector<Range> ranges,
                           const std::string& what) {
    const auto taken = encoder.take_back(view_of(stepped), ranges, workspace);
    ASSERT_FALSE(taken.ok()) << what;
    EXPECT_EQ(taken.error().code, ErrorCode::invalid_argument);
    EXPECT_EQ(taken.error().message, "tensor 9 cannot take back " + what);
    EXPECT_EQ(encoder.save(), saved) << what;
  };
  const auto other = [&](uint32_t tensor, Shape of, Range range) {
    Encoder one = made(tensor, of, range);
    return step(one, gradient, {0.1, ValueKind::q4}, workspace);
  };
  refused(other(8, shape, {640, 1280}), {{640, 1}}, "a record of tensor 8");
  refused(other(9, {640, 4}, {640, 1280}), {{640, 1}},
          "a record of shape 640 x 4, its own is 4 x 640");
  refused(other(9, shape, {704, 1280}), {{704, 1}},
          "a record of 1280 elements from 704, the encoder has 1280 elements from 640");
  refused(own, {{639, 2}}, "range 0 (2 elements from 639) leaves the 1280 elements from 640");
  refused(own, {{700, 8}, {1919, 2}},
          "range 1 (2 elements from 1919) leaves the 1280 elements from 640");
  refused(own, {{700, UINT64_MAX}},
          "range 0 (18446744073709551615 elements from 700) leaves the 1280 elements from 640");
  refused(own, {{700, 8}, {707, 2}},
          "range 1 (2 elements from 707) begins before the end of the one ahead of it");
  refused(own, {{800, 8}, {700, 8}},
          "range 1 (8 elements from 700) begins before the end of the one ahead of it");
  EXPECT_TRUE(encoder.take_back(view_of(own), {}, workspace).ok());
  EXPECT_EQ(encoder.save(), saved);
}

}  // namespace
}  // namespace scant::codec
