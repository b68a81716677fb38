// Texts of points: what is written is read again, and nothing else is.
#include "codec/point.h"

#include <gtest/gtest.h>

namespace scant::codec {
namespace {

TEST(Point, EveryTextIsReadAgain) {
  for (int kind = 0; kind < kValueKindCount; ++kind) {
    for (const bool by_row : {false, true}) {
      const Point point{0.25, static_cast<ValueKind>(kind), by_row};
      EXPECT_EQ(values_text(point), std::string(name(point.values)) + (by_row ? " by row" : ""));
      EXPECT_EQ(point_of(0.25, values_text(point)), point);
    }
  }
}

TEST(Point, FactorsStandBeforeTheRest) {
  const Point all{.density = 0.05, .values = ValueKind::q4, .rank = 32, .factors = ValueKind::f32};
  const Point none{.density = 0, .rank = 256, .factors = ValueKind::q4};
  EXPECT_EQ(text(all), "rank 32 of f32, 5% q4");
  EXPECT_EQ(values_text(all), "rank 32 of f32, q4");
  EXPECT_EQ(text(none), "rank 256 of q4");
  EXPECT_EQ(values_text(none), "rank 256 of q4");
  EXPECT_EQ(text(Point{0.01, ValueKind::q4, true}), "1% q4 by row");
  EXPECT_EQ(text(Point{}), "f32");
  for (const Point point : {all, none})
    EXPECT_EQ(point_of(point.density, values_text(point)), point);
}

TEST(Point, OtherTextsNameNoPoint) {
  for (const char* text : {"",
                           "q5",
                           "Q4",
                           "q4 ",
                           " by row",
                           "q4by row",
                           "q4 by row by row",
                           "rank",
                           "rank ",
                           "rank 8",
                           "rank 0 of q4, q4",
                           "rank 8 q4",
                           "rank 8 of q4",
                           "rank 8 of q4,",
                           "rank 8 of q4, ",
                           "rank -1 of q4, q4",
                           "rank 70000 of q4, q4",
                           "rank 8 of q5, q4",
                           "rank 8 of q4, q5",
                           "rank 8 of q4 q4",
                           "rank 8 of q4, q4, q4",
                           "rank  8 of q4, q4"}) {
    EXPECT_EQ(point_of(1, text), std::nullopt) << text;
  }
  EXPECT_EQ(point_of(0.5, "rank 8 of q4"), std::nullopt);
}

}  // namespace
}  // namespace scant::codec
