#include "codec/rank/factors.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <new>
#include <string>

#include "base/check.h"
#include "base/fault.h"
#include "base/rng.h"
#include "codec/kernels/kernels.h"
#include "codec/rank/basis.h"

namespace scant::codec {
namespace {

using base::invalid;

// Larger coefficients count as none: sums of others, of any number of members, stay finite.
constexpr float kCoefficientMost = 0x1p100f;

// Elements of the residual that a worker decodes at a time and adds to rows of A: at most half of
// the first-level cache.
constexpr uint64_t kDecodedElements = 4096;

// A left factor only chooses directions, so a larger one is scaled to below 2^this.
constexpr int kLeftMostExponent = 100;
// Directions are multiplied by this, so that no product of finite values overflows.
constexpr float kFarDown = 0x1p-60f;

bool all_within(std::span<const float> values, float most) {
  return std::ranges::all_of(values, [most](float value) { return std::fabs(value) <= most; });
}

// Multiplies by the power of two that brings the largest value just below 2^100.
void scale_to_most(std::span<float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  if (largest == 0 || !all_within(values, std::numeric_limits<float>::max())) return;
  const int up = kLeftMostExponent - 1 - std::ilogb(largest);
  for (float& value : values) value = std::ldexp(value, up);
}

}  // namespace

uint64_t rank_max(Shape matrix) {
  const uint64_t side = std::min(matrix.rows, matrix.columns);
  return side < 2 ? 0 : std::min<uint64_t>(side, kRankMax);
}

Point point_for(Point wanted, Shape matrix, uint64_t elements) {
  if (wanted.rank == 0) return wanted;
  wanted.rank = static_cast<uint16_t>(std::min<uint64_t>(wanted.rank, rank_max(matrix)));
  if (wanted.rank > 0 && wanted.rank * (matrix.rows + matrix.columns) < elements) return wanted;
  return wanted.density > 0 ? rest_of(wanted) : Point{1.0, wanted.factors};
}

Factors::Factors(Shape shape, Range range, uint64_t seed)
    : shape_(shape), range_(range), seed_(seed) {
  SCANT_CHECK(shape.columns > 0 && range.first + range.elements <= shape.elements());
  rows_ = rows_touched(shape, range);
}

size_t Factors::memory_bytes() const {
  return (directions_.capacity() + basis_.capacity()) * sizeof(float);
}

Result<void> Factors::set_rank(uint32_t rank) try {
  if (rank == rank_) return {};
  if (rank > kRankMax || rank > rows_ || rank > columns()) {
    return invalid("rank " + std::to_string(rank) + " of a matrix of " + std::to_string(rows_) +
                   " x " + std::to_string(columns()) + ": it must lie in 0 to " +
                   std::to_string(std::min<uint64_t>({kRankMax, rows_, columns()})));
  }
  base::AlignedVector<float> basis(rows_ * rank);
  directions_.reserve(columns() * rank);
  basis_ = std::move(basis);
  directions_.resize(columns() * rank);
  for (uint32_t k = rank_; k < rank; ++k) draw_direction(k);
  rank_ = rank;
  return {};
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource,
               .message = "no memory for factors of rank " + std::to_string(rank)};
}

void Factors::draw_direction(uint32_t k) {
  base::Rng rng(seed_, ++drawn_);
  const std::span<float> column = std::span(directions_).subspan(k * columns(), columns());
  do {
    for (float& value : column) value = static_cast<float>(2 * rng.uniform() - 1);
  } while (!normalise(column));
}

void Factors::append_stretches(size_t index, Range range, std::vector<Stretch>& all) const {
  const uint64_t columns = shape_.columns;
  const uint64_t first_row = range_.first / columns;
  uint64_t at = 0;
  while (at < range.elements) {
    const uint64_t left = range.elements - at;
    const uint64_t column = (range.first + at) % columns;
    Stretch next{.slice = index,
                 .at = at,
                 .row = (range.first + at) / columns - first_row,
                 .column = column,
                 .rows = 1,
                 .columns = std::min({columns - column, left, kPanelElements})};
    if (column == 0 && next.columns == columns) {
      next.rows = std::min(left / columns, kPanelElements / columns);
    }
    at += next.rows * next.columns;
    all.push_back(next);
  }
}

std::vector<Factors::Stretch> Factors::stretches(std::span<const MatrixSlice> slices) const {
  std::vector<Stretch> all;
  for (size_t i = 0; i < slices.size(); ++i) append_stretches(i, slices[i].range, all);
  return all;
}

template <typename Body>
void Factors::for_rows(std::span<const Stretch> all, Workspace& workspace, const Body& body) {
  std::vector<size_t> begins;
  for (size_t i = 0; i < all.size(); ++i) {
    if (i == 0 || all[i].row != all[i - 1].row + all[i - 1].rows - 1) begins.push_back(i);
  }
  begins.push_back(all.size());
  workspace.pool().for_each(begins.size() - 1, [&](size_t unit, size_t worker) {
    for (size_t i = begins[unit]; i < begins[unit + 1]; ++i) body(all[i], worker);
  });
}

Result<void> Factors::project(std::span<const MatrixSlice> slices, Workspace& workspace,
                              std::span<float> left) {
  SCANT_CHECK(left.size() == left_elements());
  for (const MatrixSlice& slice : slices) {
    if (slice.encoder == nullptr || slice.encoder->options().momentum == 0) continue;
    return invalid("tensor " + std::to_string(slice.encoder->tensor()) +
                   ": its encoder has momentum, which goes with no factors");
  }
  if (Result<void> prepared = workspace.prepare(); !prepared) return prepared;
  if (rank_ == 0) return {};
  std::ranges::fill(basis_, 0.0f);
  for_rows(stretches(slices), workspace, [&](const Stretch& one, size_t worker) {
    take_in(slices[one.slice], one, workspace.scratch(worker).work());
  });
  if (!all_within(basis_, std::ldexp(1.0f, kLeftMostExponent))) {
    multiply_far_down(slices, workspace);
    scale_to_most(basis_);
  }
  read_basis(left);
  return {};
}

// A times the directions once more; these are scaled down so that nothing overflows.
void Factors::multiply_far_down(std::span<const MatrixSlice> slices, Workspace& workspace) {
  std::vector<float> directions(directions_.begin(), directions_.end());
  for (float& value : directions) value *= kFarDown;
  std::ranges::fill(basis_, 0.0f);
  for_rows(stretches(slices), workspace, [&](const Stretch& one, size_t) {
    kernels().times_right(
        {slices[one.slice].gradient.data() + one.at, one.columns, one.rows, one.columns},
        {directions.data() + one.column, columns(), rank_}, basis_.data() + one.row * rank_);
  });
}

// Makes a stretch of A, and its product with the directions.
void Factors::take_in(const MatrixSlice& slice, const Stretch& one, float* work) {
  const Encoder* const encoder = slice.encoder;
  const bool in_place = encoder == nullptr || encoder->kept_in_place();
  const size_t at_a_time =
      in_place ? one.rows : std::max<size_t>(1, kDecodedElements / one.columns);
  const Factor by{directions_.data() + one.column, columns(), rank_};
  for (size_t row = 0; row < one.rows; row += at_a_time) {
    const size_t rows = std::min(at_a_time, one.rows - row);
    const uint64_t at = one.at + row * one.columns;
    float* const a = slice.gradient.data() + at;
    float* const to = basis_.data() + (one.row + row) * rank_;
    const float* const kept =
        encoder == nullptr ? nullptr : encoder->kept(at, rows * one.columns, work);
    if (kept == nullptr) {
      kernels().times_right({a, one.columns, rows, one.columns}, by, to);
    } else {
      kernels().add_times_right({a, one.columns, rows, one.columns}, kept, encoder->options().decay,
                                by, to);
    }
  }
}

void Factors::set_basis(std::span<const float> left) {
  SCANT_CHECK(left.size() == left_elements());
  std::vector<float> columns(left.begin(), left.end());
  orthonormalise(columns, rows_);
  for (size_t row = 0; row < rows_; ++row) {
    for (size_t k = 0; k < rank_; ++k) basis_[row * rank_ + k] = columns[k * rows_ + row];
  }
}

void Factors::read_basis(std::span<float> left) const {
  SCANT_CHECK(left.size() == left_elements());
  for (size_t row = 0; row < rows_; ++row) {
    for (size_t k = 0; k < rank_; ++k) left[k * rows_ + row] = basis_[row * rank_ + k];
  }
}

// The sum of each slice is taken apart, and these are added in order: so the bits do not depend on
// who took them.
Result<bool> Factors::coefficients(std::span<const MatrixSlice> slices, Workspace& workspace,
                                   std::span<float> right) {
  SCANT_CHECK(right.size() == right_elements());
  if (Result<void> prepared = workspace.prepare(); !prepared) return prepared.error();
  const size_t at_a_time = std::min(workspace.pool().workers(), slices.size());
  base::AlignedVector<float> sums(at_a_time * right.size());
  const std::vector<Stretch> all = stretches(slices);  // workers take no memory
  std::ranges::fill(right, 0.0f);
  const auto add_slice = [&](size_t index, std::span<float> sum) {
    std::ranges::fill(sum, 0.0f);
    auto one = std::ranges::lower_bound(all, index, {}, &Stretch::slice);
    for (; one != all.end() && one->slice == index; ++one) {
      kernels().times_left(
          {slices[index].gradient.data() + one->at, one->columns, one->rows, one->columns},
          basis_.data() + one->row * rank_, {sum.data() + one->column, columns(), rank_});
    }
  };
  for (size_t done = 0; done < slices.size(); done += at_a_time) {
    const size_t count = std::min(at_a_time, slices.size() - done);
    const auto sum_of = [&](size_t i) {
      return std::span(sums).subspan(i * right.size(), right.size());
    };
    workspace.pool().for_each(count, [&](size_t i, size_t) { add_slice(done + i, sum_of(i)); });
    for (size_t i = 0; i < count; ++i) {
      std::ranges::transform(right, sum_of(i), right.begin(), std::plus<>{});
    }
  }
  const bool all_usable = all_within(right, kCoefficientMost);
  if (!all_usable) std::ranges::fill(right, 0.0f);
  return all_usable;
}

Product Factors::product(std::span<const float> right, float times) const {
  SCANT_CHECK(right.size() == right_elements());
  return {columns(), range_.first / columns(), basis_, right, times};
}

void Factors::add(std::span<const float> right, float times, Range range, std::span<float> out,
                  Workspace& workspace) const {
  SCANT_CHECK(out.size() == range.elements);
  product(right, times).add(range, out, workspace);
}

bool Factors::add_average(std::span<const float> right, Range range, std::span<float> out,
                          Workspace& workspace) const {
  if (std::ranges::all_of(right, [](float value) { return value == 0; })) return false;
  add(right, 1.0f, range, out, workspace);
  return true;
}

void Factors::learn(std::span<const float> right) {
  SCANT_CHECK(right.size() == right_elements());
  std::ranges::copy(right, directions_.begin());
  for (uint32_t k = 0; k < rank_; ++k) {
    if (!normalise(std::span(directions_).subspan(k * columns(), columns()))) draw_direction(k);
  }
}

bool Factors::restore_directions(uint32_t rank, uint64_t drawn, std::span<const float> directions) {
  const auto finite = [](float value) { return std::isfinite(value); };
  if (directions.size() != columns() * rank || !std::ranges::all_of(directions, finite) ||
      !set_rank(rank)) {
    return false;
  }
  std::ranges::copy(directions, directions_.begin());
  drawn_ = drawn;
  return true;
}

}  // namespace scant::codec
