// What every Exchange promises (docs/exchange.md), held against each of them: kinds by members by
// sizes, lanes, cancelling, errors, losses, members as a value, bounded messages.
#include <algorithm>
#include <deque>
#include <gtest/gtest.h>
#include <set>
#include <tuple>
#include <vector>

#include "base/rng.h"
#include "gradient/testing/exchange_trial.h"

namespace scant::gradient {
namespace {

using Kind = Operation::Kind;
using Buffer = std::vector<std::byte>;

class ExchangeConformance : public testing::TestWithParam<std::tuple<Backend, int>> {
 protected:
  [[nodiscard]] int size() const { return std::get<1>(GetParam()); }
  [[nodiscard]] std::unique_ptr<Exchanges> make(double loss = 0) const {
    return std::get<0>(GetParam()).make(size(), loss, static_cast<uint64_t>(size()));
  }
  [[nodiscard]] std::vector<Rank> all() const { return everyone(size(), 0).stations; }
  [[nodiscard]] Members as(Rank place, uint64_t epoch = 1) const {
    Members members = everyone(size(), place);
    members.epoch = epoch;
    return members;
  }
  static void expect_clean(Exchanges& on) {
    EXPECT_TRUE(on.run([&] { return on.leaks().empty(); })) << on.leaks();
  }
};

constexpr Kind kKinds[] = {Kind::all_reduce, Kind::swap, Kind::all_gather, Kind::gather,
                           Kind::broadcast};

TEST_P(ExchangeConformance, EveryKindOfEverySizeGivesItsResult) {
  const auto on = make();
  uint64_t tag = 0;
  for (const Kind kind : kKinds) {
    for (const uint64_t bytes : {0U, 1U, 997U, 60'013U}) {
      for (int turn = 0; turn < 2; ++turn) {
        Trial run(kind, all(), {}, bytes, ++tag);
        for (Rank place = 0; place < size(); ++place) run.submit(*on, as(place));
        ASSERT_TRUE(on->run([&] { return run.ended(); })) << "kind " << static_cast<int>(kind);
        run.expect_well();
      }
    }
  }
  expect_clean(*on);
}

TEST_P(ExchangeConformance, ALaneKeepsItsOrderAndSlotsGoOnTogether) {
  const auto on = make();
  base::Rng rng(static_cast<uint64_t>(size()), 7);
  const uint32_t slots = std::min(on->slots(), 4U);
  // By lane, in its order; each member goes through the lanes in an order of its own.
  std::vector<std::vector<std::unique_ptr<Trial>>> lanes;
  for (uint32_t slot = 0; slot < slots; ++slot) {
    for (int leg = 0; leg < kLegCount; ++leg) {
      auto& lane = lanes.emplace_back();
      for (uint64_t i = 0; i < 6; ++i) {
        lane.push_back(std::make_unique<Trial>(kKinds[rng.below(5)], all(),
                                               Lane{slot, static_cast<Leg>(leg)}, rng.below(5000),
                                               rng.next()));
      }
    }
  }
  std::vector<std::vector<size_t>> next(static_cast<size_t>(size()),
                                        std::vector<size_t>(lanes.size()));
  size_t left = static_cast<size_t>(size()) * lanes.size() * 6;
  while (left > 0) {
    const auto place = static_cast<Rank>(rng.below(static_cast<uint64_t>(size())));
    const size_t lane = rng.below(lanes.size());
    size_t& at = next[static_cast<size_t>(place)][lane];
    if (at == lanes[lane].size()) continue;
    lanes[lane][at++]->submit(*on, as(place));
    --left;
    if (left % 7 == 0) on->pass(rng.below(20));
  }
  for (const auto& lane : lanes) {
    for (const auto& run : lane) {
      ASSERT_TRUE(on->run([&] { return run->ended(); }));
      run->expect_well();
    }
  }
  expect_clean(*on);
}

TEST_P(ExchangeConformance, LanesDoNotWaitForOneAnother) {
  const auto on = make();
  Trial late(Kind::swap, all(), {0, Leg::first}, 500, 1);
  Trial same_leg(Kind::swap, all(), {1, Leg::first}, 500, 2);
  Trial same_slot(Kind::all_reduce, all(), {0, Leg::second}, 500, 3);
  for (Rank place = 0; place < size(); ++place) {
    if (place == 0 && size() > 1) continue;
    late.submit(*on, as(place));
  }
  for (Rank place = 0; place < size(); ++place) {
    same_leg.submit(*on, as(place));
    same_slot.submit(*on, as(place));
  }
  ASSERT_TRUE(on->run([&] { return same_leg.ended() && same_slot.ended(); }));
  if (size() > 1) {
    EXPECT_FALSE(late.ended());
    late.submit(*on, as(0));
  }
  ASSERT_TRUE(on->run([&] { return late.ended(); }));
  late.expect_well();
  same_leg.expect_well();
  same_slot.expect_well();
}

TEST_P(ExchangeConformance, CancellingEndsALaneOnAllMembersUntilALaterEpoch) {
  if (size() == 1) GTEST_SKIP() << "nobody else is there to wait for";
  const auto on = make();
  Trial cancelled(Kind::swap, all(), {0, Leg::first}, 700, 1);
  Trial other(Kind::swap, all(), {0, Leg::second}, 700, 2);
  for (Rank place = 1; place < size(); ++place) cancelled.submit(*on, as(place));
  for (Rank place = 0; place < size(); ++place) other.submit(*on, as(place));
  on->at(0).cancel(as(0), {0, Leg::first});
  cancelled.submit(*on, as(0));
  ASSERT_TRUE(on->run([&] { return cancelled.ended() && other.ended(); }));
  other.expect_well();
  for (Rank place = 0; place < size(); ++place) {
    EXPECT_EQ(cancelled.ended(place), 1);
    const Outcome outcome = cancelled.outcome(place);
    ASSERT_FALSE(outcome.result.ok()) << "place " << place;
    EXPECT_EQ(outcome.result.error().code, ErrorCode::closed) << outcome.result.error().to_string();
  }
  Trial later(Kind::swap, all(), {0, Leg::first}, 700, 3);
  for (Rank place = 0; place < size(); ++place) later.submit(*on, as(place, 2));
  ASSERT_TRUE(on->run([&] { return later.ended(); }));
  later.expect_well();
  for (Rank place = 1; place < size(); ++place) on->at(place).cancel(as(place), {0, Leg::first});
  expect_clean(*on);
}

// The root is busy elsewhere: it takes no part in the lane, and learns nothing.
TEST_P(ExchangeConformance, WhoWaitsForAThirdMemberLearnsOfACancel) {
  if (size() < 3) GTEST_SKIP() << "there is no third member";
  const auto on = make();
  const auto root = static_cast<uint64_t>(size());  // as a tag: place 0
  Trial before(Kind::broadcast, all(), {}, 100, root);
  for (Rank place = 0; place < size(); ++place) before.submit(*on, as(place));
  ASSERT_TRUE(on->run([&] { return before.ended(); }));
  Trial waits(Kind::broadcast, all(), {}, 100, 2 * root);
  for (Rank place = 2; place < size(); ++place) waits.submit(*on, as(place));
  on->pass(static_cast<uint64_t>(size()));
  on->at(1).cancel(as(1), {});
  const auto told = [&](Rank place) { return waits.ended(place) == 1; };
  for (Rank place = 2; place < size(); ++place) {
    ASSERT_TRUE(on->run([&] { return told(place); })) << "place " << place;
    EXPECT_EQ(waits.outcome(place).result.error().code, ErrorCode::closed);
  }
  expect_clean(*on);
}

TEST_P(ExchangeConformance, TheErrorOfOneMemberIsTheErrorOfAll) {
  if (size() == 1) GTEST_SKIP() << "nobody else is there to be told";
  const auto on = make();
  const Rank culprit = static_cast<Rank>(size() - 1);
  Trial run(Kind::swap, all(), {}, 300, 1);
  run.spoil(culprit);
  for (Rank place = 0; place < size(); ++place) run.submit(*on, as(place));
  ASSERT_TRUE(on->run([&] { return run.ended(); }));
  for (Rank place = 0; place < size(); ++place) {
    EXPECT_EQ(run.ended(place), 1);
    const Outcome outcome = run.outcome(place);
    ASSERT_FALSE(outcome.result.ok()) << "place " << place;
    EXPECT_EQ(outcome.result.error().code, ErrorCode::invalid_argument)
        << "place " << place << ": " << outcome.result.error().to_string();
  }
  expect_clean(*on);
}

TEST_P(ExchangeConformance, ALostMemberEndsWhatNeedsIt) {
  if (size() == 1) GTEST_SKIP() << "nobody else is there to notice";
  const auto on = make();
  const Rank victim = static_cast<Rank>(size() / 2);
  Trial run(Kind::swap, all(), {}, 300, 1);
  for (Rank place = 0; place < size(); ++place) {
    if (place != victim) run.submit(*on, as(place));
  }
  const ErrorCode expected = on->lose(victim);
  const auto told = [&] {
    for (Rank place = 0; place < size(); ++place) {
      if (place != victim && run.ended(place) == 0) return false;
    }
    return true;
  };
  ASSERT_TRUE(on->run(told));
  for (Rank place = 0; place < size(); ++place) {
    if (place == victim) continue;
    const Outcome outcome = run.outcome(place);
    ASSERT_FALSE(outcome.result.ok()) << "place " << place;
    EXPECT_EQ(outcome.result.error().code, expected)
        << "place " << place << ": " << outcome.result.error().to_string();
    EXPECT_EQ(outcome.result.error().peer, victim) << outcome.result.error().to_string();
  }
}

TEST_P(ExchangeConformance, MembersAreAValue) {
  const auto on = make();
  base::Rng rng(static_cast<uint64_t>(size()), 9);
  std::deque<Trial> runs;
  uint64_t epoch = 1;
  // Fewer, in another order, and all of them again, in lanes that have been used before.
  for (int turn = 0; turn < 6; ++turn) {
    std::vector<Rank> stations = all();
    for (size_t i = stations.size(); i > 1; --i) std::swap(stations[i - 1], stations[rng.below(i)]);
    if (turn % 2 == 1) stations.resize(1 + rng.below(stations.size()));
    ++epoch;
    for (const Kind kind : kKinds) {
      Trial& run = runs.emplace_back(kind, stations, Lane{}, 400, rng.next());
      for (Rank place = 0; place < run.size(); ++place) {
        run.submit(*on, Members{.epoch = epoch, .stations = stations, .self = place});
      }
    }
  }
  for (Trial& run : runs) {
    ASSERT_TRUE(on->run([&] { return run.ended(); }));
    run.expect_well();
  }
  expect_clean(*on);
}

// One of the first members is lost, then one of the newcomers.
TEST_P(ExchangeConformance, MembersLeaveAndJoinAndKeepTheirNumbers) {
  const auto on = make();
  std::set<Rank> used;
  std::vector<Members> members;
  for (Rank place = 0; place < size(); ++place) members.push_back(as(place));
  uint64_t tag = 0;
  const auto take_turns = [&] {
    for (const Kind kind : kKinds) {
      Trial run(kind, members[0].stations, Lane{}, 400, ++tag);
      for (const Members& one : members) run.submit(*on, one);
      ASSERT_TRUE(on->run([&] { return run.ended(); })) << "kind " << static_cast<int>(kind);
      run.expect_well();
    }
  };
  const auto change = [&](std::vector<Rank> stay, int newcomers) {
    const uint64_t epoch = members[0].epoch;
    members = on->go_on(newcomers);
    ASSERT_EQ(members.size(), stay.size() + static_cast<size_t>(newcomers));
    const std::vector<Rank> stations = members[0].stations;
    EXPECT_TRUE(std::equal(stay.begin(), stay.end(), stations.begin() + newcomers));
    for (int i = 0; i < newcomers; ++i) {
      EXPECT_FALSE(used.contains(stations[static_cast<size_t>(i)])) << "a number of somebody else";
    }
    for (Rank place = 0; place < static_cast<Rank>(members.size()); ++place) {
      EXPECT_EQ(members[static_cast<size_t>(place)], (Members{members[0].epoch, stations, place}));
    }
    EXPECT_GT(members[0].epoch, epoch);
    used.insert(stations.begin(), stations.end());
    for (const Rank station : stations) {
      const std::vector<Rank> there = on->at(station).members().stations;
      for (const Rank other : used) {
        const bool stays = std::ranges::find(stations, other) != stations.end();
        EXPECT_EQ(std::ranges::find(there, other) != there.end(), stays) << "station " << other;
      }
    }
    take_turns();
  };
  used.insert(members[0].stations.begin(), members[0].stations.end());
  take_turns();
  std::vector<Rank> left = all();
  const auto lose = [&](Rank victim) {
    std::erase(left, victim);
    Trial run(Kind::swap, members[0].stations, Lane{}, 300, ++tag);
    for (const Members& one : members) {
      if (one.stations[static_cast<size_t>(one.self)] != victim) run.submit(*on, one);
    }
    on->lose(victim);
    const auto told = [&] {
      return std::ranges::all_of(members, [&](const Members& one) {
        return one.stations[static_cast<size_t>(one.self)] == victim || run.ended(one.self) > 0;
      });
    };
    ASSERT_TRUE(on->run(told));
    for (const Members& one : members) {
      if (one.stations[static_cast<size_t>(one.self)] == victim) continue;
      ASSERT_FALSE(run.outcome(one.self).result.ok());
      EXPECT_EQ(run.outcome(one.self).result.error().peer, victim);
    }
  };
  if (size() > 1) {
    ASSERT_NO_FATAL_FAILURE(lose(static_cast<Rank>(size() / 2)));
    ASSERT_NO_FATAL_FAILURE(change(left, 0));
  }
  ASSERT_NO_FATAL_FAILURE(change(left, kNewcomersMax));
  left = members[0].stations;
  ASSERT_NO_FATAL_FAILURE(lose(left[0]));
  ASSERT_NO_FATAL_FAILURE(change(left, 0));
  expect_clean(*on);
}

TEST_P(ExchangeConformance, WhoIsNoMemberIsRefused) {
  const auto on = make();
  Trial run(Kind::swap, {0}, {}, 10, 1);
  Members other{.epoch = 1, .stations = {0}, .self = kNoRank};
  int ended = 0;
  on->at(0).submit(other, {}, [&](const Outcome& outcome) {
    ++ended;
    ASSERT_FALSE(outcome.result.ok());
    EXPECT_EQ(outcome.result.error().code, ErrorCode::invalid_argument);
  });
  Operation beyond{.lane = {.slot = on->slots()}};
  on->at(0).submit(as(0), std::move(beyond), [&](const Outcome& outcome) {
    ++ended;
    ASSERT_FALSE(outcome.result.ok());
    EXPECT_EQ(outcome.result.error().code, ErrorCode::invalid_argument);
  });
  EXPECT_EQ(ended, 2);
}

// (sender, receiver, slice) of what one member was told.
std::set<std::tuple<Rank, Rank, uint32_t>> told(const Outcome& outcome) {
  std::set<std::tuple<Rank, Rank, uint32_t>> all;
  for (const Missing& one : outcome.missing) all.insert({one.sender, one.receiver, one.slice});
  return all;
}

constexpr uint64_t kPieceBytes = 50;
constexpr uint64_t kPieces = 20;

std::vector<Operation::Piece> pieces_of(uint64_t bytes) {
  std::vector<Operation::Piece> pieces;
  for (uint64_t begin = 0; begin < bytes; begin += kPieceBytes) {
    const auto slice = static_cast<uint32_t>(begin / kPieceBytes);
    pieces.push_back({slice, {slice * 64U, 64}, begin, std::min(kPieceBytes, bytes - begin)});
  }
  return pieces;
}

TEST_P(ExchangeConformance, BothEndsAreToldOfWhatIsMissingAndTheRestIsWhole) {
  const auto on = make(0.4);
  const double share = 0.5;
  for (const Leg leg : {Leg::first, Leg::second, Leg::basis_first, Leg::basis_second}) {
    for (uint64_t tag = 1; tag <= 4; ++tag) {
      Trial run(Kind::swap, all(), {0, leg}, kPieces * kPieceBytes, tag);
      for (Rank place = 0; place < size(); ++place) {
        std::vector<std::vector<Operation::Piece>> pieces;
        for (Rank to = 0; to < size(); ++to) {
          pieces.push_back(pieces_of(swap_bytes(kPieces * kPieceBytes, place, to)));
        }
        run.set_pieces(place, std::move(pieces));
        run.submit(*on, as(place), {.exact = false, .share = share});
      }
      ASSERT_TRUE(on->run([&] { return run.ended(); }));
      std::set<std::tuple<Rank, Rank, uint32_t>> missing;
      for (Rank place = 0; place < size(); ++place) {
        ASSERT_TRUE(run.outcome(place).result.ok())
            << run.outcome(place).result.error().to_string();
        const auto own = told(run.outcome(place));
        missing.insert(own.begin(), own.end());
      }
      for (Rank place = 0; place < size(); ++place) {
        auto concerned = missing;
        if (!is_second(leg)) {
          std::erase_if(concerned, [&](const auto& one) {
            return std::get<0>(one) != place && std::get<1>(one) != place;
          });
        }
        EXPECT_EQ(told(run.outcome(place)), concerned) << "place " << place;
        for (Rank from = 0; from < size(); ++from) {
          const Buffer whole =
              message(tag, from, place, swap_bytes(kPieces * kPieceBytes, from, place));
          Buffer arrived;
          for (const Operation::Piece& piece : pieces_of(whole.size())) {
            if (missing.contains({from, place, piece.slice})) continue;
            const auto begin = whole.begin() + static_cast<std::ptrdiff_t>(piece.begin);
            arrived.insert(arrived.end(), begin, begin + static_cast<std::ptrdiff_t>(piece.bytes));
          }
          ASSERT_EQ(run.received(place, from), arrived.size());
          EXPECT_GE(static_cast<double>(arrived.size()), share * static_cast<double>(whole.size()));
          EXPECT_TRUE(std::equal(arrived.begin(), arrived.end(), run.room(place, from).begin()));
        }
      }
    }
  }
  expect_clean(*on);
}

std::string name_of(const testing::TestParamInfo<std::tuple<Backend, int>>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + std::to_string(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(All, ExchangeConformance,
                         testing::Combine(testing::ValuesIn(backends()), testing::Range(1, 10)),
                         name_of);

}  // namespace
}  // namespace scant::gradient
