// The skinny products: every implementation that this CPU runs against the reference, bit for bit,
// and the reference against sums in f64.
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "codec/kernels/kernels.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

constexpr size_t kGap = 3;  // floats between the rows
constexpr float kUntouched = -77.0f;

struct Case {
  size_t rows;
  size_t columns;
  size_t rank;
  [[nodiscard]] std::string text() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + ", rank " +
           std::to_string(rank);
  }
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const size_t rows : {0u, 1u, 2u, 3u, 5u, 8u, 13u}) {
    for (const size_t columns : {0u, 1u, 7u, 15u, 16u, 17u, 33u, 64u, 129u}) {
      for (const size_t rank : {0u, 1u, 2u, 3u, 4u, 7u, 8u, 32u}) {
        all.push_back({rows, columns, rank});
      }
    }
  }
  return all;
}

// Rows of so many numbers with a gap behind each, and one more gap at the end.
std::vector<float> rows_of(const Case& size, Family family, uint64_t seed) {
  const size_t stride = size.columns + kGap;
  const std::vector<float> drawn = draw_values(family, size.rows * size.columns, seed);
  std::vector<float> all(size.rows * stride + kGap, kUntouched);
  for (size_t i = 0; i < drawn.size(); ++i) {
    all[i / size.columns * stride + i % size.columns] = drawn[i];
  }
  return all;
}

struct Inputs {
  std::vector<float> matrix;
  std::vector<float> left;
  std::vector<float> right;
};
Inputs inputs(const Case& one, Family family) {
  return {rows_of(one, family, 1), draw_values(family, one.rows * one.rank, 2),
          rows_of({one.rank, one.columns, 0}, family, 3)};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const bool both_nan =
        std::isnan(a[i]) && std::isnan(b[i]);  // whose payload is the CPU's choice
    if (!both_nan && std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return false;
  }
  return true;
}

// What each of the products makes of the same inputs.
struct Products {
  std::vector<float> left;
  std::vector<float> right;
  std::vector<float> matrix;
  std::vector<float> grown{};  // a matrix that took in another, and what was then added to `left`
  std::vector<float> left_of_grown{};
};
Products products(const Kernels& target, const Case& one, const Inputs& given) {
  const size_t stride = one.columns + kGap;
  Products made{draw_values(Family::normal, one.rows * one.rank, 4),
                rows_of({one.rank, one.columns, 0}, Family::normal, 5),
                rows_of(one, Family::normal, 6)};
  const Matrix a{given.matrix.data(), stride, one.rows, one.columns};
  const Factor right{given.right.data(), stride, one.rank};
  target.times_right(a, right, made.left.data());
  target.times_left(a, given.left.data(), {made.right.data(), stride, one.rank});
  made.grown = made.matrix;
  made.left_of_grown = draw_values(Family::normal, one.rows * one.rank, 4);
  if (one.rank > 0) {
    target.add_times_right({made.grown.data(), stride, one.rows, one.columns}, given.matrix.data(),
                           0.75f, right, made.left_of_grown.data());
  }
  // From elsewhere, and in place.
  std::vector<float> elsewhere(made.matrix.size(), kUntouched);
  target.add_product(given.left.data(), right, made.matrix.data(),
                     {elsewhere.data(), stride, one.rows, one.columns});
  target.add_product(given.left.data(), right, made.matrix.data(),
                     {made.matrix.data(), stride, one.rows, one.columns});
  EXPECT_TRUE(same(elsewhere, made.matrix)) << one.text();
  return made;
}

class ProductTargets : public testing::TestWithParam<Kernels> {};

TEST_P(ProductTargets, EqualTheReference) {
  std::vector<Family> families(std::begin(kFinite), std::end(kFinite));
  families.push_back(Family::nonfinite);
  for (const Case& one : cases()) {
    for (const Family family : families) {
      const Inputs given = inputs(one, family);
      const Products expected = products(kScalarKernels, one, given);
      const Products got = products(GetParam(), one, given);
      const std::string where = one.text() + ", family " + std::to_string(static_cast<int>(family));
      ASSERT_TRUE(same(got.left, expected.left)) << "times_right, " << where;
      ASSERT_TRUE(same(got.right, expected.right)) << "times_left, " << where;
      ASSERT_TRUE(same(got.matrix, expected.matrix)) << "add_product, " << where;
      ASSERT_TRUE(same(got.grown, expected.grown)) << "add_times_right, " << where;
      ASSERT_TRUE(same(got.left_of_grown, expected.left_of_grown)) << "add_times_right, " << where;
    }
  }
}

TEST_P(ProductTargets, AddsBeforeItMultiplies) {
  for (const Case& one : cases()) {
    if (one.rank == 0) continue;
    const size_t stride = one.columns + kGap;
    const Inputs given = inputs(one, Family::normal);
    const Products got = products(GetParam(), one, given);
    std::vector<float> sum = rows_of(one, Family::normal, 6);
    for (size_t i = 0; i < one.rows * one.columns; ++i) {
      const size_t at = i / one.columns * stride + i % one.columns;
      const float more = 0.75f * given.matrix[at];
      sum[at] += more;
    }
    ASSERT_TRUE(same(got.grown, sum)) << one.text();
    std::vector<float> left = draw_values(Family::normal, one.rows * one.rank, 4);
    GetParam().times_right({sum.data(), stride, one.rows, one.columns},
                           {given.right.data(), stride, one.rank}, left.data());
    ASSERT_TRUE(same(got.left_of_grown, left)) << one.text();
  }
}

TEST_P(ProductTargets, ColumnsEqualTheReference) {
  for (const size_t rows : {16u, 32u, 160u}) {
    for (const size_t count : {0u, 1u, 2u, 3u, 7u, 8u, 9u, 17u}) {
      for (const Family family : {Family::normal, Family::huge, Family::denormal}) {
        const std::vector<float> drawn = draw_values(family, rows * (count + 1), rows + count);
        const std::vector<double> all(drawn.begin(), drawn.end());
        const Columns columns{all.data(), rows, count};
        const double* const last = all.data() + count * rows;
        std::vector<double> sums(count);
        std::vector<double> expected(count);
        GetParam().column_products(columns, last, sums.data());
        kScalarKernels.column_products(columns, last, expected.data());
        ASSERT_EQ(sums, expected) << rows << " x " << count;
        std::vector<double> left(last, last + rows);
        std::vector<double> expected_left = left;
        std::vector<double> times(count);
        for (size_t k = 0; k < count; ++k) times[k] = 1 / (3 + static_cast<double>(k));
        GetParam().take_columns(columns, times.data(), left.data());
        kScalarKernels.take_columns(columns, times.data(), expected_left.data());
        ASSERT_EQ(left, expected_left) << rows << " x " << count;
        double exact = 0;
        for (size_t i = 0; i < rows && count > 0; ++i) exact += all[i] * last[i];
        if (count > 0 && family == Family::normal) {
          EXPECT_NEAR(sums[0], exact, 1e-12 * static_cast<double>(rows));
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, ProductTargets, testing::ValuesIn(kernel_targets()),
                         [](const auto& target) { return std::string(target.param.name); });

// |got - exact| <= n u (sum of magnitudes), u = 2^-24, as of any order of n + 1 roundings.
void expect_near(float got, double exact, double magnitudes, size_t n, const std::string& where) {
  EXPECT_LE(std::fabs(got - exact), static_cast<double>(n + 1) * 0x1p-24 * magnitudes + 1e-40)
      << where;
}

TEST(Products, ReferenceIsNearTheSums) {
  const Case one{5, 129, 7};
  const size_t stride = one.columns + kGap;
  const Inputs given = inputs(one, Family::normal);
  Products before{draw_values(Family::normal, one.rows * one.rank, 4),
                  rows_of({one.rank, one.columns, 0}, Family::normal, 5),
                  rows_of(one, Family::normal, 6)};
  const Products got = products(kScalarKernels, one, given);
  const auto a = [&](size_t i, size_t j) -> double { return given.matrix[i * stride + j]; };
  const auto left = [&](size_t i, size_t k) -> double { return given.left[i * one.rank + k]; };
  const auto right = [&](size_t k, size_t j) -> double { return given.right[k * stride + j]; };
  // The sum over n of first(x) * second(x), begun with what was there.
  const auto check = [](float was, float is, size_t n, const auto& first, const auto& second,
                        const std::string& where) {
    double exact = was;
    double magnitudes = std::fabs(was);
    for (size_t x = 0; x < n; ++x) {
      exact += first(x) * second(x);
      magnitudes += std::fabs(first(x) * second(x));
    }
    expect_near(is, exact, magnitudes, n, where);
  };
  for (size_t i = 0; i < one.rows; ++i) {
    for (size_t k = 0; k < one.rank; ++k) {
      const size_t at = i * one.rank + k;
      check(
          before.left[at], got.left[at], one.columns, [&](size_t j) { return a(i, j); },
          [&](size_t j) { return right(k, j); }, "times_right");
    }
    for (size_t j = 0; j < one.columns; ++j) {
      const size_t at = i * stride + j;
      check(
          before.matrix[at], got.matrix[at], one.rank, [&](size_t k) { return left(i, k); },
          [&](size_t k) { return right(k, j); }, "add_product");
    }
  }
  for (size_t k = 0; k < one.rank; ++k) {
    for (size_t j = 0; j < one.columns; ++j) {
      const size_t at = k * stride + j;
      check(
          before.right[at], got.right[at], one.rows, [&](size_t i) { return a(i, j); },
          [&](size_t i) { return left(i, k); }, "times_left");
    }
  }
}

}  // namespace
}  // namespace scant::codec
