#include "serve/model/rope.h"

#include <cmath>
#include <numbers>

namespace scant::serve {
namespace {

// llama3's scaling: waves longer than the old context are slowed down, short ones are not.
double llama3(const Description& d, double frequency) {
  const double wave = 2 * std::numbers::pi / frequency;
  const double old = d.rope_context;
  if (wave < old / d.rope_high) return frequency;
  if (wave > old / d.rope_low) return frequency / d.rope_factor;
  const double smooth = (old / wave - d.rope_low) / (d.rope_high - d.rope_low);
  return (1 - smooth) * frequency / d.rope_factor + smooth * frequency;
}

}  // namespace

Rope::Rope(const Description& d, const float* divisors) {
  for (uint32_t i = 0; i < d.rope_size / 2; ++i) {
    double frequency = std::pow(d.rope_base, -2.0 * i / d.rope_size);
    if (d.rope_scaling == RopeScaling::linear) frequency /= d.rope_factor;
    if (d.rope_scaling == RopeScaling::llama3) frequency = llama3(d, frequency);
    if (d.rope_scaling == RopeScaling::tensor) frequency /= divisors[i];
    frequencies_.push_back(static_cast<float>(frequency));
  }
}

void Rope::angles(uint32_t position, float* cosines, float* sines) const {
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const float angle = static_cast<float>(position) * frequencies_[i];
    const auto [sine, cosine] = sine_cosine(angle);
    cosines[i] = static_cast<float>(cosine);
    sines[i] = static_cast<float>(sine);
  }
}

SineCosine sine_cosine(double angle) {
  // pi / 2 in pieces of 22 bits: a multiple below 2^31 of each but the last is exact.
  constexpr double kPieces[] = {0x1.921fbp+0, 0x1.5110bp-22, 0x1.184698p-44, 0x1.3198a2e037073p-69};
  const double n = std::nearbyint(angle * (2 / std::numbers::pi));
  double r = angle;
  for (const double piece : kPieces) r -= n * piece;
  // Taylor's series to r^17 and r^18, for r up to pi / 4.
  const double square = r * r;
  double sine = 1;
  double cosine = 1;
  for (int i = 8; i > 0; --i) sine = 1 - sine * square / (2 * i * (2 * i + 1));
  for (int i = 9; i > 0; --i) cosine = 1 - cosine * square / (2 * i * (2 * i - 1));
  sine *= r;
  switch (static_cast<uint64_t>(n) % 4) {
    case 0:
      return {sine, cosine};
    case 1:
      return {cosine, -sine};
    case 2:
      return {-sine, -cosine};
    default:
      return {-cosine, sine};
  }
}

}  // namespace scant::serve
