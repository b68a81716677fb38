// Rows of a tensor as floats, and back: GGUF's blocks by their own arithmetic, tiles by the
// codec's. The plain way, for packing, unpacking and as the reference of kernels. Any thread.
#pragma once

#include "codec/kernels/kernels.h"
#include "scant/base/result.h"
#include "serve/file/tensor_kind.h"

namespace scant::serve {

// For kinds that are row by row. `bytes` is a whole number of rows without gaps.
void widen_rows(TensorKind kind, Bytes bytes, uint64_t columns, float* out);
// To f32, bf16 or f16. A finite value stays finite.
void narrow_rows(TensorKind kind, const float* values, uint64_t count, std::byte* out);

// Writes rows [first, first + rows) of a tensor to `out`, in the kind `as`: f32, bf16, f16, or the
// tensor's own kind if that is row by row. A sparse tensor must have been checked.
// ErrorCode::invalid_argument: no such rows, or another kind.
[[nodiscard]] Result<void> read_rows(const Tensor& tensor, uint64_t first, uint64_t rows,
                                     TensorKind as, MutableBytes out);

// One row of any kind, as f32, without memory of its own. There is such a row; a sparse tensor must
// have been checked.
void read_row(const Tensor& tensor, uint64_t row, float* out,
              const codec::Kernels& by = codec::kernels());

// For a tensor in strips: a strip, and its base. A sparse tensor must have been checked.
[[nodiscard]] Bytes strip_of(const Tensor& tensor, uint64_t strip);
[[nodiscard]] uint16_t base_of(const Tensor& tensor, uint64_t strip);
// For a tensor in strips: the fault by which tables, or a sparse tensor's bits, do not agree.
// Nothing if there is none.
[[nodiscard]] std::optional<std::string> strips_fault(const Tensor& tensor);

}  // namespace scant::serve
