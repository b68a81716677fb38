// An exchange whose operations a test carries out by hand, one after the other, in virtual time: a
// link with a delay and a rate, or an error instead. Operations of all members have to agree. For
// tests; one thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "gradient/exchange.h"

namespace scant::plan {

class HandDrivenNetwork {
 public:
  using Operation = gradient::Operation;

  // Of all stations; what each member sees of it.
  class Exchange final : public gradient::Exchange {
   public:
    Exchange(HandDrivenNetwork& network, Rank station) : network_(network), station_(station) {}
    [[nodiscard]] Time now() const override { return network_.now; }
    [[nodiscard]] gradient::Members members() const override {
      return network_.members_at(station_);
    }
    void submit(const gradient::Members& among, Operation operation, gradient::Done done) override {
      EXPECT_EQ(among, members()) << "by station " << station_;
      const bool fresh =
          network_.pending_.emplace(among.self, Pending{std::move(operation), std::move(done)})
              .second;
      EXPECT_TRUE(fresh) << "station " << station_ << " has two operations under way";
    }
    void cancel(const gradient::Members&, gradient::Lane) override {
      network_.fail({.code = ErrorCode::closed, .message = "cancelled"});
    }

   private:
    HandDrivenNetwork& network_;
    const Rank station_;
  };

  HandDrivenNetwork(int stations, double delay_s, double rate)
      : alpha_s(delay_s), bytes_per_s(rate) {
    for (Rank station = 0; station < stations; ++station) stations_.push_back(station);
    for (const Rank station : stations_)
      exchanges_.push_back(std::make_unique<Exchange>(*this, station));
  }

  [[nodiscard]] Exchange& at(Rank station) { return *exchanges_[static_cast<size_t>(station)]; }
  [[nodiscard]] gradient::Members members_at(Rank station) const {
    const auto at = std::ranges::find(stations_, station);
    const bool there = at != stations_.end();
    return {epoch_, stations_, there ? static_cast<Rank>(at - stations_.begin()) : kNoRank};
  }
  void leave(std::vector<Rank> stations) {
    EXPECT_TRUE(pending_.empty());
    stations_ = std::move(stations);
    ++epoch_;
  }

  [[nodiscard]] const std::vector<Rank>& stations() const { return stations_; }

  [[nodiscard]] bool idle() const { return pending_.empty(); }
  [[nodiscard]] const Operation& pending() const { return pending_.begin()->second.operation; }

  // The operation of all members, and what the link takes for it.
  void carry() {
    ASSERT_EQ(pending_.size(), stations_.size()) << "some member submitted nothing";
    std::vector<Operation*> all;
    for (auto& [place, one] : pending_) all.push_back(&one.operation);
    for (const Operation* one : all) {
      ASSERT_EQ(one->kind, all.front()->kind);
      ASSERT_EQ(one->lane, all.front()->lane);
      ASSERT_EQ(one->round, all.front()->round);
      ASSERT_EQ(one->root, all.front()->root);
    }
    const double sent = move(all);
    if (tamper) tamper(all);
    now += std::chrono::duration_cast<Duration>(
        std::chrono::duration<double>(alpha_s + sent / bytes_per_s));
    end({});
  }
  void carry_all() {
    while (!idle() && !testing::Test::HasFatalFailure()) carry();
  }
  void fail(const Error& error) { end({.result = error}); }

  Time now{};
  double alpha_s;
  double bytes_per_s;
  // What somebody makes of the bytes that arrived, before their owners see them; by place.
  std::function<void(std::vector<Operation*>&)> tamper;

 private:
  struct Pending {
    Operation operation;
    gradient::Done done;
  };

  // `done` may submit what follows.
  void end(const gradient::Outcome& outcome) {
    for (auto& [place, one] : std::exchange(pending_, {})) one.done(outcome);
  }

  static void copy(Bytes from, MutableBytes to) {
    ASSERT_EQ(from.size(), to.size());
    if (!from.empty()) std::memcpy(to.data(), from.data(), from.size());
  }

  // Bytes that one member sends.
  static double move(std::vector<Operation*>& all) {
    const Operation& first = *all.front();
    const auto count = static_cast<double>(all.size());
    const auto root = static_cast<size_t>(first.root);
    switch (first.kind) {
      case Operation::Kind::swap:
        return swap(all);
      case Operation::Kind::gather:
        for (size_t from = 0; from < all.size(); ++from)
          copy(all[from]->sent.front(), all[root]->room[from]);
        return (count - 1) * static_cast<double>(first.sent.front().size());
      case Operation::Kind::broadcast:
        for (Operation* one : all)
          if (one != all[root]) copy(all[root]->span, one->span);
        return (count - 1) * static_cast<double>(first.span.size());
      case Operation::Kind::all_reduce:
        if (first.dtype == DType::f64) most(all);
        return 2 * (count - 1) / count * static_cast<double>(first.span.size());
      case Operation::Kind::all_gather:
        ADD_FAILURE() << "no agreement gathers for all";
        return 0;
    }
    return 0;
  }

  static double swap(std::vector<Operation*>& all) {
    double sent = 0;
    for (size_t from = 0; from < all.size(); ++from) {
      for (size_t to = 0; to < all.size(); ++to) {
        if (from == to) continue;
        copy(all[from]->sent[to], all[to]->room[from]);
        all[to]->received[from] = all[from]->sent[to].size();
        if (from == 0) sent += static_cast<double>(all[from]->sent[to].size());
      }
    }
    return sent;
  }

  static void most(std::vector<Operation*>& all) {
    double most = 0;
    for (const Operation* one : all) {
      double value = 0;
      copy(one->span, std::as_writable_bytes(std::span(&value, 1)));
      if (std::isnan(value) || value > most) most = value;
    }
    for (Operation* one : all) copy(std::as_bytes(std::span(&most, 1)), one->span);
  }

  uint64_t epoch_ = 1;
  std::vector<Rank> stations_;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::map<Rank, Pending> pending_;  // by place
};

}  // namespace scant::plan
