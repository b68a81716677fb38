// The reference of products against sums in f64 over weights that src/serve/file reads, within the
// bounds that docs/serve.md states.
#include <cmath>
#include <gtest/gtest.h>
#include <vector>

#include "codec/quantise/rounding.h"
#include "codec/testing/values.h"
#include "serve/file/rows.h"
#include "serve/kernels/targets.h"
#include "serve/testing/tensors.h"

namespace scant::serve {
namespace {

constexpr uint64_t kSeed = 20261202;
constexpr double kHalfUnit = 0x1p-24;  // relative error of one rounding

struct Rounded {
  std::vector<double> values;
  std::vector<double> errors;  // by how much a value may differ from the one given
};

// One token's activations as the kind reads them.
Rounded rounded(TensorKind kind, std::span<const float> x) {
  Rounded made;
  const size_t wide = kind >= TensorKind::q8 ? 64 : 32;
  const bool bf16 =
      kind == TensorKind::bf16 || kind == TensorKind::bf16_tiles || kind == TensorKind::sparse_bf16;
  for (size_t i = 0; i < x.size(); ++i) {
    if (kind == TensorKind::f32 || kind == TensorKind::f16) {
      made.values.push_back(x[i]);
      made.errors.push_back(0);
    } else if (bf16) {
      made.values.push_back(codec::bf16_widen(codec::bf16_nearest(x[i])));
      made.errors.push_back(std::abs(x[i]) * 0x1p-8);
    } else {
      const size_t first = i / wide * wide;
      float most = 0;
      for (size_t c = first; c < std::min(first + wide, x.size()); ++c)
        most = std::max(most, std::abs(x[c]));
      const float scale = most / 127;
      made.values.push_back(most == 0 ? 0.0 : double{std::nearbyint(x[i] * (127 / most))} * scale);
      made.errors.push_back(scale * 0.50001);
    }
  }
  return made;
}

// How many roundings a term of the sum goes through at most.
double roundings(const KernelTarget& target, TensorKind kind, size_t columns) {
  const double blocks = std::ceil(static_cast<double>(columns) / 32);
  const bool dense_pairs = kind == TensorKind::bf16 || kind == TensorKind::bf16_tiles;
  if (&target == &kDotReferenceTarget && dense_pairs) return 16 * blocks + 2;
  if (kind == TensorKind::f32 || kind == TensorKind::f16) return blocks * 2 + 5;
  return 2 * blocks + 18;
}

class ProductTruth : public ::testing::TestWithParam<std::tuple<const KernelTarget*, TensorKind>> {
};

TEST_P(ProductTruth, LiesWithinTheStatedBound) {
  const auto [target, kind] = GetParam();
  for (const size_t columns : {32U, 96U, 576U, 2048U}) {
    const codec::Shape shape{19, columns};
    const auto weights = testing::draw_tensor(kind, shape, testing::Values::moderate, kSeed);
    std::vector<float> floats(shape.elements());
    ASSERT_TRUE(read_rows(weights.tensor, 0, shape.rows, TensorKind::f32,
                          std::as_writable_bytes(std::span(floats)))
                    .ok());
    const auto x = codec::draw_values(codec::Family::normal, 2 * columns, columns);
    std::vector<float> out(2 * shape.rows);
    base::WorkerPool pool;
    Activations activations;
    activations.set(x.data(), 2, columns);
    const MatrixProduct product{&weights.tensor, out.data(), shape.rows};
    multiply(*target, {&product, 1}, activations, pool);
    for (size_t token = 0; token < 2; ++token) {
      const auto given = std::span(x).subspan(token * columns, columns);
      const Rounded read = rounded(kind, given);
      for (size_t row = 0; row < shape.rows; ++row) {
        double sum = 0;
        double plain = 0;
        double magnitude = 0;
        double error = 0;
        for (size_t c = 0; c < columns; ++c) {
          const double weight = floats[row * columns + c];
          sum += weight * read.values[c];
          plain += weight * given[c];
          // Q4_1 adds products of its two parts, each larger than the weight.
          magnitude += (std::abs(weight) + (kind == TensorKind::q4_1 ? 64.0 : 0.0)) *
                       std::abs(read.values[c]);
          error += std::abs(weight) * read.errors[c];
        }
        const double bound = roundings(*target, kind, columns) * kHalfUnit * magnitude;
        EXPECT_NEAR(out[token * shape.rows + row], sum, bound) << columns << " " << row;
        EXPECT_NEAR(out[token * shape.rows + row], plain, bound + error) << columns << " " << row;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ProductTruth,
                         ::testing::Combine(::testing::Values(&kReferenceTarget,
                                                              &kDotReferenceTarget),
                                            ::testing::ValuesIn(tensor_kinds())),
                         [](const auto& of) {
                           std::string text = std::string(std::get<0>(of.param)->name) + "_" +
                                              name(std::get<1>(of.param));
                           std::ranges::replace(text, ' ', '_');
                           return text;
                         });

}  // namespace
}  // namespace scant::serve
