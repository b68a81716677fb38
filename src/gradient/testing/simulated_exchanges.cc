// Exchanges in virtual time: plain, and nested on one network with two endpoints for each host.
#include <chrono>
#include <vector>

#include "gradient/nested_exchange.h"
#include "gradient/simulated_exchange.h"
#include "gradient/testing/exchanges.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

class Simulated : public Exchanges {
 public:
  Simulated(int stations, double loss, uint64_t seed)
      : network_({.size = stations,
                  .seed = seed,
                  .link = {.jitter = 2ms, .loss = 0.02, .reorder = 0.3, .reorder_delay = 3ms}}) {
    for (Rank station = 0; station < stations; ++station) {
      exchanges_.push_back(std::make_unique<SimulatedExchange>(
          network_, station,
          SimulatedExchangeOptions{.engine = {.operation_timeout = 100h},
                                   .loss = {.seed = seed, .chance = loss}}));
    }
  }
  [[nodiscard]] int size() const override { return network_.size(); }
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
    return ErrorCode::peer_lost;
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
  [[nodiscard]] SimulatedExchange& plain(Rank station) {
    return *exchanges_[static_cast<size_t>(station)];
  }
  net::SimulatedNetwork network_;

 private:
  std::vector<std::unique_ptr<SimulatedExchange>> exchanges_;
};

// Host h is station h inside and station size + h outside.
class Nested final : public Simulated {
 public:
  Nested(int size, double loss, uint64_t seed) : Simulated(2 * size, loss, seed), size_(size) {
    std::vector<HostPlace> hosts;
    Rank site = 0;
    for (Rank host = 0; host < size; ++host) {
      // Sites of one, two, three, one ... hosts.
      if (host == 1 || host == 3 || host == 6 || host == 7) ++site;
      hosts.push_back({.site = site, .inner = host, .outer = size + host});
    }
    for (Rank host = 0; host < size; ++host) {
      nested_.push_back(std::make_unique<NestedExchange>(plain(host), &plain(size + host), hosts,
                                                         everyone(size, host)));
    }
  }
  [[nodiscard]] int size() const override { return size_; }
  [[nodiscard]] Exchange& at(Rank station) override {
    return *nested_[static_cast<size_t>(station)];
  }
  [[nodiscard]] uint32_t slots() const override { return kNestedSlotsMax; }
  ErrorCode lose(Rank station) override {
    network_.kill(station);
    network_.kill(size_ + station);
    return ErrorCode::peer_lost;
  }
  [[nodiscard]] std::string leaks() override {
    std::string text = Simulated::leaks();
    for (Rank host = 0; host < size_; ++host) {
      const size_t left = nested_[static_cast<size_t>(host)]->operations_in_flight();
      if (!network_.alive(host) || left == 0) continue;
      text += "host " + std::to_string(host) + " has " + std::to_string(left) + " under way; ";
    }
    return text;
  }

 private:
  int size_;
  std::vector<std::unique_ptr<NestedExchange>> nested_;
};

}  // namespace

std::unique_ptr<Exchanges> simulated_exchanges(int size, double loss, uint64_t seed) {
  return std::make_unique<Simulated>(size, loss, seed);
}

std::unique_ptr<Exchanges> nested_exchanges(int size, double loss, uint64_t seed) {
  return std::make_unique<Nested>(size, loss, seed);
}

}  // namespace scant::gradient
