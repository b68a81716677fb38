#include "serve/kernels/lanes/plan.h"

#include <algorithm>
#include <cstring>

#include "serve/file/rows.h"

namespace scant::serve {

bool of_pairs(TensorKind kind) {
  return kind == TensorKind::bf16 || kind == TensorKind::bf16_tiles ||
         kind == TensorKind::sparse_bf16;
}

Plan plan_of(const Tensor& weights, size_t tokens) {
  Plan plan;
  const bool many = tokens > kPanelTokens;
  const bool pairs = of_pairs(weights.kind);
  const bool rows = row_by_row(weights.kind);
  const size_t wide = rows || pairs ? kPairColumns : codec::kTileColumns;
  const size_t groups = (weights.shape.columns + wide - 1) / wide;
  // bf16 takes twice as many bytes.
  const size_t columns = kColumnsMany / (pairs ? 2 : 1);
  plan.strips = many && !pairs ? kStripsMany : 1;
  plan.groups = std::min(groups, columns / wide);
  plan.quads = wide / 4;
  const auto take = [&plan](size_t bytes) {
    const size_t begin = plan.bytes;
    plan.bytes += base::align_up(bytes, 64);
    return begin;
  };
  const size_t of_group = codec::kTileRows * wide * (pairs ? 2 : 1);
  // A sparse tile has two blocks of pairs.
  plan.elements = take(plan.strips * plan.groups * of_group);
  plan.scales = take(pairs ? 0 : plan.strips * plan.groups * 64);
  plan.leasts = take(weights.kind == TensorKind::q4_1 ? plan.strips * plan.groups * 64 : 0);
  // Of pairs a token may have two sums.
  plan.sums = take((pairs ? 2 : plan.strips) * base::align_up(tokens, kPanelTokens) * 64);
  const bool whole = !rows || weights.shape.rows % codec::kTileRows == 0;
  plan.rows = take(whole ? 0 : codec::kTileRows * *row_bytes(weights.kind, weights.shape.columns));
  plan.edge = take(codec::kTileRows * 128);
  return plan;
}

size_t lanes_scratch_bytes(const Tensor& weights, size_t tokens) {
  if (weights.kind == TensorKind::f32 || weights.kind == TensorKind::f16) return 0;
  return plan_of(weights, tokens).bytes;
}

Form lanes_form(TensorKind kind, size_t tokens) { return kReferenceTarget.form(kind, tokens); }

Bytes part_bytes(const Part& part) {
  const Tensor& weights = *part.weights;
  if (row_by_row(weights.kind)) {
    const uint64_t of_row = *row_bytes(weights.kind, weights.shape.columns);
    const uint64_t begin = part.strip_first * codec::kTileRows;
    const uint64_t end =
        std::min<uint64_t>((part.strip_first + part.strips) * codec::kTileRows, weights.shape.rows);
    return weights.bytes.subspan(begin * of_row, (end - begin) * of_row);
  }
  const Bytes first = strip_of(weights, part.strip_first);
  const Bytes last = strip_of(weights, part.strip_first + part.strips - 1);
  return {first.data(), static_cast<size_t>(last.data() + last.size() - first.data())};
}

const std::byte* sixteen_rows(const Tensor& weights, uint64_t strip, size_t stride,
                              std::byte* copy) {
  const uint64_t first = strip * codec::kTileRows;
  const std::byte* const begin = weights.bytes.data() + first * stride;
  const uint64_t rows = weights.shape.rows - first;
  if (rows >= codec::kTileRows) return begin;
  std::memcpy(copy, begin, rows * stride);
  std::memset(copy + rows * stride, 0, (codec::kTileRows - rows) * stride);
  return copy;
}

void begin_nothing(size_t) {}
void end_nothing() {}

}  // namespace scant::serve
