// Members, duties and seats: values that every member computes alike.
#include "gradient/members.h"

#include <gtest/gtest.h>
#include <limits>
#include <set>

#include "base/rng.h"
#include "gradient/seat.h"

namespace scant::gradient {
namespace {

Layout layout_of(int ranks, uint64_t slice_elements_min = 64) {
  const std::vector<codec::Shape> shapes = {{1, 7}, {100, 300}, {1, 64}, {2000, 90}, {3, 3}};
  return Layout::create(shapes, ranks, {.slice_elements_min = slice_elements_min}).value();
}

TEST(Members, EveryoneIsThereInOrder) {
  const Members members = everyone(4, 2);
  EXPECT_EQ(members.epoch, 1u);
  EXPECT_EQ(members.stations, (std::vector<Rank>{0, 1, 2, 3}));
  EXPECT_EQ(members.self, 2);
  EXPECT_EQ(members.size(), 4);
}

TEST(Members, TheHashIsOfEpochAndStationsInOrderAndNeverZero) {
  std::set<uint64_t> seen;
  size_t made = 0;
  for (uint64_t epoch = 1; epoch <= 20; ++epoch) {
    for (const std::vector<Rank>& stations :
         {std::vector<Rank>{}, {0}, {0, 1}, {1, 0}, {0, 1, 2}, {0, 2, 1}, {5, 9, 70000}}) {
      const uint64_t hash = Members{epoch, stations, kNoRank}.hash();
      EXPECT_NE(hash, 0u);
      EXPECT_EQ(hash, (Members{epoch, stations, 0}.hash())) << "this station's place is its own";
      seen.insert(hash);
      ++made;
    }
  }
  EXPECT_EQ(seen.size(), made);
}

TEST(Duties, WithAsManyMembersAsTheLayoutWasCutForOwnersAreItsOwn) {
  for (const int ranks : {1, 2, 3, 7, 9}) {
    const Layout layout = layout_of(ranks);
    const auto duties = duties_for(layout, ranks);
    ASSERT_EQ(duties.size(), layout.slices().size());
    for (size_t i = 0; i < duties.size(); ++i) {
      EXPECT_EQ(duties[i].owner, layout.slices()[i].owner);
      EXPECT_EQ(duties[i].weight, 1.0f / static_cast<float>(ranks));
    }
  }
}

// The largest slice is what one may own more than another.
TEST(Duties, WithFewerOrMoreMembersEachOwnsAboutEquallyMuch) {
  for (const int cut_for : {1, 2, 4, 8}) {
    const Layout layout = layout_of(cut_for);
    for (const int members : {1, 2, 3, 5, 8, 16}) {
      if (members == cut_for) continue;
      const auto duties = duties_for(layout, members);
      std::vector<uint64_t> owned(static_cast<size_t>(members), 0);
      uint64_t largest = 0;
      for (size_t i = 0; i < duties.size(); ++i) {
        const uint64_t elements = layout.slices()[i].range.elements;
        ASSERT_GE(duties[i].owner, 0);
        ASSERT_LT(duties[i].owner, members);
        EXPECT_EQ(duties[i].weight, 1.0f / static_cast<float>(members));
        owned[static_cast<size_t>(duties[i].owner)] += elements;
        largest = std::max(largest, elements);
      }
      const auto [least, most] = std::minmax_element(owned.begin(), owned.end());
      EXPECT_LE(*most - *least, largest) << cut_for << " ranks, " << members << " members";
      EXPECT_EQ(duties, duties_for(layout, members));
    }
  }
}

TEST(Seat, AMeansWeightIsUndoneExactly) {
  const Layout layout = layout_of(1);
  for (int ranks = 1; ranks <= 65535; ranks += ranks < 2000 ? 1 : 997) {
    const SliceDuty duty{.owner = 0, .weight = 1.0f / static_cast<float>(ranks)};
    const auto seat = seat_for(layout, everyone(1, 0), {layout.slices().size(), duty});
    ASSERT_TRUE(seat.ok());
    ASSERT_EQ(seat.value().times(0), static_cast<float>(ranks));
  }
  const auto other = seat_for(layout, everyone(1, 0), {layout.slices().size(), {0, 0.3f}});
  EXPECT_EQ(other.value().times(0), 1.0f / 0.3f);
}

TEST(Seat, WhoIsWhereAndOwnsWhat) {
  const Layout layout = layout_of(3);
  const auto seat = seat_for(layout, {7, {4, 9, 2}, 1}, {});
  ASSERT_TRUE(seat.ok()) << seat.error().to_string();
  EXPECT_EQ(seat.value().ranks(), 3);
  EXPECT_EQ(seat.value().rank(), 1);
  EXPECT_EQ(seat.value().station(), 9);
  for (uint32_t i = 0; i < layout.slices().size(); ++i) {
    EXPECT_EQ(seat.value().owns(i), layout.slices()[i].owner == 1);
  }
}

TEST(Seat, WhatCannotBeIsRefusedByName) {
  const Layout layout = layout_of(2);
  const size_t slices = layout.slices().size();
  const auto refusal = [&](const Members& members, std::vector<SliceDuty> duties) {
    const auto seat = seat_for(layout, members, std::move(duties));
    if (seat.ok()) return std::string("taken");
    EXPECT_EQ(seat.error().code, ErrorCode::invalid_argument);
    return seat.error().message;
  };
  EXPECT_NE(refusal({1, {}, kNoRank}, {}).find("there are none"), std::string::npos);
  EXPECT_NE(refusal({0, {0, 1}, 0}, {}).find("counted from 1"), std::string::npos);
  EXPECT_NE(refusal({1, {0, 1}, kNoRank}, {}).find("only members take part"), std::string::npos);
  EXPECT_NE(refusal({1, {0, 1}, 2}, {}).find("none of the 2"), std::string::npos);
  EXPECT_NE(refusal({1, {3, 3}, 0}, {}).find("different numbers"), std::string::npos);
  EXPECT_NE(refusal({1, {-1, 3}, 0}, {}).find("from 0 on"), std::string::npos);
  EXPECT_NE(refusal(everyone(2, 0), {slices - 1, {0, 0.5f}}).find("duties, the layout has"),
            std::string::npos);
  EXPECT_NE(refusal(everyone(2, 0), {slices, {2, 0.5f}}).find("the duty of slice 0"),
            std::string::npos);
  for (const float weight : {0.0f, -1.0f, std::numeric_limits<float>::quiet_NaN()}) {
    EXPECT_NE(refusal(everyone(2, 0), {slices, {0, weight}}).find("positive weight"),
              std::string::npos);
  }
}

TEST(LayoutOptions, SmallSlicesAreAnOption) {
  const std::vector<codec::Shape> shapes = {{64, 64}};
  EXPECT_EQ(Layout::create(shapes, 64).value().slices().size(), 1u);
  const auto small = Layout::create(shapes, 64, {.slice_elements_min = 64});
  ASSERT_TRUE(small.ok());
  ASSERT_EQ(small.value().slices().size(), 64u);
  for (const SliceLayout& slice : small.value().slices()) EXPECT_EQ(slice.range.elements, 64u);
  const auto none = Layout::create(shapes, 64, {.slice_elements_min = 63});
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().message.find("slice_elements_min is 63"), std::string::npos);
}

}  // namespace
}  // namespace scant::gradient
