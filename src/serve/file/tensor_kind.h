// How a tensor's values are written, in all files that hold weights, and how many bytes they take.
// docs/packed.md has the table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/point.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::serve {

enum class TensorKind : uint8_t {
  f32 = 1,
  bf16 = 2,
  f16 = 3,
  q4_0 = 16,  // GGUF's blocks of 32
  q4_1 = 17,
  q8_0 = 18,
  bf16_tiles = 32,
  q8 = 33,
  q4 = 34,
  q3 = 35,
  q2 = 36,
  sparse_bf16 = 48,
  sparse_q8 = 49,
  sparse_q4 = 50,
};

[[nodiscard]] std::optional<TensorKind> tensor_kind(uint8_t code);
[[nodiscard]] std::optional<TensorKind> tensor_kind(std::string_view name);
[[nodiscard]] const char* name(TensorKind kind);
[[nodiscard]] const std::vector<TensorKind>& tensor_kinds();

// True: row by row, so any rows are a range of bytes. False: in strips of 16 rows.
[[nodiscard]] constexpr bool row_by_row(TensorKind kind) { return kind < TensorKind::bf16_tiles; }
[[nodiscard]] constexpr bool sparse(TensorKind kind) { return kind >= TensorKind::sparse_bf16; }
// For kinds in strips: the codec's kind of their values.
[[nodiscard]] codec::ValueKind strip_values(TensorKind kind);

inline constexpr size_t kDimsMax = 4;
inline constexpr uint64_t kElementsMax = uint64_t{1} << 40;
// The last dimension counts columns, the product of the others counts rows. Nothing if there are no
// dimensions or more than four, if one is 0, or if there are too many elements.
[[nodiscard]] std::optional<codec::Shape> matrix_shape(const std::vector<uint64_t>& dims);

inline constexpr uint64_t kGgufBlock = 32;  // columns of q4_0, q4_1, q8_0
// For `row_by_row` kinds. Nothing if blocks of the kind do not fill a row.
[[nodiscard]] std::optional<uint64_t> row_bytes(TensorKind kind, uint64_t columns);
// Also nothing for sparse kinds, whose bytes depend on what they keep.
[[nodiscard]] std::optional<uint64_t> tensor_bytes(TensorKind kind, codec::Shape shape);

// A tensor of a file. The bytes are borrowed from the file's mapping.
struct Tensor {
  std::string name;
  TensorKind kind = TensorKind::f32;
  std::vector<uint64_t> dims;
  codec::Shape shape;
  uint64_t at = 0;  // in the file
  Bytes bytes;
  uint32_t place = 0;    // its number in the source
  uint64_t entries = 0;  // sparse: values that are kept
};

}  // namespace scant::serve
