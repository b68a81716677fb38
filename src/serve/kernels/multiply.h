// Products of activations with matrices as files hold them: what nearly all time of a model goes
// into. docs/serve.md, "Products", is the arithmetic of each kind. The bits of a result depend
// neither on the number of threads, nor on which other rows are multiplied at the same time. One
// owner thread; the pool's workers share the rows of the weights.
#pragma once

#include <array>
#include <cstddef>
#include <span>

#include "base/aligned.h"
#include "base/worker_pool.h"
#include "serve/file/tensor_kind.h"
#include "serve/kernels/operand.h"

namespace scant::serve {

struct KernelTarget;

// Rows of activations, one for each token, and the forms that kinds of weights read them in. A form
// is made when the first product asks for it, and kept until set().
class Activations {
 public:
  // `values`: rows * columns floats without gaps. They stay as they are until the next set().
  void set(const float* values, size_t rows, size_t columns);
  [[nodiscard]] const float* values() const { return values_; }
  [[nodiscard]] size_t rows() const { return rows_; }
  [[nodiscard]] size_t columns() const { return columns_; }
  // Forms and the workers' scratch. It grows with the largest call and never shrinks.
  [[nodiscard]] uint64_t memory_bytes() const;

  // For multiply().
  const Operand& operand(const KernelTarget& target, Form form, base::WorkerPool& pool);
  std::byte* scratch(size_t bytes);

 private:
  const float* values_ = nullptr;
  size_t rows_ = 0;
  size_t columns_ = 0;
  std::array<OperandMemory, kFormCount> forms_;
  base::AlignedVector<std::byte> scratch_;
};

// out[token * stride + row] = sum over columns of weights[row][column] * activations[token][column]
struct MatrixProduct {
  const Tensor* weights = nullptr;  // shape.columns are the activations' columns
  float* out = nullptr;
  size_t stride = 0;
};

// Several matrices with the same activations, as query, key and value have them: one loop over all
// of their rows. A sparse tensor must have been checked. May throw std::bad_alloc.
void multiply(const KernelTarget& target, std::span<const MatrixProduct> products,
              Activations& activations, base::WorkerPool& pool);

}  // namespace scant::serve
