// What the matrices of a model read and add while it runs on a text: for choosing how to write
// them. Sums of squares, in the order of tokens. One owner thread.
#pragma once

#include <cstddef>
#include <map>
#include <vector>

#include "serve/file/tensor_kind.h"

namespace scant::serve {

struct ActivationSum {
  uint64_t tokens = 0;
  std::vector<double> inputs;  // of each column of the matrix
  // Of matrices whose results are added to what goes from layer to layer: of the results, and of
  // what they then are a part of.
  double added = 0;
  double stream = 0;
};

class ActivationSums {
 public:
  void read(const Tensor& matrix, const float* inputs, size_t rows);
  void add(const Tensor& matrix, const float* results, const float* stream, size_t values);
  [[nodiscard]] const std::map<const Tensor*, ActivationSum>& all() const { return sums_; }

 private:
  std::map<const Tensor*, ActivationSum> sums_;
};

}  // namespace scant::serve
