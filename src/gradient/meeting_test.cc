// Who goes on with whom: a value that every rank computes alike from what all have told.
#include "gradient/meeting.h"

#include <array>
#include <gtest/gtest.h>
#include <vector>

namespace scant::gradient {
namespace {

Arrival member(Rank station, uint64_t epoch = 1, uint64_t steps = 7, Rank used = 3) {
  return {
      .station = station, .stations_used = used, .epoch = epoch, .steps = steps, .layout_ranks = 3};
}
const Arrival kNew{.layout_ranks = 3};

Error refusal(const std::vector<Arrival>& by_place) {
  const auto first = meet(by_place, 0);
  if (first.ok()) {
    ADD_FAILURE() << "taken";
    return {};
  }
  for (Rank self = 1; self < static_cast<Rank>(by_place.size()); ++self) {
    EXPECT_EQ(meet(by_place, self).error().to_string(), first.error().to_string());
  }
  return first.error();
}

TEST(Meeting, SurvivorsKeepTheirStationsAndTheEpochRises) {
  const auto meeting = meet(std::vector<Arrival>{member(0), member(2)}, 1);
  ASSERT_TRUE(meeting.ok()) << meeting.error().to_string();
  EXPECT_EQ(meeting.value().members, (Members{2, {0, 2}, 1}));
  EXPECT_EQ(meeting.value().stations_used, 3);
  EXPECT_EQ(meeting.value().next_step, 8u);
}

TEST(Meeting, NewcomersGetNumbersThatNobodyHad) {
  const std::vector<Arrival> all = {kNew, member(0, 2), kNew, member(1, 2)};
  for (Rank self = 0; self < 4; ++self) {
    const auto meeting = meet(all, self);
    ASSERT_TRUE(meeting.ok()) << meeting.error().to_string();
    EXPECT_EQ(meeting.value().members, (Members{3, {3, 0, 4, 1}, self})) << "2 was lost";
    EXPECT_EQ(meeting.value().stations_used, 5);
  }
}

// A meeting may have ended well on some ranks only, and a step have begun on some only.
TEST(Meeting, WhoKnowsMostDecides) {
  const auto meeting = meet(std::vector<Arrival>{member(0, 2, 9, 3), member(1, 3, 8, 5), kNew}, 0);
  ASSERT_TRUE(meeting.ok()) << meeting.error().to_string();
  EXPECT_EQ(meeting.value().members, (Members{4, {0, 1, 5}, 0}));
  EXPECT_EQ(meeting.value().next_step, 10u);
}

TEST(Meeting, WhoCannotGoOnTogetherIsNamed) {
  const Error twice = refusal({member(0), kNew, member(0)});
  EXPECT_EQ(twice.code, ErrorCode::mismatch);
  EXPECT_EQ(twice.peer, 2);
  EXPECT_EQ(twice.message, "members: rank 0 and rank 2 both say that they are station 0");
  Arrival other = kNew;
  other.layout_ranks = 4;
  const Error layout = refusal({member(0), member(1), other});
  EXPECT_EQ(layout.code, ErrorCode::mismatch);
  EXPECT_EQ(layout.peer, 2);
  EXPECT_NE(layout.message.find("rank 2 has cut its layout for 4 ranks, rank 0 for 3"),
            std::string::npos);
  const Error nobody = refusal({kNew, kNew});
  EXPECT_EQ(nobody.code, ErrorCode::invalid_argument);
  EXPECT_NE(nobody.message.find("all 2 ranks are newcomers"), std::string::npos);
  const Error full = refusal({member(0, 1, 1, INT32_MAX), kNew});
  EXPECT_NE(full.message.find("no more numbers"), std::string::npos);
}

TEST(Arrival, IsReadAsItWasWritten) {
  std::array<std::byte, kArrivalBytes> bytes{};
  for (const Arrival& one : {kNew, member(2, 5, 1'000'000'007, 9)}) {
    write_arrival(one, bytes);
    const auto read = read_arrival(bytes);
    ASSERT_TRUE(read.ok()) << read.error().to_string();
    EXPECT_EQ(read.value(), one);
  }
  // Little-endian: version, station, stations used, epoch, steps, ranks of the layout.
  write_arrival(member(2, 5, 0x0102, 9), bytes);
  std::array<std::byte, kArrivalBytes> expected{};
  for (const auto& [at, value] :
       {std::pair{0, 1}, {8, 2}, {16, 9}, {24, 5}, {32, 2}, {33, 1}, {40, 3}}) {
    expected[static_cast<size_t>(at)] = static_cast<std::byte>(value);
  }
  EXPECT_EQ(bytes, expected);
}

TEST(Arrival, WhatNobodyCanHaveSentIsRefused) {
  std::array<std::byte, kArrivalBytes> bytes{};
  const auto refused = [&](size_t at, int value) {
    write_arrival(member(2, 5), bytes);
    bytes[at] = static_cast<std::byte>(value);
    const auto read = read_arrival(bytes);
    return read.ok() ? Error{} : read.error();
  };
  const Error version = refused(0, 2);
  EXPECT_EQ(version.code, ErrorCode::mismatch);
  EXPECT_NE(version.message.find("an arrival of version 2, here it is 1"), std::string::npos);
  EXPECT_EQ(refused(8, 3).code, ErrorCode::corrupt) << "a station that nobody was given";
  EXPECT_EQ(refused(15, 1).code, ErrorCode::corrupt) << "a station above 2^31";
  EXPECT_EQ(refused(20, 1).code, ErrorCode::corrupt) << "more stations than there can be";
  EXPECT_EQ(refused(24, 0).code, ErrorCode::corrupt) << "a member of no epoch";
  EXPECT_EQ(refused(31, 0x7f).code, ErrorCode::corrupt) << "an epoch that none can follow";
  EXPECT_EQ(refused(39, 0x7f).code, ErrorCode::corrupt) << "a step that none can follow";
}

}  // namespace
}  // namespace scant::gradient
