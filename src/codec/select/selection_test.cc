// What a sparse step promises: the density, the energy, that no row and no tensor starves, that
// nothing is sent for nothing, that NaN is sent, and that the bytes do not depend on the threads.
#include <algorithm>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <limits>

#include "codec/select/threshold.h"
#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::kAllKinds;
using testing::make;
using testing::many_gaussians;
using testing::step;
using testing::Stepped;

constexpr uint64_t kSeed = 20261121;
constexpr uint64_t kStreamed = (uint64_t{1} << 22) + 70000;  // above SparseStep::kWholeElements

double energy_of(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * static_cast<double>(value);
  return sum;
}

// Of the k largest.
double largest_energy(std::vector<float> values, uint64_t k) {
  const auto end = values.begin() + static_cast<ptrdiff_t>(k);
  std::nth_element(values.begin(), end, values.end(),
                   [](float a, float b) { return std::abs(a) > std::abs(b); });
  return energy_of({values.data(), k});
}

// One step on `gradient`; the energy that it kept as a share of exact selection's at equal count.
double energy_share(Encoder& encoder, const std::vector<float>& gradient, Point point,
                    Workspace& workspace, Stepped& stepped) {
  std::vector<float> accumulated(gradient.size());
  encoder.read_residual(accumulated);
  for (size_t i = 0; i < gradient.size(); ++i) accumulated[i] += gradient[i];
  stepped = step(encoder, gradient, point, workspace);
  const double exact = largest_energy(accumulated, stepped.report.entries);
  return energy_of(stepped.decoded) / exact;
}

// A range that is scanned as a whole: as many as may be, and the largest, but for rows whose turn
// it is.
TEST(Selection, IsExactInARangeScannedAsAWhole) {
  Workspace workspace;
  for (const uint64_t rows : {uint64_t{1}, uint64_t{37}, uint64_t{256}}) {
    for (const double density : {0.001, 0.01, 0.1, 0.9}) {
      const Shape shape{rows, 997};
      Encoder encoder = make(shape);
      uint64_t sent = 0;
      for (uint64_t t = 0; t < 20; ++t) {
        const auto gradient = gaussians(shape.elements(), kSeed, t);
        Stepped stepped;
        const double share =
            energy_share(encoder, gradient, {density, ValueKind::f32}, workspace, stepped);
        sent += stepped.report.entries;
        if (stepped.report.entries > 0) {
          EXPECT_GT(share, 0.98);
        }
        EXPECT_LE(stepped.report.forced, 1 + stepped.report.entries / 32);
      }
      const double wanted = density * static_cast<double>(shape.elements()) * 20;
      EXPECT_NEAR(static_cast<double>(sent), wanted, std::max(0.01 * wanted, 1.0));
    }
  }
}

TEST(Selection, HoldsDensityAndEnergyInOnePassOverLargeRanges) {
  Workspace workspace;
  ASSERT_TRUE(workspace.start(2).ok());
  const Shape shape{4, kStreamed / 4};
  constexpr uint64_t kSteps = 50;
  constexpr uint64_t kSettled = 40;
  for (const ResidualKind residual : {ResidualKind::f32, ResidualKind::i8}) {
    Encoder encoder = make(shape, {.residual = residual});
    const double wanted = 0.01 * static_cast<double>(shape.elements());
    const double noise = 3 / std::sqrt(wanted);
    const auto base = many_gaussians(shape.elements() + kSteps * 65536, kSeed, 1);
    RecordBuffer record;
    uint64_t sent = 0;
    for (uint64_t t = 0; t < kSteps; ++t) {
      const auto place = static_cast<ptrdiff_t>(t * 40503 % kSteps * 65536);
      const std::vector<float> gradient(
          base.begin() + place, base.begin() + place + static_cast<ptrdiff_t>(shape.elements()));
      double share = 1;
      double count = 0;
      if (t % 10 == 5) {
        Stepped stepped;
        share = energy_share(encoder, gradient, {0.01, ValueKind::f32}, workspace, stepped);
        count = static_cast<double>(stepped.report.entries);
      } else {
        const auto report = encoder.encode(gradient, {0.01, ValueKind::f32}, workspace, record);
        count = static_cast<double>(report.value().entries);
      }
      EXPECT_GT(share, 0.98) << t;
      EXPECT_NEAR(count / wanted, 1.0, t < kSettled ? 0.05 : 0.01 + noise) << t;
      if (t >= kSettled) sent += static_cast<uint64_t>(count);
    }
    EXPECT_NEAR(static_cast<double>(sent) / ((kSteps - kSettled) * wanted), 1.0, 0.01);
  }
}

TEST(Selection, FollowsAnAbruptChangeInTheSameStep) {
  Workspace workspace;
  for (const uint64_t elements : {uint64_t{300000}, kStreamed}) {
    for (const float factor : {100.0f, 0.01f}) {
      Encoder encoder = make({1, elements}, {.residual = ResidualKind::none});
      const double wanted = 0.01 * static_cast<double>(elements);
      for (uint64_t t = 0; t < 6; ++t) {
        auto gradient = many_gaussians(elements, kSeed, t);
        if (t >= 3) std::for_each(gradient.begin(), gradient.end(), [&](float& g) { g *= factor; });
        const auto stepped = step(encoder, gradient, {0.01, ValueKind::bf16}, workspace);
        EXPECT_NEAR(static_cast<double>(stepped.report.entries) / wanted, 1.0, 0.1) << t;
      }
    }
  }
}

struct RowCase {
  Shape shape;
  std::vector<Point> points;  // in turn
  uint64_t first = 0;         // of a slice
};

// Steps that rows wait at most: one sweep at the smallest density, sixteen with quantised values.
uint64_t stated_wait(const RowCase& one) {
  uint64_t bound = 0;
  for (const Point point : one.points) {
    const uint64_t steps = sweep_steps(point.density, std::min<uint64_t>(one.shape.columns, 65536));
    bound = std::max(bound, steps * (quantised(point.values) ? 16 : 1));
  }
  return bound;
}

// Rows differ by a factor of up to 10^6; every third had one gradient only, at the start.
std::vector<float> uneven_rows(const RowCase& one, uint64_t elements, uint64_t t) {
  auto gradient = gaussians(elements, kSeed, t);
  for (uint64_t i = 0; i < elements; ++i) {
    const uint64_t row = (one.first + i) / one.shape.columns;
    gradient[i] *= row % 3 == 2 && t > 0 ? 0.0f : std::pow(10.0f, -static_cast<float>(row % 7));
  }
  return gradient;
}

// Any row that is not zero sends within the stated steps, whatever the others do.
TEST(Selection, ServesEveryRowWithinTheStatedSteps) {
  Workspace workspace;
  const ValueKind plain = ValueKind::f32;
  const std::vector<RowCase> cases = {
      {{64, 100}, {{0.01, plain}}},
      {{300, 3}, {{0.05, plain}}},
      {{40, 1}, {{0.2, plain}}},
      {{3, 70000}, {{0.001, plain}}},
      {{64, 256}, {{0.01, plain}, {0.0039, plain}}},
      {{64, 256}, {{0.05, ValueKind::q4}}},
      {{100, 60}, {{0.05, plain}}, 64 * 29},
  };
  for (const RowCase& one : cases) {
    SCOPED_TRACE(text(one.shape));
    const uint64_t elements = one.shape.elements() - one.first;
    Encoder encoder =
        std::move(Encoder::create(7, one.shape, {}, Range{one.first, elements})).value();
    const uint64_t bound = stated_wait(one);
    const uint64_t columns = one.shape.columns;
    std::vector<uint64_t> waited(one.shape.rows);
    std::vector<float> kept(elements);
    const uint64_t steps = elements > 100000 ? 100 : 2 * bound + 10;
    for (uint64_t t = 0; t < steps; ++t) {
      const auto stepped = step(encoder, uneven_rows(one, elements, t),
                                one.points[t % one.points.size()], workspace);
      encoder.read_residual(kept);
      for (uint64_t row = one.first / columns; row < one.shape.rows; ++row) {
        const uint64_t begin = std::max(row * columns, one.first) - one.first;
        const uint64_t end = (row + 1) * columns - one.first;
        const auto nonzero = [&](const std::vector<float>& values) {
          return std::any_of(values.begin() + static_cast<ptrdiff_t>(begin),
                             values.begin() + static_cast<ptrdiff_t>(end),
                             [](float v) { return v != 0; });
        };
        waited[row] = nonzero(stepped.decoded) || !nonzero(kept) ? 0 : waited[row] + 1;
        ASSERT_LE(waited[row], bound) << "row " << row << " at step " << t;
      }
    }
  }
}

// What a row sends when its turn has come arrives: not nothing, and not far too much.
TEST(Selection, ALateRowArrivesWithQuantisedValuesToo) {
  Workspace workspace;
  const Shape shape{64, 256};
  for (const ValueKind kind : {ValueKind::q8, ValueKind::q4, ValueKind::q2, ValueKind::q1}) {
    Encoder encoder = make(shape);
    std::vector<float> kept(shape.elements());
    for (uint64_t t = 0; t < 1200; ++t) {
      auto gradient = gaussians(shape.elements(), kSeed, t);
      std::fill_n(gradient.begin(), shape.columns, 0.0f);  // the first row: one value, once
      if (t == 0) gradient[7] = 1e-4f;
      step(encoder, gradient, {0.05, kind}, workspace);
    }
    encoder.read_residual(kept);
    EXPECT_LT(std::abs(kept[7]), 1e-6f) << name(kind);
  }
}

// A floor of one entry a row would send 33 % of a matrix with three columns, and zero rows.
TEST(Selection, HasNoFloorPerRowOrTensor) {
  Workspace workspace;
  for (const Shape shape : {Shape{64, 3}, Shape{1, 64}, Shape{1000, 1}, Shape{512, 64}}) {
    Encoder encoder = make(shape);
    uint64_t sent = 0;
    constexpr int kSteps = 200;
    for (uint64_t t = 0; t < kSteps; ++t)
      sent += step(encoder, gaussians(shape.elements(), kSeed, t), {0.01, ValueKind::q4}, workspace)
                  .report.entries;
    const double wanted = 0.01 * kSteps * static_cast<double>(shape.elements());
    EXPECT_NEAR(static_cast<double>(sent), wanted, 1 + 0.01 * wanted);
  }
}

TEST(Selection, SendsNothingForZeroRows) {
  Workspace workspace;
  const Shape shape{1000, 64};  // an embedding of which a batch touched every tenth row
  Encoder encoder = make(shape);
  for (uint64_t t = 0; t < 70; ++t) {
    auto gradient = gaussians(shape.elements(), kSeed, t);
    for (uint64_t i = 0; i < gradient.size(); ++i)
      if (i / shape.columns % 10 != 0) gradient[i] = 0;
    const auto stepped = step(encoder, gradient, {0.01, ValueKind::q2}, workspace);
    for (uint64_t i = 0; i < gradient.size(); ++i) {
      if (i / shape.columns % 10 != 0) {
        ASSERT_EQ(stepped.decoded[i], 0.0f);
      }
    }
  }
  Encoder untouched = make(shape);
  const std::vector<float> zeros(shape.elements());
  EXPECT_EQ(step(untouched, zeros, {0.01, ValueKind::bf16}, workspace).report.entries, 0u);
}

TEST(Selection, SendsNanAndInfinitiesAndCountsThem) {
  Workspace workspace;
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const ValueKind kind : kAllKinds) {
    for (const double density : {1.0, 0.01}) {
      for (const size_t n : {size_t{10000}, static_cast<size_t>(density < 1 ? kStreamed : 100)}) {
        if (n == kStreamed && kind != ValueKind::q4) continue;
        Encoder encoder = make({1, n});
        auto gradient = many_gaussians(n, kSeed, 1);
        gradient[5] = nan;
        gradient[17] = infinity;
        gradient[n - 1] = -infinity;
        const auto stepped = step(encoder, gradient, {density, kind}, workspace);
        EXPECT_EQ(stepped.report.nonfinite, 3u);
        EXPECT_TRUE(std::isnan(stepped.decoded[5]));
        EXPECT_EQ(stepped.decoded[17], infinity);
        EXPECT_EQ(stepped.decoded[n - 1], -infinity);
        std::vector<float> kept(n);
        encoder.read_residual(kept);
        EXPECT_TRUE(
            std::all_of(kept.begin(), kept.end(), [](float v) { return std::isfinite(v); }));
      }
    }
  }
  Encoder encoder = make({1, 1000});
  const std::vector<float> all(1000, nan);  // more than the density allows: all are sent
  EXPECT_EQ(step(encoder, all, {0.01, ValueKind::q4}, workspace).report.entries, 1000u);
}

TEST(Selection, TellsEqualMagnitudesApartByPlace) {
  Workspace workspace;
  for (const uint64_t elements : {uint64_t{1000}, uint64_t{200000}, kStreamed}) {
    Encoder encoder = make({1, elements});
    const double wanted = 0.01 * static_cast<double>(elements);
    const std::vector<float> gradient(elements, -0.25f);
    for (int t = 0; t < 5; ++t) {
      const auto stepped = step(encoder, gradient, {0.01, ValueKind::f32}, workspace);
      EXPECT_NEAR(static_cast<double>(stepped.report.entries) / wanted, 1.0, 0.1);
    }
  }
}

TEST(Selection, OfEqualMagnitudesTheFirstInOrderAreSent) {
  Workspace workspace;
  constexpr size_t kElements = 200000;  // several blocks, scanned as a whole
  Encoder encoder = make({1, kElements}, {.residual = ResidualKind::none});
  for (int t = 0; t < 3; ++t) {
    std::vector<float> gradient(kElements, -0.25f);
    gradient[150000] = 0.5f;
    const auto decoded = step(encoder, gradient, {0.5, ValueKind::f32}, workspace).decoded;
    for (size_t i = 0; i < kElements; ++i)
      ASSERT_EQ(decoded[i] != 0, i < 99999 || i == 150000) << i;
  }
}

TEST(Selection, TiesAreThinnedAtTheSmallestDensities) {
  Workspace workspace;
  for (const double density : {1e-4, 1e-5, 1e-6}) {
    Encoder encoder = make({1, kStreamed}, {.residual = ResidualKind::none});
    const std::vector<float> gradient(kStreamed, 1.0f);
    uint64_t sent = 0;
    for (int t = 0; t < 4; ++t)
      sent += step(encoder, gradient, {density, ValueKind::f32}, workspace).report.entries;
    const double wanted = 4 * density * static_cast<double>(kStreamed);
    EXPECT_NEAR(static_cast<double>(sent), wanted, 5 * std::sqrt(wanted) + 0.02 * wanted);
  }
}

// A flood is not followed by a drought: at most one step is silent.
TEST(Selection, ForgivesAFlood) {
  Workspace workspace;
  Encoder encoder = make({1, 10000});
  step(encoder, std::vector<float>(10000, std::nanf("")), {0.01, ValueKind::f32}, workspace);
  const auto gradient = gaussians(10000, kSeed, 1);
  step(encoder, gradient, {0.01, ValueKind::f32}, workspace);
  EXPECT_EQ(step(encoder, gradient, {0.01, ValueKind::f32}, workspace).report.entries, 100u);
}

TEST(Selection, IsTheSameWithAnyNumberOfWorkers) {
  for (const uint64_t elements : {uint64_t{500000}, kStreamed}) {
    for (const Point point :
         {Point{0.01, ValueKind::q4}, Point{0.3, ValueKind::bf16}, Point{1.0, ValueKind::q3}}) {
      std::vector<std::vector<std::byte>> bytes;
      for (const size_t workers : {size_t{1}, size_t{2}, size_t{5}}) {
        Workspace workspace;
        ASSERT_TRUE(workspace.start(workers).ok());
        Encoder encoder =
            make({100, elements / 100}, {.residual = ResidualKind::i8, .stochastic = true});
        for (uint64_t t = 0; t < 2; ++t) {
          const auto gradient = many_gaussians(encoder.range().elements, kSeed, t);
          bytes.push_back(step(encoder, gradient, point, workspace).bytes);
        }
      }
      for (size_t i = 2; i < bytes.size(); ++i) EXPECT_EQ(bytes[i], bytes[i % 2]);
    }
  }
}

TEST(Selection, EvennessServesBlocksAlike) {
  Workspace workspace;
  const uint64_t blocks = 8;
  const auto spread = [&](float evenness) {
    Encoder encoder = make({blocks, 65536}, {.evenness = evenness});
    std::vector<uint64_t> sent(blocks);
    for (uint64_t t = 0; t < 40; ++t) {
      auto gradient = many_gaussians(blocks * 65536, kSeed, t);
      for (uint64_t i = 0; i < gradient.size(); ++i) {
        const uint64_t block = i / 65536;
        gradient[i] *= static_cast<float>(1 + block);
      }
      const auto stepped = step(encoder, gradient, {0.01, ValueKind::bf16}, workspace);
      if (t < 20) continue;
      for (uint64_t i = 0; i < gradient.size(); ++i) sent[i / 65536] += stepped.decoded[i] != 0;
    }
    return static_cast<double>(*std::max_element(sent.begin(), sent.end())) /
           static_cast<double>(std::max<uint64_t>(1, *std::min_element(sent.begin(), sent.end())));
  };
  const double one_threshold = spread(0);
  const double even = spread(1);
  EXPECT_GT(one_threshold, 2.0);
  EXPECT_LT(even, 1.5);
}

TEST(Selection, EmptyTinyDenormalAndHugeInputsAreExact) {
  Workspace workspace;
  for (const ValueKind kind : kAllKinds) {
    for (const double density : {1.0, 0.5}) {
      for (const size_t n : {size_t{0}, size_t{1}, size_t{2}, size_t{63}, size_t{65}}) {
        for (const float scale : {1e-42f, 1e-30f, 1.0f, 3e37f}) {
          Encoder encoder = make({1, n});
          const auto gradient = gaussians(n, kSeed, n, scale);
          const auto stepped = step(encoder, gradient, {density, kind}, workspace);
          std::vector<float> kept(n);
          encoder.read_residual(kept);
          for (size_t i = 0; i < n; ++i) {
            ASSERT_TRUE(std::isfinite(kept[i]) && std::isfinite(stepped.decoded[i]));
            ASSERT_EQ(kept[i], gradient[i] - stepped.decoded[i]);
          }
        }
      }
    }
  }
}

TEST(Selection, RefusesWhatItCannotDo) {
  Workspace workspace;
  RecordBuffer record;
  const auto code = [](const auto& result) {
    return result.ok() ? "ok" : name(result.error().code);
  };
  Encoder encoder = make({2, 50});
  const std::vector<float> gradient(100);
  for (const double density : {0.0, -0.5, 1.5, std::nan("")}) {
    EXPECT_STREQ(code(encoder.encode(gradient, {density, ValueKind::q4}, workspace, record)),
                 "invalid_argument");
  }
  EXPECT_STREQ(code(encoder.encode(gradient, {1.0, static_cast<ValueKind>(8)}, workspace, record)),
               "invalid_argument");
  EXPECT_STREQ(code(encoder.encode(std::span(gradient).first(99), {}, workspace, record)),
               "invalid_argument");
  const float nan = std::nanf("");
  for (const EncoderOptions& options :
       {EncoderOptions{.decay = nan}, EncoderOptions{.decay = 1.5f}, EncoderOptions{.momentum = 1},
        EncoderOptions{.momentum = nan}, EncoderOptions{.evenness = 2}}) {
    EXPECT_STREQ(code(Encoder::create(1, {2, 50}, options)), "invalid_argument");
  }
  const uint64_t huge = uint64_t{1} << 40;
  EXPECT_STREQ(code(Encoder::create(1, {huge, huge}, {})), "invalid_argument");
  EXPECT_STREQ(code(Encoder::create(1, {2, 50}, {}, Range{0, 101})), "invalid_argument");
  EXPECT_STREQ(code(Encoder::create(1, {2, 50}, {}, Range{10, 20})), "invalid_argument");
  EXPECT_STREQ(code(Encoder::create(1, {huge, 1 << 20}, {}, Range{huge, 640})), "ok");
}

}  // namespace
}  // namespace scant::codec
