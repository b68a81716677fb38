// The strong directions of a matrix, or of a range of its elements: what all members of a round
// find together and send instead of the elements. docs/codec.md, "Rank", says what is exchanged
// between these steps. No exchange and no records here. One owner thread; the workspace's workers
// share the work, and the bits do not depend on how many there are. Short lists may throw
// std::bad_alloc; then no member has changed but the basis.
//
//   project()  → average of all →  set_basis()
//   project()  → average of all →  set_basis()
//   coefficients()  → as sent →  product(), which Encoder::encode_rest takes away
//                  → average of all →  add_average(), learn()
#pragma once

#include <span>
#include <vector>

#include "base/aligned.h"
#include "codec/encoder.h"
#include "codec/point.h"
#include "codec/range.h"
#include "codec/rank/product.h"
#include "codec/workspace.h"
#include "scant/base/result.h"

namespace scant::codec {

inline constexpr uint32_t kRankMax = 256;
// A record of a factor has this number + the number of the part as its tensor. docs/record.md.
inline constexpr uint32_t kLeftFactors = uint32_t{1} << 30;
inline constexpr uint32_t kRightFactors = uint32_t{1} << 31;
// Rows of the tensor that a range has elements of.
[[nodiscard]] constexpr uint64_t rows_touched(Shape shape, Range range) {
  if (range.elements == 0) return 0;
  return (range.first + range.elements - 1) / shape.columns - range.first / shape.columns + 1;
}

// The most directions that a matrix may send: 0 unless it has rows and columns.
[[nodiscard]] uint64_t rank_max(Shape matrix);
// The point nearest to the wanted one that a part of a matrix can have. The rank is at most what
// its sides allow. It is 0 if factors would not have fewer numbers than `elements`: then all are
// sent like the rest, or, without a rest, dense with the values of the factors.
[[nodiscard]] Point point_for(Point wanted, Shape matrix, uint64_t elements);
// This + the number of a part is the seed of its first directions. So all members have the same.
inline constexpr uint64_t kDirectionsSeed = 0x4641'4354;

// One stretch of the range: A = gradient + decay * what its encoder keeps.
struct MatrixSlice {
  const Encoder* encoder = nullptr;  // null: nothing is kept
  Range range;                       // of the tensor; of the encoder
  std::span<float> gradient;
};

// What a worker's scratch holds of a matrix at a time, less what lies before and behind it in
// groups of 64.
inline constexpr uint64_t kPanelElements = kSparseBlockElements - 2 * kGroupElements;

class Factors {
 public:
  // Of elements `range` of a tensor. `seed`: of directions that nothing is known of.
  Factors(Shape shape, Range range, uint64_t seed);

  [[nodiscard]] size_t rows() const { return rows_; }  // that the range touches
  [[nodiscard]] size_t columns() const { return shape_.columns; }
  [[nodiscard]] uint32_t rank() const { return rank_; }
  [[nodiscard]] size_t left_elements() const { return rows_ * rank_; }
  [[nodiscard]] size_t right_elements() const { return columns() * rank_; }
  [[nodiscard]] size_t memory_bytes() const;

  // How many directions from now on: known ones stay, new ones are drawn. ErrorCode::
  // invalid_argument: more than rows or columns, or than kRankMax; resource: no memory.
  Result<void> set_rank(uint32_t rank);

  // Factors are written column after column of `rank` columns: left ones of rows() numbers, right
  // ones of columns(). Slices ascend, and cover the range.
  // The slices' gradients become A. `left` becomes A times the directions. If it would be beyond
  // 2^100, it is scaled to below by a power of two; so it is finite if A is.
  // ErrorCode::invalid_argument: an encoder has momentum, which A would lack; nothing has changed.
  Result<void> project(std::span<const MatrixSlice> slices, Workspace& workspace,
                       std::span<float> left);
  // The average of all members' projections becomes the basis: orthonormal, the same bits on all.
  void set_basis(std::span<const float> left);
  // The basis, column after column; a column is zeros if nothing of it was left.
  void read_basis(std::span<float> left) const;
  // `right` becomes the transpose of A times the basis; the gradients must be A, as project() left
  // them. False: a number is not finite or beyond 2^100. Then all are 0: the rest holds all of A.
  Result<bool> coefficients(std::span<const MatrixSlice> slices, Workspace& workspace,
                            std::span<float> right);
  // basis * (times * right), valid until the basis or the rank changes. With `times` -1 and this
  // member's coefficients as they were sent, it turns A into the rest.
  [[nodiscard]] Product product(std::span<const float> right, float times) const;
  // out + basis * (times * right), for elements `range`.
  void add(std::span<const float> right, float times, Range range, std::span<float> out,
           Workspace& workspace) const;
  // Makes the average of all members in `out`, which holds the average of their rests, or zeros if
  // they send none. False: all coefficients are 0, and `out` has not changed.
  bool add_average(std::span<const float> right, Range range, std::span<float> out,
                   Workspace& workspace) const;
  // The average of all members' coefficients are the next step's directions.
  void learn(std::span<const float> right);

  // The directions and how many were ever drawn, for a state that is saved. Of another rank or
  // size, or not finite: false, nothing changed.
  [[nodiscard]] std::span<const float> directions() const { return directions_; }
  [[nodiscard]] uint64_t drawn() const { return drawn_; }
  bool restore_directions(uint32_t rank, uint64_t drawn, std::span<const float> directions);

 private:
  // Elements that lie in whole rows, or in one row; `row` counts from the range's first.
  struct Stretch {
    size_t slice = 0;
    uint64_t at = 0;  // of the slice
    size_t row = 0;
    size_t column = 0;
    size_t rows = 0;
    size_t columns = 0;
  };
  [[nodiscard]] std::vector<Stretch> stretches(std::span<const MatrixSlice> slices) const;
  void append_stretches(size_t index, Range range, std::vector<Stretch>& all) const;
  // Calls body(stretch, worker) for all of them, those of one row one after the other.
  template <typename Body>
  static void for_rows(std::span<const Stretch> all, Workspace& workspace, const Body& body);
  void take_in(const MatrixSlice& slice, const Stretch& one, float* work);
  void multiply_far_down(std::span<const MatrixSlice> slices, Workspace& workspace);
  void draw_direction(uint32_t k);

  Shape shape_;
  Range range_;
  uint64_t seed_;
  size_t rows_ = 0;
  uint32_t rank_ = 0;
  uint64_t drawn_ = 0;                     // directions so far
  base::AlignedVector<float> directions_;  // column after column
  base::AlignedVector<float> basis_;       // row after row
};

}  // namespace scant::codec
