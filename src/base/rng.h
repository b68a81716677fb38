// Counter-based random numbers: the n-th draw of a (seed, stream) is a pure function, whatever
// thread asks.
#pragma once

#include <cstdint>

namespace scant::base {

[[nodiscard]] uint64_t random_at(uint64_t seed, uint64_t stream, uint64_t counter);

class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : seed_(seed), stream_(stream) {}
  uint64_t next() { return random_at(seed_, stream_, counter_++); }
  uint64_t below(uint64_t bound);  // uniform in [0, bound); bound > 0
  double uniform();                // [0, 1)
  bool chance(double probability) { return uniform() < probability; }
  [[nodiscard]] uint64_t seed() const { return seed_; }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_ = 0;
};

}  // namespace scant::base
