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

TEST(Point, OtherTextsNameNoPoint) {
  for (const char* text : {"", "q5", "Q4", "q4 ", " by row", "q4by row", "q4 by row by row"})
    EXPECT_EQ(point_of(1, text), std::nullopt) << text;
}

}  // namespace
}  // namespace scant::codec
