// The factors of a round's matrix parts: what is projected, sent and averaged, and the directions
// that outlive rounds and plans. docs/gradients.md, "Factors". One owner thread.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "codec/rank/factors.h"
#include "gradient/slice_table.h"

namespace scant::gradient {

class RoundFactors {
 public:
  // The layout outlives this object.
  explicit RoundFactors(const Layout& layout) : layout_(layout) {}

  // Ranks and memory for a plan's matrix parts; nothing to do where they are there. After an error
  // it has to be called again before a round begins. Throws std::bad_alloc.
  Result<void> prepare(const SliceTable& table);
  // A round begins: nothing was sent, nothing lost.
  void begin();

  // By number in table.matrices().
  [[nodiscard]] codec::Factors& of(const MatrixPart& matrix) { return known_.at(matrix.part); }

  // Arrays of all factors, in which the table knows places. What was projected, then averages:
  [[nodiscard]] std::span<float> values() { return values_; }
  // Of this member's coefficients what the others decode:
  [[nodiscard]] std::span<float> sent() { return sent_; }
  // What did not arrive of it, in place:
  [[nodiscard]] std::span<float> unsent() { return unsent_; }
  // What the averaged coefficients lost by this member's rounding as their owner, and those of
  // them that nobody applied:
  [[nodiscard]] std::span<float> lost() { return lost_; }
  // Slices of matrix parts whose rest was taken from what the coefficients leave; by number in the
  // layout.
  std::vector<bool> encoded{};

  // Directions, by part.
  [[nodiscard]] const std::map<uint32_t, codec::Factors>& known() const { return known_; }
  // Part, rank, directions drawn and directions as they are saved: docs/gradients.md, "Saved
  // residuals".
  static constexpr size_t kSavedHeadBytes = 16;  // before the directions
  Result<void> restore(Bytes saved);
  [[nodiscard]] size_t memory_bytes() const;
  // Floats that the steps of the largest matrix part take for a while.
  [[nodiscard]] uint64_t scratch_elements(const SliceTable& table) const;

 private:
  codec::Factors& factors_of(uint32_t part);

  const Layout& layout_;
  std::map<uint32_t, codec::Factors> known_;  // by part
  std::vector<float> values_;
  std::vector<float> sent_;
  std::vector<float> unsent_;
  std::vector<float> lost_;
};

}  // namespace scant::gradient
