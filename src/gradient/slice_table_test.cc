// Slices of factors: that they cover their factor, that a slice's number and its record find one
// another, and who owns what.
#include "gradient/slice_table.h"

#include <gtest/gtest.h>
#include <set>

#include "codec/rank/factors.h"
#include "gradient/testing/fusion_plans.h"

namespace scant::gradient {
namespace {

using testing::layout_of;
using testing::random_layout;
using testing::random_plan;

void expect_covers(const SliceTable& table, const Layout& layout, const MatrixPart& matrix,
                   bool right) {
  const SliceSpan span = right ? matrix.right : matrix.left;
  const uint64_t elements = right ? matrix.right_elements : matrix.left_elements;
  const uint64_t at = right ? matrix.right_at : matrix.left_at;
  uint64_t next = 0;
  for (uint32_t slice = span.first; slice < span.first + span.count; ++slice) {
    ASSERT_TRUE(table.is_factor(slice));
    const SliceRecord record = table.record_of(slice);
    EXPECT_EQ(record.range.first, next);
    EXPECT_EQ(record.range.first % codec::kGroupElements, 0u);
    EXPECT_EQ(record.tensor, matrix.part + (right ? codec::kRightFactors : codec::kLeftFactors));
    EXPECT_EQ(record.shape.rows, matrix.rank);
    EXPECT_EQ(record.shape.elements(), elements);
    EXPECT_EQ(table.part_of(slice), matrix.part);
    EXPECT_EQ(table.factor_at(slice), at + next);
    EXPECT_EQ(layout.slices()[table.owned_like(slice)].part, matrix.part);
    next += record.range.elements;
  }
  EXPECT_EQ(next, elements);
}

TEST(SliceTable, FactorsAreCoveredByTheirSlices) {
  base::Rng rng(61);
  size_t seen = 0;
  for (int round = 0; round < 200; ++round) {
    const Layout layout = random_layout(rng, 20);
    const FusionPlan plan = random_plan(rng, layout, true);
    const SliceTable table(layout, plan);
    std::set<std::pair<uint32_t, uint64_t>> records;  // tensor and first element name one slice
    for (uint32_t slice = 0; slice < table.size(); ++slice) {
      const SliceRecord record = table.record_of(slice);
      EXPECT_TRUE(records.emplace(record.tensor, record.range.first).second);
      if (!table.is_factor(slice)) {
        EXPECT_EQ(record.range, layout.slices()[slice].range);
        EXPECT_EQ(table.owned_like(slice), slice);
      }
    }
    uint64_t end = 0;
    for (const MatrixPart& matrix : table.matrices()) {
      EXPECT_EQ(table.matrices()[*table.matrix_of(matrix.part)].part, matrix.part);
      EXPECT_GE(matrix.left_at, end);
      EXPECT_GE(matrix.right_at, matrix.left_at + matrix.left_elements);
      end = matrix.right_at + matrix.right_elements;
      expect_covers(table, layout, matrix, false);
      expect_covers(table, layout, matrix, true);
      ++seen;
    }
    EXPECT_LE(end, table.factor_elements());
  }
  EXPECT_GT(seen, 200u);
}

TEST(SliceTable, LargeFactorsHaveAllOwners) {
  const Layout layout = layout_of({{2048, 2048}, {64, 64}, {64, 64}, {1, 10}}, 4);
  FusionPlan plan = uniform_plan(
      {.path = Path::split, .point = {.density = 0, .rank = 8, .factors = codec::ValueKind::q4}},
      layout);
  const SliceTable table(layout, plan);
  ASSERT_EQ(table.matrices().size(), 3u);
  // 8 x 2048 numbers are four slices of 4096; 8 x 64 are one, of another owner each time.
  EXPECT_EQ(table.matrices()[0].left.count, 4u);
  std::set<Rank> owners;
  for (uint32_t i = 0; i < 4; ++i) {
    owners.insert(layout.slices()[table.owned_like(table.matrices()[0].left.first + i)].owner);
  }
  EXPECT_EQ(owners.size(), 4u);
  EXPECT_EQ(table.matrices()[1].left.count, 1u);
  EXPECT_EQ(table.matrix_of(3), std::nullopt);
  // A vector goes as the factors do.
  EXPECT_EQ(plan.buffers.back().points.back().first.values, codec::ValueKind::bf16);
}

}  // namespace
}  // namespace scant::gradient
