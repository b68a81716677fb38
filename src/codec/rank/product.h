// Basis times coefficients, for any stretch of a matrix. Any number of threads may call add() at
// once, for different elements.
#pragma once

#include <cstdint>
#include <span>

#include "base/aligned.h"
#include "codec/range.h"
#include "codec/workspace.h"

namespace scant::codec {

class Product {
 public:
  // basis * (times * right). The basis is given row after row, from the tensor's row `first_row`
  // on, and outlives this object. `right` is given column after column of `columns` numbers. May
  // throw std::bad_alloc.
  Product(uint64_t columns, uint64_t first_row, std::span<const float> basis,
          std::span<const float> right, float times);

  // to = from + the product, for elements [first, first + n) of the tensor. Both may be the same.
  void add(uint64_t first, size_t n, const float* from, float* to) const;
  // out + the product in place, for elements `range`; workers share it.
  void add(Range range, std::span<float> out, Workspace& workspace) const;

 private:
  uint64_t columns_;
  uint64_t first_row_;
  std::span<const float> basis_;
  base::AlignedVector<float> right_;
  size_t rank_;
};

}  // namespace scant::codec
