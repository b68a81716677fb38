// Test support: the exchanges of all stations in one process, whatever carries them, so that one
// conformance suite runs on each. `done` may come on threads of the exchange's own.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gradient/exchange.h"

namespace scant::gradient {

inline constexpr int kNewcomersMax = 2;

class Exchanges {
 public:
  virtual ~Exchanges() = default;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual Exchange& at(Rank station) = 0;
  [[nodiscard]] virtual uint32_t slots() const = 0;
  // Until `over`; false when that does not come about.
  [[nodiscard]] virtual bool run(const std::function<bool()>& over) = 0;
  // Some time passes; at most so many events.
  virtual void pass(uint64_t events) = 0;
  // The station is gone; what the others are told then.
  virtual ErrorCode lose(Rank station) = 0;
  // Those who were not lost go on, with so many newcomers, kNewcomersMax in all: their members, by
  // place. Newcomers have the first places.
  [[nodiscard]] virtual std::vector<Members> go_on(int newcomers) = 0;
  // Empty when nothing is left of what was submitted.
  [[nodiscard]] virtual std::string leaks() = 0;
};

// `loss`: the chance of a bounded message's piece to be lost, where the exchange can lose any.
using MakeExchanges = std::unique_ptr<Exchanges> (*)(int size, double loss, uint64_t seed);

struct Backend {
  const char* name;
  MakeExchanges make;
};
// Those that a test program was linked with.
[[nodiscard]] std::vector<Backend> backends();

[[nodiscard]] std::unique_ptr<Exchanges> simulated_exchanges(int size, double loss, uint64_t seed);
// Sites of one to three hosts.
[[nodiscard]] std::unique_ptr<Exchanges> nested_exchanges(int size, double loss, uint64_t seed);

}  // namespace scant::gradient
