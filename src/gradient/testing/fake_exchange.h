// Test support: an exchange of stations in one thread, whose operations end when and in which order
// the test wants. Lanes can be cancelled, stations lost, pieces of bounded messages lost.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "gradient/exchange.h"

namespace scant::gradient::testing {

class FakeNetwork {
 public:
  // Which elements of a piece do not arrive; all of them: the piece is not there at all.
  using Lose = std::function<std::vector<codec::Range>(const Lane&, Rank sender, Rank receiver,
                                                       const Operation::Piece&)>;

  explicit FakeNetwork(int stations) {
    for (Rank station = 0; station < stations; ++station) {
      exchanges_.push_back(std::make_unique<Port>(*this, station));
    }
  }
  [[nodiscard]] Exchange& at(Rank station) { return *exchanges_[static_cast<size_t>(station)]; }
  // Ends of operations that were not told yet, in the order in which they came about.
  [[nodiscard]] size_t told_next() const { return ends_.size(); }
  void tell(size_t which) {
    End end = std::move(ends_[which]);
    ends_.erase(ends_.begin() + static_cast<std::ptrdiff_t>(which));
    end.done(end.outcome);
  }
  // What it does not submit comes never; what others do with it ends with PeerLost.
  void lose_station(Rank station) {
    lost_.insert(station);
    for (auto& [key, meeting] : meetings_) end_if_lost(meeting);
  }
  // The next operations of this kind of lane end with this error instead, on all members.
  void fail_next(Leg leg, Error error) { failures_[leg] = std::move(error); }

  Lose lose;
  Duration elapsed{};
  std::vector<std::pair<Rank, Lane>> cancelled;  // by station, in order

 private:
  using LaneKey = std::tuple<uint64_t, uint32_t, Leg>;
  struct Meeting {  // of one operation's members
    Members among;
    std::map<Rank, std::pair<Operation, Done>> there;  // by place
  };
  struct End {
    Done done;
    Outcome outcome;
  };

  class Port final : public Exchange {
   public:
    Port(FakeNetwork& network, Rank station) : network_(network), station_(station) {}
    [[nodiscard]] Time now() const override { return Time(network_.elapsed); }
    [[nodiscard]] Members members() const override {
      return everyone(static_cast<int>(network_.exchanges_.size()), station_);
    }
    void submit(const Members& among, Operation operation, Done done) override {
      const uint64_t number = next_[key(among, operation.lane)]++;
      network_.submit(among, std::move(operation), std::move(done), number);
    }
    void cancel(const Members& among, Lane lane) override {
      network_.cancelled.emplace_back(station_, lane);
      network_.cancel(key(among, lane));
    }

   private:
    FakeNetwork& network_;
    Rank station_;
    std::map<LaneKey, uint64_t> next_;
  };

  static LaneKey key(const Members& among, const Lane& lane) {
    return {among.hash(), lane.slot, lane.leg};
  }
  static Error closed() { return Error{.code = ErrorCode::closed, .message = "cancelled"}; }

  void submit(const Members& among, Operation operation, Done done, uint64_t number) {
    const LaneKey lane = key(among, operation.lane);
    if (closed_.contains(lane)) {
      ends_.push_back({std::move(done), Outcome{.result = closed()}});
      return;
    }
    Meeting& meeting = meetings_[{lane, number}];
    meeting.among = among;
    meeting.there[among.self] = {std::move(operation), std::move(done)};
    end_if_lost(meeting);
    if (meeting.there.size() != among.stations.size()) return;
    carry_out(meeting);
    meetings_.erase({lane, number});
  }
  void cancel(const LaneKey& lane) {
    closed_.insert(lane);
    for (auto& [key, meeting] : meetings_) {
      if (key.first == lane) end_all(meeting, closed());
    }
  }
  void end_all(Meeting& meeting, const Error& error) {
    for (auto& [place, one] : meeting.there) {
      ends_.push_back({std::move(one.second), Outcome{.result = error}});
    }
    meeting.there.clear();
  }
  void end_if_lost(Meeting& meeting) {
    for (size_t place = 0; place < meeting.among.stations.size(); ++place) {
      if (!lost_.contains(meeting.among.stations[place])) continue;
      end_all(meeting, Error{.code = ErrorCode::peer_lost,
                             .peer = static_cast<Rank>(place),
                             .message = "rank " + std::to_string(place) + " was lost"});
    }
  }

  void carry_out(Meeting& meeting) {
    const Operation& one = meeting.there.begin()->second.first;
    if (const auto failing = failures_.find(one.lane.leg); failing != failures_.end()) {
      const Error error = failing->second;
      failures_.erase(failing);
      return end_all(meeting, error);
    }
    std::vector<std::vector<Missing>> missing(meeting.there.size());
    if (one.kind == Operation::Kind::swap) swap(meeting, missing);
    if (one.kind == Operation::Kind::all_reduce) all_reduce(meeting);
    if (one.kind == Operation::Kind::all_gather) all_gather(meeting);
    for (auto& [place, member] : meeting.there) {
      ends_.push_back({std::move(member.second),
                       Outcome{.result = {}, .missing = missing[static_cast<size_t>(place)]}});
    }
  }
  static void all_gather(Meeting& meeting) {
    for (auto& [to, receiver] : meeting.there) {
      for (auto& [from, sender] : meeting.there) {
        const MutableBytes room = receiver.first.room[static_cast<size_t>(from)];
        ASSERT_EQ(room.size(), sender.first.sent[0].size());
        std::memcpy(room.data(), sender.first.sent[0].data(), room.size());
      }
    }
  }
  // In the order of ranks, in f32; or the most of each i64.
  static void all_reduce(Meeting& meeting) {
    const Operation& first = meeting.there.begin()->second.first;
    if (first.dtype == DType::i64) return most(meeting);
    const size_t elements = first.span.size() / sizeof(float);
    std::vector<float> sum(elements, 0.0f);
    for (auto& [place, member] : meeting.there) {
      const auto* values = reinterpret_cast<const float*>(member.first.span.data());
      for (size_t i = 0; i < elements; ++i) sum[i] += values[i];
    }
    const bool average = first.op == ReduceOp::average;
    const float divisor = average ? static_cast<float>(meeting.there.size()) : 1.0f;
    for (float& value : sum) value /= divisor;
    for (auto& [place, member] : meeting.there) {
      ASSERT_EQ(member.first.span.size(), first.span.size());
      std::memcpy(member.first.span.data(), sum.data(), first.span.size());
    }
  }
  static void most(Meeting& meeting) {
    const Operation& first = meeting.there.begin()->second.first;
    ASSERT_EQ(first.op, ReduceOp::max);
    std::vector<int64_t> most(first.span.size() / sizeof(int64_t), INT64_MIN);
    for (auto& [place, member] : meeting.there) {
      ASSERT_EQ(member.first.span.size(), first.span.size());
      const auto* values = reinterpret_cast<const int64_t*>(member.first.span.data());
      for (size_t i = 0; i < most.size(); ++i) most[i] = std::max(most[i], values[i]);
    }
    for (auto& [place, member] : meeting.there) {
      std::memcpy(member.first.span.data(), most.data(), first.span.size());
    }
  }
  void swap(Meeting& meeting, std::vector<std::vector<Missing>>& missing) {
    for (auto& [to, receiver] : meeting.there) {
      for (auto& [from, sender] : meeting.there) {
        if (from == to) continue;
        const std::vector<std::byte> message = carried(meeting, from, to, missing);
        const MutableBytes room = receiver.first.room[static_cast<size_t>(from)];
        ASSERT_LE(message.size(), room.size());
        if (!message.empty()) std::memcpy(room.data(), message.data(), message.size());
        receiver.first.received[static_cast<size_t>(from)] = message.size();
      }
    }
  }
  // What arrives of a message; what does not is told to both ends, of a second leg to all.
  std::vector<std::byte> carried(Meeting& meeting, Rank from, Rank to,
                                 std::vector<std::vector<Missing>>& missing) {
    const Operation& operation = meeting.there[from].first;
    const auto place = static_cast<size_t>(to);
    const Bytes sent = operation.sent[place];
    if (operation.delivery.exact || !lose) return {sent.begin(), sent.end()};
    std::vector<std::byte> message;
    for (const Operation::Piece& piece : operation.pieces[place]) {
      const std::vector<codec::Range> gone = lose(operation.lane, from, to, piece);
      const bool whole = gone.size() == 1 && gone[0] == piece.range;
      const Bytes bytes = sent.subspan(piece.begin, piece.bytes);
      if (!whole) message.insert(message.end(), bytes.begin(), bytes.end());
      if (gone.empty()) continue;
      for (size_t told = 0; told < missing.size(); ++told) {
        const auto rank = static_cast<Rank>(told);
        if (!is_second(operation.lane.leg) && rank != from && rank != to) continue;
        missing[told].push_back({operation.round, operation.lane.leg, from, to, piece.slice, gone});
      }
    }
    return message;
  }

  std::vector<std::unique_ptr<Port>> exchanges_;
  std::map<std::pair<LaneKey, uint64_t>, Meeting> meetings_;
  std::set<LaneKey> closed_;
  std::set<Rank> lost_;
  std::map<Leg, Error> failures_;
  std::deque<End> ends_;
};

}  // namespace scant::gradient::testing
