// A counter-based generator from SplitMix64's finaliser (Steele, Lea, Flood 2014): three rounds mix
// seed, stream and counter. Chosen over Philox because a draw costs about 2 ns in plain C++ on any
// CPU, and simulations draw for every frame; SplitMix64 passes BigCrush, and streams start at
// hashed places of its 2^64 cycle. Not cryptographic; secrets come from libsodium.
#include "base/rng.h"

#include "base/check.h"

namespace scant::base {
namespace {

constexpr uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio, odd

}  // namespace

uint64_t random_at(uint64_t seed, uint64_t stream, uint64_t counter) {
  const uint64_t key = mix(mix(seed + kGolden) ^ (stream + 1) * kGolden);
  return mix(key + (counter + 1) * kGolden);
}

uint64_t Rng::below(uint64_t bound) {
  SCANT_CHECK(bound > 0);
  // Lemire 2019: a multiply instead of a division; rejection removes the bias.
  auto product = static_cast<unsigned __int128>(next()) * bound;
  if (static_cast<uint64_t>(product) < bound) {  // the only products that may have to be rejected
    const uint64_t threshold = (0 - bound) % bound;
    while (static_cast<uint64_t>(product) < threshold) {
      product = static_cast<unsigned __int128>(next()) * bound;
    }
  }
  return static_cast<uint64_t>(product >> 64);
}

double Rng::uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

}  // namespace scant::base
