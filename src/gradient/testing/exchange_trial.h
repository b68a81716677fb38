// Test support: one operation on all members of an exchange, with memory whose content tells who
// sent it to whom.
#pragma once

#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <mutex>
#include <vector>

#include "gradient/testing/exchanges.h"

namespace scant::gradient {

inline std::byte byte_at(uint64_t tag, Rank from, Rank to, uint64_t index) {
  return static_cast<std::byte>(tag * 101 + static_cast<uint64_t>(from) * 37 +
                                static_cast<uint64_t>(to) * 11 + index * 7 + index / 251);
}

inline std::vector<std::byte> message(uint64_t tag, Rank from, Rank to, uint64_t bytes) {
  std::vector<std::byte> made(bytes);
  for (uint64_t i = 0; i < bytes; ++i) made[i] = byte_at(tag, from, to, i);
  return made;
}

// Of a swap, at most `bytes`.
inline uint64_t swap_bytes(uint64_t bytes, Rank from, Rank to) {
  if (from == to) return 0;
  return bytes - bytes * (static_cast<uint64_t>(from + 2 * to) % 4) / 4;
}

inline float term(Rank place, uint64_t index) {
  return static_cast<float>((static_cast<uint64_t>(place) * 3 + index) % 17) - 8.0f;
}

// One operation on all members: its memory, its outcomes and what is expected of them. Outcomes may
// come on any thread.
class Trial {
 public:
  using Kind = Operation::Kind;
  using Buffer = std::vector<std::byte>;

  Trial(Kind kind, const std::vector<Rank>& stations, Lane lane, uint64_t bytes, uint64_t tag)
      : kind_(kind), lane_(lane), bytes_(bytes), tag_(tag), hosts_(stations.size()) {
    root_ = static_cast<Rank>(tag % stations.size());
    for (Rank place = 0; place < size(); ++place) fill(place);
  }
  [[nodiscard]] Rank size() const { return static_cast<Rank>(hosts_.size()); }

  void submit(Exchanges& on, const Members& among, Delivery delivery = {}) {
    const Rank place = among.self;
    Host& host = hosts_[static_cast<size_t>(place)];
    on.at(among.stations[static_cast<size_t>(place)])
        .submit(among, operation(place, delivery), [this, &host](const Outcome& outcome) {
          const std::lock_guard lock(mutex_);
          ++host.ended;
          host.outcome = outcome;
        });
  }
  [[nodiscard]] bool ended() const {
    const std::lock_guard lock(mutex_);
    return std::ranges::all_of(hosts_, [](const Host& host) { return host.ended > 0; });
  }
  [[nodiscard]] int ended(Rank place) const {
    const std::lock_guard lock(mutex_);
    return hosts_[static_cast<size_t>(place)].ended;
  }
  [[nodiscard]] Outcome outcome(Rank place) const {
    const std::lock_guard lock(mutex_);
    return hosts_[static_cast<size_t>(place)].outcome;
  }
  void expect_well() const {
    for (Rank place = 0; place < size(); ++place) {
      EXPECT_EQ(ended(place), 1);
      const Outcome of = outcome(place);
      ASSERT_TRUE(of.result.ok()) << "place " << place << ": " << of.result.error().to_string();
      EXPECT_TRUE(of.missing.empty());
      expect_result(place);
    }
  }
  void expect_result(Rank place) const;
  // Makes a message larger than its room.
  void spoil(Rank place) {
    hosts_[static_cast<size_t>(place)].sent[static_cast<size_t>(place == 0)].resize(bytes_ + 9);
  }
  [[nodiscard]] const Buffer& room(Rank place, Rank from) const {
    return hosts_[static_cast<size_t>(place)].rooms[static_cast<size_t>(from)];
  }
  [[nodiscard]] uint64_t received(Rank place, Rank from) const {
    return hosts_[static_cast<size_t>(place)].received[static_cast<size_t>(from)];
  }
  void set_pieces(Rank place, std::vector<std::vector<Operation::Piece>> pieces) {
    hosts_[static_cast<size_t>(place)].pieces = std::move(pieces);
  }

 private:
  struct Host {
    std::vector<Buffer> sent;
    std::vector<Buffer> rooms;
    std::vector<uint64_t> received;
    std::vector<std::vector<Operation::Piece>> pieces;
    Buffer span;
    int ended = 0;
    Outcome outcome;
  };
  void fill(Rank place);
  [[nodiscard]] Operation operation(Rank place, Delivery delivery);

  Kind kind_;
  Lane lane_;
  uint64_t bytes_;
  uint64_t tag_;
  Rank root_ = 0;
  mutable std::mutex mutex_;
  std::vector<Host> hosts_;
};

inline void Trial::fill(Rank place) {
  Host& host = hosts_[static_cast<size_t>(place)];
  switch (kind_) {
    case Kind::all_reduce: {
      std::vector<float> values(bytes_);
      for (uint64_t i = 0; i < bytes_; ++i) values[i] = term(place, i);
      const Bytes raw = std::as_bytes(std::span(values));
      host.span.assign(raw.begin(), raw.end());
      return;
    }
    case Kind::broadcast:
      host.span = place == root_ ? message(tag_, root_, 0, bytes_) : Buffer(bytes_);
      return;
    case Kind::swap:
      for (Rank to = 0; to < size(); ++to) {
        host.sent.push_back(message(tag_, place, to, swap_bytes(bytes_, place, to)));
      }
      host.received.assign(hosts_.size(), 0);
      host.rooms.assign(hosts_.size(), Buffer(bytes_));
      return;
    case Kind::all_gather:
    case Kind::gather:
      host.sent = {message(tag_, place, 0, bytes_)};
      if (kind_ == Kind::all_gather || place == root_) {
        host.rooms.assign(hosts_.size(), Buffer(bytes_));
      }
      return;
  }
}

inline Operation Trial::operation(Rank place, Delivery delivery) {
  Host& host = hosts_[static_cast<size_t>(place)];
  Operation made{.kind = kind_,
                 .lane = lane_,
                 .round = tag_,
                 .root = root_,
                 .span = host.span,
                 .received = host.received,
                 .pieces = host.pieces,
                 .delivery = delivery};
  if (kind_ == Kind::all_reduce) {
    made.dtype = DType::f32;
    made.op = tag_ % 2 == 0 ? ReduceOp::sum : ReduceOp::average;
  }
  for (const Buffer& sent : host.sent) made.sent.emplace_back(sent);
  for (Buffer& room : host.rooms) made.room.emplace_back(room);
  return made;
}

inline void Trial::expect_result(Rank place) const {
  const Host& host = hosts_[static_cast<size_t>(place)];
  if (kind_ == Kind::all_reduce) {
    std::vector<float> values(bytes_);
    if (bytes_ > 0) std::memcpy(values.data(), host.span.data(), host.span.size());
    for (uint64_t i = 0; i < bytes_; ++i) {
      float sum = 0;
      for (Rank other = 0; other < size(); ++other) sum += term(other, i);
      const float want = tag_ % 2 == 0 ? sum : sum / static_cast<float>(size());
      ASSERT_EQ(values[i], want) << "element " << i << " at place " << place;
    }
    return;
  }
  if (kind_ == Kind::broadcast) {
    EXPECT_TRUE(host.span == message(tag_, root_, 0, bytes_)) << "place " << place;
    return;
  }
  for (Rank from = 0; from < static_cast<Rank>(host.rooms.size()); ++from) {
    const Buffer& room = host.rooms[static_cast<size_t>(from)];
    const bool swapped = kind_ == Kind::swap;
    const uint64_t bytes = swapped ? swap_bytes(bytes_, from, place) : bytes_;
    if (swapped) {
      EXPECT_EQ(host.received[static_cast<size_t>(from)], bytes);
    }
    const Buffer want = message(tag_, from, swapped ? place : 0, bytes);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), room.begin()))
        << "from " << from << " at place " << place;
  }
}

}  // namespace scant::gradient
