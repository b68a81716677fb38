// Products: every implementation that this CPU runs, and AMX's on tiles in software, equals its
// reference bit for bit, on every kind; and nothing depends on threads or on which tokens run
// together.
#include <bit>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "codec/testing/values.h"
#include "serve/file/rows.h"
#include "serve/kernels/targets.h"
#include "serve/testing/amx_emulated.h"
#include "serve/testing/tensors.h"

namespace scant::serve {
namespace {

using testing::draw_tensor;
using testing::OwnedTensor;
using testing::tested_targets;
using testing::Values;

constexpr uint64_t kSeed = 20261201;
constexpr float kUntouched = -77.0F;
constexpr size_t kGap = 3;  // floats behind each token's results
constexpr size_t kScratchBytes = 64 << 10;

std::vector<float> multiplied(const KernelTarget& target, std::span<const Tensor* const> weights,
                              const std::vector<float>& x, size_t tokens, size_t threads = 1) {
  base::WorkerPool pool;
  if (threads > 1) {
    EXPECT_TRUE(pool.start(threads).ok());
  }
  Activations activations;
  // Larger products may have run before: NaN in all forms of numbers.
  std::memset(activations.scratch(kScratchBytes), 0xFF, kScratchBytes);
  activations.set(x.data(), tokens, weights[0]->shape.columns);
  std::vector<MatrixProduct> products;
  size_t stride = kGap;
  for (const Tensor* one : weights) stride += one->shape.rows + kGap;
  std::vector<float> out(tokens * stride, kUntouched);
  size_t at = 0;
  for (const Tensor* one : weights) {
    products.push_back({one, out.data() + at, stride});
    at += one->shape.rows + kGap;
  }
  multiply(target, products, activations, pool);
  return out;
}

// The first place in which they differ; NaNs are equal, since their payloads are the CPU's choice.
std::string difference(const std::vector<float>& got, const std::vector<float>& expected) {
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(got[i]) && std::isnan(expected[i])) continue;
    if (std::bit_cast<uint32_t>(got[i]) != std::bit_cast<uint32_t>(expected[i]))
      return "at " + std::to_string(i) + ": " + std::to_string(got[i]) + ", not " +
             std::to_string(expected[i]);
  }
  return "";
}

constexpr codec::Family kFamilies[] = {codec::Family::normal,    codec::Family::wide,
                                       codec::Family::denormal,  codec::Family::lone,
                                       codec::Family::nonfinite, codec::Family::zero};

size_t columns_for(TensorKind kind, size_t columns) {
  return kind >= TensorKind::q4_0 && kind <= TensorKind::q8_0 ? base::align_up(columns, 32)
                                                              : columns;
}

class ProductTargets : public ::testing::TestWithParam<std::tuple<KernelTarget, TensorKind>> {};

TEST_P(ProductTargets, EqualTheReference) {
  const auto& [target, kind] = GetParam();
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  for (const codec::Shape given : {codec::Shape{1, 1}, codec::Shape{17, 70}, codec::Shape{15, 200},
                                   codec::Shape{40, 576}, codec::Shape{33, 1120}}) {
    const codec::Shape shape{given.rows, columns_for(kind, given.columns)};
    for (const Values values : {Values::moderate, Values::extreme, Values::strange}) {
      const OwnedTensor weights = draw_tensor(kind, shape, values, kSeed);
      const Tensor* const one[] = {&weights.tensor};
      for (const size_t tokens :
           {1U, 2U, 3U, 4U, 5U, 6U, 7U, 8U, 9U, 10U, 11U, 12U, 13U, 14U, 15U, 16U, 17U, 31U, 33U}) {
        const codec::Family family = kFamilies[(tokens + shape.columns) % std::size(kFamilies)];
        const auto x = codec::draw_values(family, tokens * shape.columns, tokens);
        ASSERT_EQ(difference(multiplied(target, one, x, tokens),
                             multiplied(*target.reference, one, x, tokens)),
                  "")
            << shape.rows << " x " << shape.columns << ", tokens " << tokens << ", values "
            << static_cast<int>(values) << ", family " << static_cast<int>(family);
      }
    }
  }
}

// A worker then multiplies up to eight strips at a time, and an odd number of them at the end.
TEST_P(ProductTargets, EqualTheReferenceOnManyStrips) {
  const auto& [target, kind] = GetParam();
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  for (const codec::Shape given : {codec::Shape{549, 70}, codec::Shape{133, 550}}) {
    const codec::Shape shape{given.rows, columns_for(kind, given.columns)};
    const OwnedTensor weights = draw_tensor(kind, shape, Values::moderate, kSeed);
    const Tensor* const one[] = {&weights.tensor};
    for (const size_t tokens : {1U, 17U, 33U}) {
      const auto x = codec::draw_values(codec::Family::normal, tokens * shape.columns, tokens);
      ASSERT_EQ(difference(multiplied(target, one, x, tokens),
                           multiplied(*target.reference, one, x, tokens)),
                "")
          << shape.rows << " x " << shape.columns << ", tokens " << tokens;
    }
  }
}

TEST_P(ProductTargets, GiveTheSameBitsWhateverRunsBesides) {
  const auto& [target, kind] = GetParam();
  const codec::Shape shape{100, 320};
  const OwnedTensor weights = draw_tensor(kind, shape, Values::moderate, kSeed);
  const Tensor* const one[] = {&weights.tensor};
  constexpr size_t kTokens = 37;
  const auto x = codec::draw_values(codec::Family::normal, kTokens * shape.columns, 1);
  const auto together = multiplied(target, one, x, kTokens);
  EXPECT_EQ(difference(multiplied(target, one, x, kTokens, 3), together), "") << "three threads";
  const size_t stride = together.size() / kTokens;
  for (size_t token = 0; token < kTokens; ++token) {
    const auto begin = x.begin() + static_cast<ptrdiff_t>(token * shape.columns);
    const std::vector<float> row(begin, begin + static_cast<ptrdiff_t>(shape.columns));
    const auto expected = together.begin() + static_cast<ptrdiff_t>(token * stride);
    ASSERT_EQ(difference(multiplied(target, one, row, 1),
                         std::vector<float>(expected, expected + static_cast<ptrdiff_t>(stride))),
              "")
        << "token " << token;
  }
}

TEST_P(ProductTargets, SpreadNotFiniteActivations) {
  const auto& [target, kind] = GetParam();
  const codec::Shape shape{20, 128};
  const OwnedTensor weights = draw_tensor(kind, shape, Values::moderate, kSeed, 1.0);
  const Tensor* const one[] = {&weights.tensor};
  for (const float strange : {NAN, INFINITY, -INFINITY}) {
    auto x = codec::draw_values(codec::Family::normal, 3 * shape.columns, 2);
    x[shape.columns + 77] = strange;
    const auto out = multiplied(target, one, x, 3);
    const size_t stride = out.size() / 3;
    for (size_t row = 0; row < shape.rows; ++row) {
      EXPECT_TRUE(std::isfinite(out[row]));
      EXPECT_FALSE(std::isfinite(out[stride + row]));
      EXPECT_TRUE(std::isfinite(out[2 * stride + row]));
    }
  }
}

std::string case_name(const ::testing::TestParamInfo<std::tuple<KernelTarget, TensorKind>>& info) {
  std::string text =
      std::string(std::get<0>(info.param).name) + "_" + name(std::get<1>(info.param));
  std::ranges::replace(text, ' ', '_');
  return text;
}
INSTANTIATE_TEST_SUITE_P(All, ProductTargets,
                         ::testing::Combine(::testing::ValuesIn(tested_targets()),
                                            ::testing::ValuesIn(tensor_kinds())),
                         case_name);

// The tests above and below have this target where it is there.
TEST(Products, AmxRunsOnEmulatedTiles) {
  if (testing::amx_emulated_target() == nullptr)
    GTEST_SKIP() << "this CPU lacks AVX-512 with VNNI, VBMI and VBMI2, which AMX's kernels use too";
  EXPECT_STREQ(tested_targets().back().name, "amx_emulated");
}

// Also the forms that no implementation of this CPU reads.
TEST(Products, ActivationsHaveTheReferencesForms) {
  for (const Form form :
       {Form::codes32, Form::codes64, Form::rounded, Form::left16, Form::right16}) {
    for (const size_t columns : {1U, 31U, 64U, 150U}) {
      for (const size_t tokens : {1U, 2U, 7U, 16U, 17U, 33U}) {
        for (const codec::Family family : kFamilies) {
          const auto x = codec::draw_values(family, tokens * columns, tokens);
          OperandMemory expected;
          const Operand& of_reference = expected.shape(form, x.data(), tokens, columns);
          for (size_t panel = 0; panel < of_reference.panels; ++panel)
            kReferenceTarget.fill(of_reference, panel);
          for (const KernelTarget& target : tested_targets()) {
            OperandMemory memory;
            const Operand& made = memory.shape(form, x.data(), tokens, columns);
            for (size_t panel = 0; panel < made.panels; ++panel) target.fill(made, panel);
            const size_t places = made.index(made.panels, 0);
            const size_t bytes_of_one = form == Form::rounded                            ? 4
                                        : form == Form::codes32 || form == Form::codes64 ? 1
                                                                                         : 2;
            ASSERT_EQ(std::memcmp(made.elements, of_reference.elements,
                                  places * group_columns(form) * bytes_of_one),
                      0)
                << target.name << ", form " << static_cast<int>(form) << ", columns " << columns
                << ", tokens " << tokens << ", family " << static_cast<int>(family);
          }
        }
      }
    }
  }
}

#if defined(__x86_64__)
// On ARM results count as denormal before they are rounded at all.
TEST(Products, WhatRoundsUpToTheSmallestNormalNumberIsZero) {
  // 2^-126 - 1.5 * 2^-151
  const float values[] = {0x1p-63F, 0, 0, 0, 0x1p-80F, 0};
  std::byte bytes[64] = {};
  for (size_t c = 0; c < 6; ++c) {
    const uint16_t half = codec::bf16_nearest(values[c]);
    std::memcpy(bytes + 2 * c, &half, sizeof half);
  }
  Tensor weights;
  weights.kind = TensorKind::bf16;
  weights.shape = {1, 6};
  weights.bytes = Bytes(bytes, 6 * sizeof(uint16_t));
  const Tensor* const one[] = {&weights};
  const std::vector<float> x = {0x1p-63F, 0, 0, 0, -0x1.8p-71F, 0};
  for (const KernelTarget& target : tested_targets()) {
    EXPECT_EQ(multiplied(target, one, x, 1)[0], 0.0F) << target.name;
    EXPECT_EQ(multiplied(*target.reference, one, x, 1)[0], 0.0F) << target.name;
  }
}
#endif

TEST(Products, SeveralMatricesAtOnce) {
  std::vector<OwnedTensor> owned;
  std::vector<const Tensor*> weights;
  for (const TensorKind kind : tensor_kinds())
    owned.push_back(draw_tensor(kind, {20 + owned.size(), 192}, Values::moderate, kSeed));
  for (const OwnedTensor& one : owned) weights.push_back(&one.tensor);
  for (const size_t tokens : {1U, 5U, 40U}) {
    const auto x = codec::draw_values(codec::Family::normal, tokens * 192, 3);
    for (const KernelTarget& target : tested_targets())
      EXPECT_EQ(difference(multiplied(target, weights, x, tokens, 2),
                           multiplied(*target.reference, weights, x, tokens)),
                "")
          << target.name;
  }
}

TEST(Products, MemoryIsKeptFromCallToCall) {
  const OwnedTensor weights = draw_tensor(TensorKind::q4, {64, 256}, Values::moderate, kSeed);
  const auto x = codec::draw_values(codec::Family::normal, 20 * 256, 3);
  std::vector<float> out(20 * 64);
  base::WorkerPool pool;
  Activations activations;
  const MatrixProduct product{&weights.tensor, out.data(), 64};
  activations.set(x.data(), 20, 256);
  multiply(kernel_targets().front(), {&product, 1}, activations, pool);
  const uint64_t bytes = activations.memory_bytes();
  EXPECT_GT(bytes, 20 * 256U);
  for (const size_t tokens : {1U, 20U, 7U}) {
    activations.set(x.data(), tokens, 256);
    multiply(kernel_targets().front(), {&product, 1}, activations, pool);
    EXPECT_EQ(activations.memory_bytes(), bytes);
  }
}

TEST(Products, NoTokensAreNoWork) {
  const OwnedTensor weights = draw_tensor(TensorKind::f32, {4, 8}, Values::moderate, kSeed);
  std::vector<float> out(4, kUntouched);
  base::WorkerPool pool;
  Activations activations;
  activations.set(out.data(), 0, 8);
  const MatrixProduct product{&weights.tensor, out.data(), 4};
  multiply(kernel_targets().front(), {&product, 1}, activations, pool);
  EXPECT_EQ(out, std::vector<float>(4, kUntouched));
}

}  // namespace
}  // namespace scant::serve
