#include "serve/file/tensor_kind.h"

#include <algorithm>

#include "base/check.h"
#include "codec/tile/tile.h"

namespace scant::serve {
namespace {

struct Row {
  TensorKind kind;
  const char* name;
  uint64_t block_columns;  // of kinds that are row by row
  uint64_t block_bytes;
};
constexpr Row kRows[] = {
    {TensorKind::f32, "f32", 1, 4},
    {TensorKind::bf16, "bf16", 1, 2},
    {TensorKind::f16, "f16", 1, 2},
    {TensorKind::q4_0, "Q4_0", kGgufBlock, 18},
    {TensorKind::q4_1, "Q4_1", kGgufBlock, 20},
    {TensorKind::q8_0, "Q8_0", kGgufBlock, 34},
    {TensorKind::bf16_tiles, "bf16 tiles", 0, 0},
    {TensorKind::q8, "q8", 0, 0},
    {TensorKind::q4, "q4", 0, 0},
    {TensorKind::q3, "q3", 0, 0},
    {TensorKind::q2, "q2", 0, 0},
    {TensorKind::sparse_bf16, "sparse bf16", 0, 0},
    {TensorKind::sparse_q8, "sparse q8", 0, 0},
    {TensorKind::sparse_q4, "sparse q4", 0, 0},
};

const Row& row_of(TensorKind kind) {
  const Row* const found = std::ranges::find(kRows, kind, &Row::kind);
  SCANT_CHECK(found != std::end(kRows));
  return *found;
}

}  // namespace

std::optional<TensorKind> tensor_kind(uint8_t code) {
  for (const Row& row : kRows) {
    if (static_cast<uint8_t>(row.kind) == code) return row.kind;
  }
  return std::nullopt;
}

std::optional<TensorKind> tensor_kind(std::string_view name) {
  for (const Row& row : kRows) {
    if (row.name == name) return row.kind;
  }
  return std::nullopt;
}

const char* name(TensorKind kind) { return row_of(kind).name; }

const std::vector<TensorKind>& tensor_kinds() {
  static const std::vector<TensorKind> all = [] {
    std::vector<TensorKind> kinds;
    for (const Row& row : kRows) kinds.push_back(row.kind);
    return kinds;
  }();
  return all;
}

codec::ValueKind strip_values(TensorKind kind) {
  switch (kind) {
    case TensorKind::bf16_tiles:
    case TensorKind::sparse_bf16:
      return codec::ValueKind::bf16;
    case TensorKind::q8:
    case TensorKind::sparse_q8:
      return codec::ValueKind::q8;
    case TensorKind::q4:
    case TensorKind::sparse_q4:
      return codec::ValueKind::q4;
    case TensorKind::q3:
      return codec::ValueKind::q3;
    default:
      SCANT_CHECK(kind == TensorKind::q2);
      return codec::ValueKind::q2;
  }
}

std::optional<codec::Shape> matrix_shape(const std::vector<uint64_t>& dims) {
  if (dims.empty() || dims.size() > kDimsMax) return std::nullopt;
  uint64_t elements = 1;
  for (const uint64_t dim : dims) {
    if (dim == 0 || elements > (kElementsMax - 1) / dim) return std::nullopt;
    elements *= dim;
  }
  return codec::Shape{.rows = elements / dims.back(), .columns = dims.back()};
}

std::optional<uint64_t> row_bytes(TensorKind kind, uint64_t columns) {
  const Row& row = row_of(kind);
  SCANT_CHECK(row_by_row(kind));
  if (columns % row.block_columns != 0) return std::nullopt;
  return columns / row.block_columns * row.block_bytes;
}

std::optional<uint64_t> tensor_bytes(TensorKind kind, codec::Shape shape) {
  if (sparse(kind)) return std::nullopt;
  if (!row_by_row(kind)) return codec::tiled_bytes(strip_values(kind), shape);
  const auto of_row = row_bytes(kind, shape.columns);
  if (!of_row) return std::nullopt;
  return shape.rows * *of_row;
}

}  // namespace scant::serve
