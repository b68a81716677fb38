#include "codec/rate/spectrum.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "base/aligned.h"
#include "base/check.h"
#include "codec/kernels/kernels.h"
#include "codec/quantise/rounding.h"
#include "codec/rank/basis.h"

namespace scant::codec {
namespace {

constexpr uint64_t kSampleElements = uint64_t{1} << 20;
constexpr uint64_t kRowsMin = 64;
constexpr int kIterations = 2;
constexpr uint64_t kSeed = 0x5350'4543;

// Rows and columns of the sample: rows evenly apart, and of each the first columns.
struct Sample {
  size_t rows = 0;
  size_t columns = 0;
  std::vector<float> values{};
};

size_t sampled_rows(const Factors& matrix) {
  const uint64_t fitting = std::max(kRowsMin, kSampleElements / matrix.columns());
  return static_cast<size_t>(std::min<uint64_t>(matrix.rows(), fitting));
}

// Elements [at, at + count) of a slice's A, at most kPanelElements; returns where the first one
// lies in `work`, which has room for kSparseBlockElements.
const float* load_elements(const MatrixSlice& slice, uint64_t at, size_t count, float* work) {
  if (slice.encoder == nullptr) {
    std::copy_n(slice.gradient.data() + at, count, work);
    return work;
  }
  const uint64_t begin = at / kGroupElements * kGroupElements;
  const uint64_t whole = base::align_up(at + count, kGroupElements);
  const uint64_t end = std::min<uint64_t>(whole, slice.range.elements);
  for (uint64_t i = begin; i < end; i += kDenseBlockElements) {
    const size_t here = std::min<uint64_t>(kDenseBlockElements, end - i);
    slice.encoder->peek(i, slice.gradient.data() + i, {work + (i - begin), here});
  }
  return work + (at - begin);
}

// Of the tensor's elements [first, first + out.size()) those that the slices hold; others stay.
void read(std::span<const MatrixSlice> slices, uint64_t first, std::span<float> out, float* work) {
  for (const MatrixSlice& slice : slices) {
    uint64_t begin = std::max(first, slice.range.first);
    const uint64_t end = std::min(first + out.size(), slice.range.first + slice.range.elements);
    while (begin < end) {
      const size_t count = std::min(kPanelElements, end - begin);
      const float* const from = load_elements(slice, begin - slice.range.first, count, work);
      std::copy_n(from, count, out.begin() + static_cast<ptrdiff_t>(begin - first));
      begin += count;
    }
  }
}

Sample take_sample(const Factors& matrix, Range range, std::span<const MatrixSlice> slices,
                   float* work) {
  Sample sample{.rows = sampled_rows(matrix)};
  sample.columns = std::min<size_t>(matrix.columns(), kSampleElements / sample.rows);
  sample.values.resize(sample.rows * sample.columns);
  const uint64_t first_row = range.first / matrix.columns();
  for (size_t i = 0; i < sample.rows; ++i) {
    const uint64_t row = first_row + i * matrix.rows() / sample.rows;
    read(slices, row * matrix.columns(),
         std::span(sample.values).subspan(i * sample.columns, sample.columns), work);
  }
  std::ranges::replace_if(
      sample.values, [](float value) { return !is_finite(value); }, 0.0f);
  return sample;
}

// Eigenvalues of a symmetric matrix, by Jacobi's rotations.
std::vector<double> eigenvalues(std::vector<double> matrix, size_t n) {
  const auto at = [&](size_t i, size_t j) -> double& { return matrix[i * n + j]; };
  for (int sweep = 0; sweep < 12; ++sweep) {
    for (size_t p = 0; p < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        if (at(p, q) == 0) continue;
        const double theta = (at(q, q) - at(p, p)) / (2 * at(p, q));
        const double t = std::copysign(1 / (std::fabs(theta) + std::hypot(theta, 1)), theta);
        const double c = 1 / std::hypot(t, 1);
        const double s = t * c;
        for (size_t k = 0; k < n; ++k) {
          const double first = at(k, p);
          const double second = at(k, q);
          at(k, p) = c * first - s * second;
          at(k, q) = s * first + c * second;
        }
        for (size_t k = 0; k < n; ++k) {
          const double first = at(p, k);
          const double second = at(q, k);
          at(p, k) = c * first - s * second;
          at(q, k) = s * first + c * second;
        }
      }
    }
  }
  std::vector<double> values;
  for (size_t i = 0; i < n; ++i) values.push_back(std::max(0.0, at(i, i)));
  std::ranges::sort(values, std::greater<>{});
  return values;
}

std::vector<double> products_of(std::span<const float> columns, size_t rank, size_t length) {
  std::vector<double> products(rank * rank);
  for (size_t a = 0; a < rank; ++a) {
    for (size_t b = 0; b <= a; ++b) {
      double sum = 0;
      for (size_t i = 0; i < length; ++i) {
        sum += static_cast<double>(columns[a * length + i]) * columns[b * length + i];
      }
      products[a * rank + b] = products[b * rank + a] = sum;
    }
  }
  return products;
}

}  // namespace

double Spectrum::share(uint32_t rank) const {
  if (!(energy > 0) || held.empty()) return 0;
  return std::min(1.0, held[std::min<size_t>(rank, held.size() - 1)] / energy);
}

// The sample is one matrix of its own, whose factors are found as those of a round are.
Result<Spectrum> spectrum(Shape shape, Range range, std::span<const MatrixSlice> slices,
                          Workspace& workspace) {
  if (Result<void> prepared = workspace.prepare(); !prepared) return prepared.error();
  Sample sample =
      take_sample(Factors(shape, range, kSeed), range, slices, workspace.scratch(0).work());
  const Shape small{sample.rows, sample.columns};
  const Range whole{0, small.elements()};
  const MatrixSlice all{.range = whole, .gradient = sample.values};
  Factors factors(small, whole, kSeed);
  const auto rank =
      static_cast<uint32_t>(std::min<size_t>({kSpectrumRank, sample.rows, sample.columns}));
  if (Result<void> set = factors.set_rank(rank); !set) return set.error();
  std::vector<float> left(factors.left_elements());
  std::vector<float> right(factors.right_elements());
  for (int i = 0; i < kIterations; ++i) {
    if (Result<void> done = factors.project({&all, 1}, workspace, left); !done) return done.error();
    factors.set_basis(left);
    const Result<bool> done = factors.coefficients({&all, 1}, workspace, right);
    if (!done) return done.error();
    factors.learn(right);
  }
  Spectrum found;
  for (const float value : sample.values) found.energy += static_cast<double>(value) * value;
  double sum = 0;
  found.held.push_back(0);
  for (const double one : eigenvalues(products_of(right, rank, sample.columns), rank)) {
    found.held.push_back(sum += one);
  }
  return found;
}

}  // namespace scant::codec
