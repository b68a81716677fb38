// Names and shares of the points of a plan.
#include "plan/point_shares.h"

#include <gtest/gtest.h>

namespace scant::plan {
namespace {

using codec::ValueKind;
using gradient::Path;

TEST(PointShares, NamesEachPointAndAddsUpToOne) {
  const std::vector<codec::Shape> tensors = {{1, 4096}, {4, 4096}, {1, 4096}, {2, 1024}};
  const auto layout = std::move(gradient::Layout::create(tensors, 2)).value();
  ASSERT_EQ(layout.parts().size(), 4u);
  const codec::Point dense{1.0, ValueKind::q4};
  const codec::Point sparse{0.015, ValueKind::q8, true};
  gradient::FusionPlan plan;
  plan.buffers = {{.first_part = 0, .parts = 1},
                  {.first_part = 1,
                   .parts = 2,
                   .path = Path::split,
                   .points = {{sparse, sparse}, {dense, sparse}}},
                  {.first_part = 3, .parts = 1, .path = Path::gather, .points = {{dense, {}}}}};
  const auto shares = point_shares(plan, layout);
  constexpr double kAll = 6 * 4096 + 2048;
  ASSERT_EQ(shares.size(), 3u);
  EXPECT_DOUBLE_EQ(shares.at("plain"), 4096 / kAll);
  EXPECT_DOUBLE_EQ(shares.at("1.5% q8 by row"), 4 * 4096 / kAll);
  EXPECT_DOUBLE_EQ(shares.at("q4"), (4096 + 2048) / kAll);
}

}  // namespace
}  // namespace scant::plan
