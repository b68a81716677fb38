// The strong directions of a matrix: against sums in f64, over slices and threads, on matrices of
// low rank, and on values that have no directions.
#include "codec/rank/factors.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "codec/rank/basis.h"
#include "codec/testing/values.h"

namespace scant::codec {
namespace {

// One member: its part of a matrix, cut into slices, each with an encoder that keeps something.
class Member {
 public:
  Member(Shape shape, Range range, std::vector<uint64_t> cuts, uint64_t seed, size_t threads = 1)
      : shape_(shape), gradient_(draw_values(Family::normal, range.elements, seed)) {
    EXPECT_TRUE(workspace.start(threads));
    cuts.push_back(range.elements);
    uint64_t begin = 0;
    for (const uint64_t end : cuts) {
      const Range own{range.first + begin, end - begin};
      Result<Encoder> made = Encoder::create(3, shape, {}, own);
      EXPECT_TRUE(made.ok());
      encoders_.push_back(std::make_unique<Encoder>(std::move(made).value()));
      EXPECT_TRUE(encoders_.back()->add_residual(
          std::vector<float>(draw_values(Family::normal, own.elements, seed + begin + 1))));
      slices.push_back(
          {encoders_.back().get(), own, std::span(gradient_).subspan(begin, own.elements)});
      begin = end;
    }
  }
  void set(const std::vector<float>& values) { std::ranges::copy(values, gradient_.begin()); }
  void forget() {
    for (MatrixSlice& slice : slices) slice.encoder = nullptr;
  }
  // Gradient + what is kept.
  [[nodiscard]] std::vector<float> whole() const {
    std::vector<float> all = gradient_;
    size_t at = 0;
    for (const MatrixSlice& slice : slices) {
      std::vector<float> kept(slice.range.elements);
      if (slice.encoder != nullptr) slice.encoder->read_residual(kept);
      for (const float value : kept) all[at++] += value;
    }
    return all;
  }
  [[nodiscard]] const std::vector<float>& gradient() const { return gradient_; }

  Workspace workspace;
  std::vector<MatrixSlice> slices;

 private:
  Shape shape_;
  std::vector<float> gradient_;
  std::vector<std::unique_ptr<Encoder>> encoders_;
};

std::vector<float> project(Factors& factors, Member& member) {
  std::vector<float> left(factors.left_elements());
  EXPECT_TRUE(factors.project(member.slices, member.workspace, left));
  return left;
}
std::vector<float> coefficients(Factors& factors, Member& member) {
  std::vector<float> right(factors.right_elements());
  EXPECT_TRUE(factors.coefficients(member.slices, member.workspace, right).ok());
  return right;
}
// What the rest is, where the whole lay.
void subtract(const Factors& factors, std::span<const float> right, Member& member) {
  const Product rest = factors.product(right, -1);
  for (MatrixSlice& slice : member.slices) {
    const std::span<float> all = slice.gradient;
    rest.add(slice.range.first, all.size(), all.data(), all.data());
    slice.encoder = nullptr;  // its residual is in the whole
  }
}
double energy(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

struct Case {
  Shape shape;
  Range range;
  std::vector<uint64_t> cuts;  // of the range
  uint32_t rank;
};
const Case kCases[] = {
    {{40, 30}, {0, 1200}, {}, 4},
    {{40, 30}, {0, 1200}, {64, 640, 704}, 3},
    {{40, 30}, {64, 1000}, {128, 512}, 8},     // begins and ends within rows
    {{3, 150000}, {64, 449000}, {300032}, 2},  // rows longer than a worker's scratch
    {{2000, 300}, {0, 600000}, {200000 / 64 * 64}, 5},
    {{7, 5}, {0, 35}, {}, 5},
};

TEST(Factors, ProductsAreNearTheSums) {
  for (const Case& one : kCases) {
    SCOPED_TRACE(text(one.shape));
    Member member(one.shape, one.range, one.cuts, kSeed);
    Factors factors(one.shape, one.range, 7);
    ASSERT_TRUE(factors.set_rank(one.rank));
    const std::vector<float> a = member.whole();
    const uint64_t first_row = one.range.first / one.shape.columns;
    const auto row_of = [&](size_t i) {
      return (one.range.first + i) / one.shape.columns - first_row;
    };
    const auto column_of = [&](size_t i) { return (one.range.first + i) % one.shape.columns; };
    const size_t rows = factors.rows();
    const size_t columns = factors.columns();

    const std::vector<float> left = project(factors, member);
    std::vector<double> exact(left.size());
    for (size_t i = 0; i < a.size(); ++i) {
      for (size_t k = 0; k < one.rank; ++k) {
        exact[k * rows + row_of(i)] +=
            static_cast<double>(a[i]) * factors.directions()[k * columns + column_of(i)];
      }
    }
    const double scale = std::sqrt(energy(a));
    for (size_t i = 0; i < left.size(); ++i) EXPECT_NEAR(left[i], exact[i], 1e-5 * scale);

    factors.set_basis(left);
    std::vector<float> basis = left;
    EXPECT_EQ(orthonormalise(basis, rows), one.rank);
    const std::vector<float> right = coefficients(factors, member);
    std::vector<double> sums(right.size());
    for (size_t i = 0; i < a.size(); ++i) {
      for (size_t k = 0; k < one.rank; ++k) {
        sums[k * columns + column_of(i)] += static_cast<double>(a[i]) * basis[k * rows + row_of(i)];
      }
    }
    for (size_t i = 0; i < right.size(); ++i) EXPECT_NEAR(right[i], sums[i], 1e-5 * scale);

    // What was taken away comes back.
    const std::vector<float> before = member.gradient();
    subtract(factors, right, member);
    std::vector<float> again = member.gradient();
    EXPECT_LT(energy(member.whole()), energy(a));
    factors.add(right, 1, one.range, again, member.workspace);
    for (size_t i = 0; i < again.size(); ++i) EXPECT_NEAR(again[i], before[i], 1e-6 * scale);
    // A stretch of it alone: the same bits.
    const Range part{one.range.first + one.range.elements / 3, one.range.elements / 2};
    std::vector<float> some(part.elements);
    std::vector<float> all(one.range.elements);
    factors.add(right, 0.25f, part, some, member.workspace);
    factors.add(right, 0.25f, one.range, all, member.workspace);
    EXPECT_TRUE(std::equal(some.begin(), some.end(),
                           all.begin() + static_cast<ptrdiff_t>(one.range.elements / 3)));
  }
}

TEST(Factors, BitsDoNotDependOnThreads) {
  for (const Case& one : kCases) {
    SCOPED_TRACE(text(one.shape));
    std::vector<std::vector<float>> found;
    for (const size_t threads : {1u, 2u, 5u}) {
      Member member(one.shape, one.range, one.cuts, kSeed, threads);
      Factors factors(one.shape, one.range, 7);
      ASSERT_TRUE(factors.set_rank(one.rank));
      std::vector<float> all = project(factors, member);
      factors.set_basis(all);
      const std::vector<float> right = coefficients(factors, member);
      subtract(factors, right, member);
      factors.learn(right);
      all.insert(all.end(), right.begin(), right.end());
      all.insert(all.end(), member.gradient().begin(), member.gradient().end());
      all.insert(all.end(), factors.directions().begin(), factors.directions().end());
      found.push_back(all);
    }
    EXPECT_EQ(found[0], found[1]);
    EXPECT_EQ(found[0], found[2]);
  }
}

// Of rank 3 with strengths 100, 10 and 1 beside noise of 0.01 an element.
std::vector<float> low_rank(Shape shape, uint64_t seed) {
  std::vector<float> all = draw_values(Family::normal, shape.elements(), seed);
  float strength = 100;
  for (uint64_t k = 1; k <= 3; ++k, strength /= 10) {
    std::vector<float> left = draw_values(Family::normal, shape.rows, seed + 2 * k);
    std::vector<float> right = draw_values(Family::normal, shape.columns, seed + 2 * k + 1);
    normalise(left);
    normalise(right);
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] += strength * left[i / shape.columns] * right[i % shape.columns];
    }
  }
  return all;
}

TEST(Factors, FindTheStrongDirectionsInAFewSteps) {
  const Shape shape{80, 50};
  const Range range{0, shape.elements()};
  const std::vector<float> matrix = low_rank(shape, 11);
  const std::vector<float> noise = draw_values(Family::normal, shape.elements(), 11);
  Factors factors(shape, range, 1);
  ASSERT_TRUE(factors.set_rank(3));
  double left_over = 0;
  for (int step = 0; step < 6; ++step) {
    Member member(shape, range, {}, 1);
    member.forget();
    member.set(matrix);
    factors.set_basis(project(factors, member));
    const std::vector<float> right = coefficients(factors, member);
    subtract(factors, right, member);
    factors.learn(right);
    left_over = energy(member.gradient());
  }
  // Hardly more than the noise, of which three directions are gone too.
  EXPECT_LT(left_over, energy(noise));
  EXPECT_GT(left_over, 0.8 * energy(noise));
}

TEST(Factors, RankGrowsAndKeepsWhatItKnows) {
  Factors factors({40, 30}, {0, 1200}, 7);
  ASSERT_TRUE(factors.set_rank(2));
  const std::vector<float> two(factors.directions().begin(), factors.directions().end());
  ASSERT_TRUE(factors.set_rank(5));
  EXPECT_EQ(factors.right_elements(), 150u);
  EXPECT_TRUE(std::equal(two.begin(), two.end(), factors.directions().begin()));
  ASSERT_TRUE(factors.set_rank(1));
  EXPECT_TRUE(std::equal(two.begin(), two.begin() + 30, factors.directions().begin()));
  ASSERT_TRUE(factors.set_rank(0));
  EXPECT_EQ(factors.left_elements(), 0u);

  const Result<void> refused = factors.set_rank(31);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "rank 31 of a matrix of 40 x 30: it must lie in 0 to 30");
  EXPECT_EQ(factors.rank(), 0u);

  EXPECT_FALSE(factors.restore_directions(2, 2, std::vector<float>(30)));
  std::vector<float> damaged = two;
  damaged[1] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_FALSE(factors.restore_directions(2, 2, damaged));
  EXPECT_TRUE(factors.restore_directions(2, 2, two));
  EXPECT_EQ(factors.rank(), 2u);
}

// The rest holds what the factors cannot.
void expect_nothing_sent(const std::vector<float>& values) {
  const Shape shape{12, 16};
  const Range range{0, shape.elements()};
  Member member(shape, range, {}, 1);
  member.forget();
  member.set(values);
  Factors factors(shape, range, 1);
  ASSERT_TRUE(factors.set_rank(4));
  factors.set_basis(project(factors, member));
  const std::vector<float> right = coefficients(factors, member);
  EXPECT_EQ(right, std::vector<float>(right.size(), 0.0f));
  subtract(factors, right, member);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_TRUE(member.gradient()[i] == values[i] || std::isnan(values[i]));
    EXPECT_EQ(std::isnan(member.gradient()[i]), std::isnan(values[i]));
  }
  factors.learn(right);  // draws other directions
  for (const float value : factors.directions()) EXPECT_TRUE(std::isfinite(value));
}

TEST(Factors, ValuesWithoutDirectionsStayInTheRest) {
  const size_t n = 12 * 16;
  expect_nothing_sent(std::vector<float>(n, 0.0f));
  expect_nothing_sent(draw_values(Family::huge, n, 1));
  std::vector<float> one = draw_values(Family::normal, n, 2);
  for (const float value :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN()}) {
    one[100] = value;
    expect_nothing_sent(one);
  }
}

TEST(Factors, OneRepeatedRowIsOneDirection) {
  const Shape shape{12, 16};
  const Range range{0, shape.elements()};
  std::vector<float> values = draw_values(Family::normal, 16, 4);
  for (size_t row = 1; row < 12; ++row)
    values.insert(values.end(), values.begin(), values.begin() + 16);
  Member member(shape, range, {}, 1);
  member.forget();
  member.set(values);
  Factors factors(shape, range, 1);
  ASSERT_TRUE(factors.set_rank(4));
  std::vector<float> left = project(factors, member);
  factors.set_basis(left);
  EXPECT_EQ(orthonormalise(left, 12), 1u);
  const std::vector<float> right = coefficients(factors, member);
  subtract(factors, right, member);
  EXPECT_LT(energy(member.gradient()), 1e-10 * energy(values));
  factors.learn(right);
  for (size_t k = 0; k < 4; ++k) {
    EXPECT_NEAR(energy(factors.directions().subspan(k * 16, 16)), 1, 1e-5);
  }
}

TEST(Basis, IsOrthonormalAlsoOfNearlyEqualColumns) {
  const size_t rows = 200;
  const size_t count = 16;
  const std::vector<float> common = draw_values(Family::normal, rows, 5);
  std::vector<float> columns = draw_values(Family::normal, rows * count, 6);
  for (size_t i = 0; i < columns.size(); ++i) columns[i] = common[i % rows] + 1e-3f * columns[i];
  ASSERT_EQ(orthonormalise(columns, rows), count);
  for (size_t a = 0; a < count; ++a) {
    for (size_t b = 0; b <= a; ++b) {
      double sum = 0;
      for (size_t i = 0; i < rows; ++i) {
        sum += static_cast<double>(columns[a * rows + i]) * columns[b * rows + i];
      }
      EXPECT_NEAR(sum, a == b ? 1 : 0, 2e-7) << a << ", " << b;
    }
  }
}

}  // namespace
}  // namespace scant::codec
