// Each instruction set gives the bits of the plain kernels, and these come near to doubles.
#include "serve/model/step_kernels.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <vector>

#include "base/rng.h"
#include "serve/model/rope.h"

namespace scant::serve {
namespace {

using Floats = std::vector<float>;

Floats random(size_t n, float most, uint64_t seed) {
  base::Rng rng(seed, n);
  Floats out(n);
  for (float& one : out) one = most * static_cast<float>(2 * rng.uniform() - 1);
  return out;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), sizeof(float) * a.size()) == 0;
}

// of(kernels) has the same bits with all of them.
void expect_same(const std::function<Floats(const StepKernels&)>& of, const std::string& what) {
  const Floats plain = of(kPlainStepKernels);
  for (const StepKernels& kernels : step_kernel_targets())
    EXPECT_TRUE(same_bits(of(kernels), plain)) << what << " with " << kernels.name;
}

void expect_near(const Floats& found, const std::function<double(size_t)>& wanted, double relative,
                 double absolute) {
  for (size_t i = 0; i < found.size(); ++i) {
    const double want = wanted(i);
    ASSERT_NEAR(found[i], want, relative * std::abs(want) + absolute) << i;
  }
}

double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu_tanh(double x) {
  return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu(double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); }

TEST(StepKernels, PlainOnesAreAmongThem) {
  ASSERT_FALSE(step_kernel_targets().empty());
  EXPECT_STREQ(step_kernel_targets().back().name, "plain");
}

TEST(StepKernels, ActivationsComeNear) {
  Floats x = random(20000, 12, 1);
  for (const float one : {0.0f, -0.0f, 1e-30f, -1e-30f, 60.0f, -60.0f, 200.0f, -200.0f, 1e30f})
    x.push_back(one);
  Floats out(x.size());
  const StepKernels& kernels = kPlainStepKernels;
  kernels.silu(x.data(), nullptr, x.size(), out.data());
  expect_near(
      out, [&](size_t i) { return silu(x[i]); }, 3e-7, 1e-30);
  kernels.gelu_tanh(x.data(), nullptr, x.size(), out.data());
  expect_near(
      out, [&](size_t i) { return gelu_tanh(x[i]); }, 2e-6, 1e-15);
  kernels.gelu(x.data(), nullptr, x.size(), out.data());
  expect_near(
      out, [&](size_t i) { return gelu(x[i]); }, 3e-7, 6e-7);
}

TEST(StepKernels, NotANumberStaysOne) {
  for (const StepKernels& kernels : step_kernel_targets()) {
    float x[17] = {};
    x[3] = NAN;
    x[16] = NAN;
    for (const auto activate : {kernels.silu, kernels.gelu_tanh, kernels.gelu}) {
      float out[17];
      activate(x, nullptr, 17, out);
      for (size_t i = 0; i < 17; ++i) EXPECT_EQ(std::isnan(out[i]), i == 3 || i == 16) << i;
    }
  }
}

TEST(StepKernels, NormsComeNear) {
  for (const size_t n : {1U, 15U, 16U, 17U, 64U, 576U, 2048U}) {
    const Floats x = random(n, 3, 1);
    const Floats weight = random(n, 1, 2);
    const Floats bias = random(n, 1, 3);
    double sum = 0;
    double squares = 0;
    for (const float one : x) {
      sum += one;
      squares += double{one} * one;
    }
    const double size = static_cast<double>(n);
    const double mean = sum / size;
    double variance = 0;
    for (const float one : x) variance += (one - mean) * (one - mean);
    Floats out(n);
    kPlainStepKernels.rms_norm(x.data(), weight.data(), 1e-5f, n, out.data());
    const double root = std::sqrt(squares / size + 1e-5);
    expect_near(
        out, [&](size_t i) { return x[i] / root * weight[i]; }, 1e-6, 1e-7);
    kPlainStepKernels.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, out.data());
    const double spread = std::sqrt(variance / size + 1e-5);
    expect_near(
        out, [&](size_t i) { return (x[i] - mean) / spread * weight[i] + bias[i]; }, 2e-6, 1e-6);
  }
}

TEST(StepKernels, VectorsHaveTheBitsOfThePlainOnes) {
  for (size_t n = 1; n <= 70; ++n) {
    const Floats x = random(2 * n, 20, 1);
    const Floats y = random(2 * n, 2, 2);
    const Floats z = random(2 * n, 2, 3);
    const std::string size = std::to_string(n);
    const auto activated = [&](auto StepKernels::*activate, const float* up) {
      return [&, activate, up](const StepKernels& kernels) {
        Floats out(n);
        (kernels.*activate)(x.data(), up, n, out.data());
        return out;
      };
    };
    expect_same(activated(&StepKernels::silu, nullptr), "silu " + size);
    expect_same(activated(&StepKernels::silu, y.data()), "silu times " + size);
    expect_same(activated(&StepKernels::gelu_tanh, nullptr), "gelu_tanh " + size);
    expect_same(activated(&StepKernels::gelu, y.data()), "gelu times " + size);
    expect_same(
        [&](const StepKernels& kernels) {
          Floats out(n);
          kernels.rms_norm(x.data(), y.data(), 1e-5f, n, out.data());
          return out;
        },
        "rms_norm " + size);
    expect_same(
        [&](const StepKernels& kernels) {
          Floats out(n);
          kernels.layer_norm(x.data(), y.data(), z.data(), 1e-5f, n, out.data());
          return out;
        },
        "layer_norm " + size);
    expect_same(
        [&](const StepKernels& kernels) {
          Floats out = x;
          kernels.rotate_halves(y.data(), z.data(), n, out.data());
          kernels.rotate_neighbours(z.data(), y.data(), n, out.data());
          kernels.add(y.data(), n, out.data());
          kernels.divide(out.data(), 3.7f, n);
          return out;
        },
        "rotations " + size);
    std::vector<uint16_t> halves(n);
    std::vector<int8_t> codes(kLanes * n);
    base::Rng rng(n);
    for (uint16_t& one : halves) one = static_cast<uint16_t>(rng.below(0x7F00));
    for (int8_t& one : codes) one = static_cast<int8_t>(rng.next());
    const Floats scales = random(kLanes, 1, 4);
    expect_same(
        [&](const StepKernels& kernels) {
          Floats out(3 * kLanes * n);
          kernels.widen_bf16(halves.data(), n, out.data());
          kernels.widen_i8(codes.data(), 0.7f, n, out.data() + n);
          kernels.widen_keys_i8(codes.data(), scales.data(), n, out.data() + 2 * n);
          return out;
        },
        "widening " + size);
  }
}

// A block of attention: scores of all pages, softmax and sums of rows that see other keys.
Floats attend_block(const StepKernels& kernels, size_t rows, size_t head_size, size_t columns) {
  const Floats queries = random(rows * head_size, 1, 1);
  const Floats key_values = random(kBlockTokens * head_size, 2, 2);
  const Floats value_values = random(kBlockTokens * columns, 2, 3);
  const float* keys[4];
  const float* values[4];
  for (size_t i = 0; i < 4; ++i) {
    keys[i] = key_values.data() + i * kLanes * head_size;
    values[i] = value_values.data() + i * kLanes * columns;
  }
  Floats scores(rows * kBlockTokens);
  std::vector<SoftmaxRow> softmax(rows);
  std::vector<Seen> seen(rows);
  Floats out(rows * columns);
  for (size_t row = 0; row < rows; ++row) {
    softmax[row] = {.largest = -INFINITY, .correction = 0, .sums = {}};
    // Some rows see everything, so that they go together.
    seen[row] = row % 7 < 4
                    ? Seen{0, 64}
                    : Seen{static_cast<uint32_t>(row % 20), static_cast<uint32_t>(64 - row)};
  }
  for (int block = 0; block < 2; ++block) {
    kernels.scores(queries.data(), rows, keys, 4, head_size, scores.data());
    for (size_t row = 0; row < rows; ++row)
      kernels.softmax(scores.data() + row * kBlockTokens, seen[row], softmax[row]);
    kernels.values(scores.data(), seen.data(), softmax.data(), rows, values, columns, out.data());
  }
  for (const SoftmaxRow& row : softmax) {
    out.push_back(row.largest);
    out.insert(out.end(), row.sums, row.sums + kLanes);
  }
  return out;
}

TEST(StepKernels, AttentionHasTheBitsOfThePlainOne) {
  for (const size_t rows : {1U, 2U, 3U, 4U, 5U, 8U, 32U}) {
    for (const size_t head_size : {1U, 5U, 16U, 64U, 80U, 128U}) {
      const size_t columns = (head_size + kLanes - 1) / kLanes * kLanes;
      expect_same(
          [&](const StepKernels& kernels) {
            return attend_block(kernels, rows, head_size, columns);
          },
          std::to_string(rows) + " rows of " + std::to_string(head_size));
    }
  }
}

TEST(Rope, SinesAndCosinesAreThoseOfTheLibrary) {
  base::Rng rng(1);
  double worst = 0;
  for (int i = 0; i < 20000; ++i) {
    const double angle = rng.uniform() * std::exp2(static_cast<double>(rng.below(32)));
    const auto [sine, cosine] = sine_cosine(angle);
    worst = std::max(worst, std::abs(sine - std::sin(angle)));
    worst = std::max(worst, std::abs(cosine - std::cos(angle)));
  }
  EXPECT_LT(worst, 4e-16);
  EXPECT_EQ(sine_cosine(0).sine, 0);
  EXPECT_EQ(sine_cosine(0).cosine, 1);
}

TEST(Rope, FrequenciesAreThoseOfTheScaling) {
  Description d{.head_size = 8, .rope_size = 8, .rope_base = 10000};
  const Rope plain(d, nullptr);
  ASSERT_EQ(plain.pairs(), 4U);
  for (size_t i = 0; i < 4; ++i)
    EXPECT_FLOAT_EQ(plain.frequencies()[i], static_cast<float>(std::pow(10.0, -double(i))));
  d.rope_scaling = RopeScaling::linear;
  d.rope_factor = 4;
  EXPECT_FLOAT_EQ(Rope(d, nullptr).frequencies()[1], 0.025f);
  d.rope_scaling = RopeScaling::tensor;
  const float divisors[] = {1, 2, 4, 8};
  EXPECT_FLOAT_EQ(Rope(d, divisors).frequencies()[2], 0.0025f);
  d.rope_scaling = RopeScaling::llama3;
  d.rope_factor = 8;
  d.rope_low = 1;
  d.rope_high = 4;
  d.rope_context = 1000;
  const Rope scaled(d, nullptr);
  EXPECT_FLOAT_EQ(scaled.frequencies()[0], 1);              // a wave of 6 tokens: as it is
  EXPECT_FLOAT_EQ(scaled.frequencies()[3], 0.001f / 8);     // of 6283: slowed down
  const double smooth = (1000 / (2 * M_PI * 100) - 1) / 3;  // of 628: between
  EXPECT_FLOAT_EQ(scaled.frequencies()[2],
                  static_cast<float>((1 - smooth) * 0.01 / 8 + smooth * 0.01));
  float cosines[4];
  float sines[4];
  plain.angles(70, cosines, sines);
  EXPECT_FLOAT_EQ(cosines[1], static_cast<float>(std::cos(7.0)));
  EXPECT_FLOAT_EQ(sines[0], static_cast<float>(std::sin(70.0)));
}

}  // namespace
}  // namespace scant::serve
