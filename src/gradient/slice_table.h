// All slices that travel by a plan: those of the layout, and behind them slices of the factors of
// parts that send some. A slice's number finds its record, its memory and its owner. Plain values.
// docs/gradients.md, "Factors".
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "gradient/fusion_plan.h"
#include "gradient/layout.h"

namespace scant::gradient {

// Consecutive slices.
struct SliceSpan {
  uint32_t first = 0;
  uint32_t count = 0;
};

// What a record of a slice says in its header.
struct SliceRecord {
  uint32_t tensor = 0;
  codec::Shape shape;
  codec::Range range;  // of the tensor, or of a factor: column after column
};

// A part that sends factors. Both lie in one array of floats.
struct MatrixPart {
  uint32_t part = 0;
  uint32_t rank = 0;
  uint64_t left_at = 0;
  uint64_t left_elements = 0;
  uint64_t right_at = 0;
  uint64_t right_elements = 0;
  SliceSpan left{};  // numbers of slices
  SliceSpan right{};
};

class SliceTable {
 public:
  SliceTable() = default;
  // The layout outlives the table; the plan need not.
  SliceTable(const Layout& layout, const FusionPlan& plan);

  [[nodiscard]] uint32_t size() const;
  [[nodiscard]] bool is_factor(uint32_t slice) const;
  [[nodiscard]] SliceRecord record_of(uint32_t slice) const;
  [[nodiscard]] uint32_t part_of(uint32_t slice) const;
  // The slice of the layout whose owner owns this one too: itself, or for a factor one of its part.
  [[nodiscard]] uint32_t owned_like(uint32_t slice) const;
  // Of a factor: where the slice begins in the array of all factors.
  [[nodiscard]] uint64_t factor_at(uint32_t slice) const;

  [[nodiscard]] std::span<const MatrixPart> matrices() const { return matrices_; }
  // Of a part that sends factors: its number in matrices().
  [[nodiscard]] std::optional<uint32_t> matrix_of(uint32_t part) const;
  [[nodiscard]] uint64_t factor_elements() const { return factor_elements_; }

 private:
  struct FactorSlice {
    uint32_t matrix = 0;
    bool right = false;
    codec::Range range;  // of the factor
    uint32_t owned_like = 0;
  };
  void add_matrix(uint32_t part, uint32_t rank);
  uint64_t take(uint64_t elements);
  SliceSpan cut(uint32_t part, bool right, uint64_t elements);
  [[nodiscard]] const FactorSlice& factor(uint32_t slice) const;

  const Layout* layout_ = nullptr;
  std::vector<MatrixPart> matrices_;  // by part, ascending
  std::vector<FactorSlice> factors_;
  uint64_t factor_elements_ = 0;
};

}  // namespace scant::gradient
