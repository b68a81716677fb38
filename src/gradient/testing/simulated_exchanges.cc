// Exchanges in virtual time: plain, and nested on one network with two endpoints for each host.
#include <algorithm>
#include <chrono>
#include <gtest/gtest.h>
#include <vector>

#include "gradient/nested_exchange.h"
#include "gradient/simulated_exchange.h"
#include "gradient/testing/exchanges.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

// Newcomers are there from the start, and take part later.
class Simulated : public Exchanges {
 public:
  Simulated(int size, int stations, double loss, uint64_t seed)
      : size_(size),
        members_(everyone(size, kNoRank)),
        network_({.size = stations,
                  .seed = seed,
                  .link = {.jitter = 2ms, .loss = 0.02, .reorder = 0.3, .reorder_delay = 3ms}}) {
    for (Rank station = 0; station < stations; ++station) {
      exchanges_.push_back(std::make_unique<SimulatedExchange>(
          network_, station,
          SimulatedExchangeOptions{.engine = {.operation_timeout = 100h},
                                   .loss = {.seed = seed, .chance = loss}}));
    }
  }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] Exchange& at(Rank station) override { return plain(station); }
  [[nodiscard]] uint32_t slots() const override { return kSlotsMax; }

  [[nodiscard]] bool run(const std::function<bool()>& over) override {
    const Time limit = network_.now() + 1000s;
    while (!over()) {
      if (!network_.advance(limit)) return false;
      for (const Rank station : network_.take_runnable()) plain(station).pump();
    }
    return true;
  }
  void pass(uint64_t events) override {
    (void)run([&] { return events-- == 0; });
  }
  ErrorCode lose(Rank station) override {
    network_.kill(station);
    std::erase(members_.stations, station);
    return ErrorCode::peer_lost;
  }
  [[nodiscard]] std::vector<Members> go_on(int newcomers) override {
    shrink();
    members_.epoch = std::max(members_.epoch + 1, plain(members_.stations[0]).members().epoch);
    std::vector<Rank> joined;
    for (int i = 0; i < newcomers; ++i) joined.push_back(size_ + newcomers_++);
    members_.stations.insert(members_.stations.begin(), joined.begin(), joined.end());
    std::vector<Members> by_place;
    for (Rank place = 0; place < members_.size(); ++place) {
      by_place.push_back(members_);
      by_place.back().self = place;
    }
    return by_place;
  }

  [[nodiscard]] std::string leaks() override {
    std::string text;
    for (Rank station = 0; station < network_.size(); ++station) {
      const size_t operations = plain(station).operations_in_flight();
      const size_t buffers = plain(station).buffers_out();
      if (!network_.alive(station) || operations + buffers == 0) continue;
      text += "station " + std::to_string(station) + " holds " + std::to_string(operations) +
              " operations, " + std::to_string(buffers) + " buffers; ";
    }
    return text;
  }

 protected:
  void shrink() {
    int alive = 0;
    int agreed = 0;
    for (Rank station = 0; station < network_.size(); ++station) {
      if (!network_.alive(station)) continue;
      ++alive;
      plain(station).shrink(30s, [&](const Result<Members>& members) { agreed += members.ok(); });
    }
    EXPECT_TRUE(run([&] { return agreed == alive; }));
  }
  [[nodiscard]] SimulatedExchange& plain(Rank station) {
    return *exchanges_[static_cast<size_t>(station)];
  }
  const int size_;
  Members members_;  // who takes part; self: nobody
  net::SimulatedNetwork network_;

 private:
  int newcomers_ = 0;
  std::vector<std::unique_ptr<SimulatedExchange>> exchanges_;
};

// Host h is station h inside and station hosts + h outside.
class Nested final : public Simulated {
 public:
  Nested(int size, int hosts, double loss, uint64_t seed)
      : Simulated(size, 2 * hosts, loss, seed), hosts_(hosts) {
    std::vector<HostPlace> places;
    Rank site = 0;
    for (Rank host = 0; host < hosts; ++host) {
      // Sites of one, two, three, one ... hosts.
      if (host == 1 || host == 3 || host == 6 || host == 7) ++site;
      places.push_back({.site = site, .inner = host, .outer = hosts + host});
    }
    for (Rank host = 0; host < hosts; ++host) {
      nested_.push_back(std::make_unique<NestedExchange>(
          plain(host), &plain(hosts + host), places, everyone(size, host < size ? host : kNoRank)));
    }
  }
  [[nodiscard]] Exchange& at(Rank station) override {
    return *nested_[static_cast<size_t>(station)];
  }
  [[nodiscard]] uint32_t slots() const override { return kNestedSlotsMax; }
  ErrorCode lose(Rank station) override {
    network_.kill(hosts_ + station);
    return Simulated::lose(station);
  }
  [[nodiscard]] std::vector<Members> go_on(int newcomers) override {
    std::vector<Members> by_place = Simulated::go_on(newcomers);
    for (size_t place = 0; place < by_place.size(); ++place) {
      const Rank host = by_place[place].stations[place];
      nested_[static_cast<size_t>(host)]->change(by_place[place]);
    }
    return by_place;
  }
  [[nodiscard]] std::string leaks() override {
    std::string text = Simulated::leaks();
    for (Rank host = 0; host < hosts_; ++host) {
      const size_t left = nested_[static_cast<size_t>(host)]->operations_in_flight();
      if (!network_.alive(host) || left == 0) continue;
      text += "host " + std::to_string(host) + " has " + std::to_string(left) + " under way; ";
    }
    return text;
  }

 private:
  const int hosts_;
  std::vector<std::unique_ptr<NestedExchange>> nested_;
};

}  // namespace

std::unique_ptr<Exchanges> simulated_exchanges(int size, double loss, uint64_t seed) {
  return std::make_unique<Simulated>(size, size + kNewcomersMax, loss, seed);
}

std::unique_ptr<Exchanges> nested_exchanges(int size, double loss, uint64_t seed) {
  return std::make_unique<Nested>(size, size + kNewcomersMax, loss, seed);
}

}  // namespace scant::gradient
