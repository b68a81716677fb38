// Rows of a tensor as floats, and back: GGUF's blocks by their own arithmetic, tiles by the
// codec's. The plain way, for packing, unpacking and as the reference of kernels. Any thread.
#pragma once

#include "scant/base/result.h"
#include "serve/file/tensor_kind.h"

namespace scant::serve {

// Rows without gaps of a kind that is row by row; `bytes` are a whole number of them.
void widen_rows(TensorKind kind, Bytes bytes, uint64_t columns, float* out);
// f32, bf16 or f16; a finite value stays finite.
void narrow_rows(TensorKind kind, const float* values, uint64_t count, std::byte* out);

// Rows [first, first + rows) of a tensor, as `as`: f32, bf16, f16, or the tensor's own kind where
// that is row by row; `out` has as many bytes as they take. A sparse tensor was checked.
// ErrorCode::invalid_argument: no such rows, or another kind.
[[nodiscard]] Result<void> read_rows(const Tensor& tensor, uint64_t first, uint64_t rows,
                                     TensorKind as, MutableBytes out);

// Of a tensor in strips: one of them, and its base. A sparse tensor was checked.
[[nodiscard]] Bytes strip_of(const Tensor& tensor, uint64_t strip);
[[nodiscard]] uint16_t base_of(const Tensor& tensor, uint64_t strip);
// Of a tensor in strips: what the tables and a sparse tensor's bits have to agree on. Nothing where
// all is well.
[[nodiscard]] std::optional<std::string> strips_fault(const Tensor& tensor);

}  // namespace scant::serve
