// What the codec's reference promises, by facts that do not come from it: rounding of 16-bit
// numbers, unbiased draws, least squares that beat other scales, and the rest behind whole quads.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <gtest/gtest.h>
#include <vector>

#include "base/rng.h"
#include "codec/kernels/kernels.h"
#include "codec/quantise/levels.h"

namespace scant::codec {
namespace {

constexpr uint64_t kSeed = 20260405;
constexpr ValueKind kQuantised[] = {ValueKind::q8, ValueKind::q4, ValueKind::q3, ValueKind::q2,
                                    ValueKind::q1};

class KernelTruths : public testing::Test {
 protected:
  void SetUp() override { std::printf("seed %llu\n", static_cast<unsigned long long>(kSeed)); }
  base::Rng rng_{kSeed};
  DrawKey next_key() {
    const uint64_t word = rng_.next();
    return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
  }
  // Magnitudes from 1/8 to 1, both signs, and one that is exactly 1.
  std::vector<float> ordinary(size_t n) {
    std::vector<float> values(n);
    for (float& value : values) {
      value = static_cast<float>((rng_.uniform() * 0.875 + 0.125) * (rng_.chance(0.5) ? 1 : -1));
    }
    values[0] = 1.0f;
    return values;
  }
};

std::vector<float> decode(ValueKind kind, uint32_t base, const std::vector<uint8_t>& scales,
                          const std::vector<std::byte>& codes, size_t n) {
  std::vector<float> decoded(n + 31);
  kernels().decode(kind, {.base = base, .scales = scales.data(), .codes = codes.data()}, n,
                   decoded.data());
  decoded.resize(n);
  return decoded;
}

// Mean over many keys within five standard errors of the value, for each element.
struct Mean {
  std::vector<double> sum, squares;
  explicit Mean(size_t n) : sum(n), squares(n) {}
  void add(size_t i, double x) {
    sum[i] += x;
    squares[i] += x * x;
  }
  void expect(const std::vector<float>& values, int rounds, double slack) const {
    for (size_t i = 0; i < values.size(); ++i) {
      const double mean = sum[i] / rounds;
      const double variance = std::max(squares[i] / rounds - mean * mean, 0.0);
      ASSERT_NEAR(mean, double{values[i]}, 5.0 * std::sqrt(variance / rounds) + slack)
          << "element " << i;
    }
  }
};

TEST_F(KernelTruths, StochasticCodesKeepTheMean) {
  constexpr int kRounds = 4000;
  for (const ValueKind kind : kQuantised) {
    const std::vector<float> values = ordinary(kQuadElements);
    const uint32_t base = scale_base(kind, magnitude_bits(1.0f));
    std::vector<uint8_t> scales(4);
    std::vector<std::byte> codes(32 * bits(kind));
    Mean mean(values.size());
    for (int round = 0; round < kRounds; ++round) {
      std::vector<float> work = values;
      kernels().quantise(kind, {true, next_key()}, work.data(), 1, base, nullptr, scales.data(),
                         codes.data(), {});
      const auto decoded = decode(kind, base, scales, codes, values.size());
      for (size_t i = 0; i < values.size(); ++i) mean.add(i, double{decoded[i]});
    }
    SCOPED_TRACE(name(kind));
    mean.expect(values, kRounds, 1e-4);  // draws have 16 bits
  }
}

TEST_F(KernelTruths, ResidualsKeepTheMean) {
  constexpr int kRounds = 4000;
  const std::vector<float> values = ordinary(kQuadElements);
  Mean bytes(values.size());
  Mean halves(values.size());
  for (int round = 0; round < kRounds; ++round) {
    std::vector<int8_t> stored(values.size());
    std::vector<uint16_t> scales(4), half(values.size());
    std::vector<float> loaded(values.size());
    const DrawKey key = next_key();
    kernels().store_i8(values.data(), values.size(), key, stored.data(), scales.data());
    kernels().load_i8(stored.data(), scales.data(), values.size(), loaded.data());
    for (size_t i = 0; i < values.size(); ++i) bytes.add(i, double{loaded[i]});
    kernels().store_bf16(values.data(), values.size(), key, half.data());
    kernels().load_bf16(half.data(), values.size(), loaded.data());
    for (size_t i = 0; i < values.size(); ++i) halves.add(i, double{loaded[i]});
  }
  bytes.expect(values, kRounds, 1e-6);
  halves.expect(values, kRounds, 1e-6);
}

// No scale within a factor of two of the chosen one does better by more than its rounding explains.
TEST_F(KernelTruths, NearestScaleIsNearlyTheBest) {
  for (const ValueKind kind : {ValueKind::q4, ValueKind::q3, ValueKind::q2, ValueKind::q1}) {
    double energy = 0;
    double error = 0;
    double best_error = 0;
    for (int round = 0; round < 50; ++round) {
      std::vector<float> values(kQuadElements);
      for (float& value : values) {
        const double radius = std::sqrt(-2.0 * std::log(1.0 - rng_.uniform()));
        value = static_cast<float>(radius * std::cos(6.283185307179586 * rng_.uniform()));
      }
      std::vector<float> work = values;
      std::vector<uint8_t> scales(4);
      std::vector<std::byte> codes(32 * bits(kind));
      const uint32_t base = scale_base(kind, magnitude_bits(8.0f));
      kernels().quantise(kind, {}, work.data(), 1, base, nullptr, scales.data(), codes.data(), {});
      for (size_t i = 0; i < values.size(); ++i) {
        energy += double{values[i]} * double{values[i]};
        error += double{work[i]} * double{work[i]};
      }
      for (size_t g = 0; g < 4; ++g) {
        double best = 1e30;
        for (int step = -32; step <= 32; ++step) {
          const double scale = std::exp2(step / 32.0) * double{scale_value(base + scales[g])};
          double total = 0;
          for (size_t i = 64 * g; i < 64 * g + 64; ++i) {
            double nearest = 1e30;
            for (const uint8_t level : levels(kind)) {
              const double miss = std::fabs(double{values[i]}) - level * scale;
              nearest = std::min(nearest, miss * miss);
            }
            total += nearest;
          }
          best = std::min(best, total);
        }
        best_error += best;
      }
    }
    std::printf("%s: error %.4f of the energy, best scale %.4f\n", name(kind), error / energy,
                best_error / energy);
    EXPECT_LT(error / energy, best_error / energy + 0.02) << name(kind);
  }
}

TEST_F(KernelTruths, RestDecodesWhatItEncodes) {
  for (const ValueKind kind : kQuantised) {
    for (size_t n = 1; n < kQuadElements; ++n) {
      const std::vector<float> values = ordinary(n);
      const uint32_t base = scale_base(kind, magnitude_bits(1.0f));
      for (const bool stochastic : {false, true}) {
        std::vector<float> work = values;
        std::vector<uint8_t> scales((n + 63) / 64);
        std::vector<std::byte> codes(rest_bytes(kind, n), std::byte{0xFF});
        kernels().quantise_rest(kind, {stochastic, next_key()}, kQuadElements, work.data(), n, base,
                                scales.data(), codes.data());
        const std::vector<float> decoded = decode(kind, base, scales, codes, n);
        for (size_t i = 0; i < n; ++i) {
          ASSERT_EQ(work[i], values[i] - decoded[i]) << name(kind) << " " << n;
          ASSERT_NE(decoded[i], 0.0f) << name(kind) << " " << n << " " << i;
        }
        const size_t unused = 8 * codes.size() - n * bits(kind);
        if (unused != 0) {
          ASSERT_EQ(std::to_integer<unsigned>(codes.back()) >> (8 - unused), 0u);
        }
      }
    }
  }
}

TEST_F(KernelTruths, RestMeansTheSameAsAQuad) {
  for (const ValueKind kind : kQuantised) {
    for (const bool stochastic : {false, true}) {
      const Rounding rounding{stochastic, next_key()};
      const std::vector<float> values = ordinary(2 * kQuadElements);
      const uint32_t base = scale_base(kind, magnitude_bits(1.0f));
      std::vector<float> work = values;
      std::vector<uint8_t> scales(8);
      std::vector<std::byte> codes(64 * bits(kind));
      kernels().quantise(kind, rounding, work.data(), 2, base, nullptr, scales.data(), codes.data(),
                         {});
      std::vector<float> rest(values.begin() + kQuadElements, values.begin() + kQuadElements + 192);
      kernels().quantise_rest(kind, rounding, kQuadElements, rest.data(), rest.size(), base,
                              scales.data(), codes.data());
      for (size_t i = 0; i < rest.size(); ++i) ASSERT_EQ(rest[i], work[kQuadElements + i]);
    }
  }
}

TEST_F(KernelTruths, BaseReachesWhatAGroupNeeds) {
  for (const ValueKind kind : kQuantised) {
    for (const float top : {3e38f, 1.0f, 1e-10f, 1e-30f, 1e-36f}) {
      const uint32_t base = scale_base(kind, magnitude_bits(top));
      EXPECT_LE(base, 1792u);
      for (const float share : {1.0f, 1e-3f}) {  // a quieter group of the block still gets a scale
        if (top * share < 2e-36f) continue;
        std::vector<float> work(kQuadElements, top * share);
        std::vector<uint8_t> scales(4);
        std::vector<std::byte> codes(32 * bits(kind));
        kernels().quantise(kind, {}, work.data(), 1, base, nullptr, scales.data(), codes.data(),
                           {});
        EXPECT_GT(scales[0], 0) << name(kind) << " " << top << " " << share;
        EXPECT_LT(scales[0], 255) << name(kind) << " " << top;
      }
    }
  }
}

TEST(Rounding16, F16Facts) {
  EXPECT_EQ(f16_nearest(0.0f), 0x0000);
  EXPECT_EQ(f16_nearest(-0.0f), 0x8000);
  EXPECT_EQ(f16_nearest(1.0f), 0x3C00);
  EXPECT_EQ(f16_nearest(65504.0f), 0x7BFF);
  EXPECT_EQ(f16_nearest(65520.0f), 0x7BFF);
  EXPECT_EQ(f16_nearest(-3e38f), 0xFBFF);
  EXPECT_EQ(f16_nearest(0x1p-24f), 0x0001);
  EXPECT_EQ(f16_nearest(0x1p-25f), 0x0000);    // halfway, to even
  EXPECT_EQ(f16_nearest(0x1.8p-24f), 0x0002);  // halfway, to even
  EXPECT_EQ(f16_nearest(0x1.FFFp-15f), 0x0400);
  EXPECT_EQ(f16_nearest(1.0f + 0x1p-11f), 0x3C00);
  EXPECT_EQ(f16_nearest(1.0f + 0x3p-11f), 0x3C02);
  EXPECT_EQ(f16_nearest(INFINITY), 0x7C00);
  EXPECT_TRUE(std::isnan(f16_widen(f16_nearest(NAN))));
  EXPECT_EQ(f16_widen(0x3555), 0x1.554p-2f);
  for (uint32_t half = 0; half < 65536; ++half) {
    const float wide = f16_widen(static_cast<uint16_t>(half));
    if (!std::isnan(wide)) {
      ASSERT_EQ(f16_nearest(wide), half);
    }
  }
}

}  // namespace
}  // namespace scant::codec
