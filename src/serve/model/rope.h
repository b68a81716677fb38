// Rotary positions: the angles of a position as cosines and sines. docs/serve.md, "Models". Made
// once for a model; then any thread reads.
#pragma once

#include <cstdint>
#include <vector>

#include "serve/file/description.h"

namespace scant::serve {

class Rope {
 public:
  // `divisors`: of the description's scaling by a tensor, else null.
  Rope(const Description& description, const float* divisors);

  [[nodiscard]] size_t pairs() const { return frequencies_.size(); }
  [[nodiscard]] const std::vector<float>& frequencies() const { return frequencies_; }
  // pairs() of each.
  void angles(uint32_t position, float* cosines, float* sines) const;

 private:
  std::vector<float> frequencies_;
};

struct SineCosine {
  double sine;
  double cosine;
};
// Of 0 to 2^31 (to 2^62 with less accuracy), by additions and multiplications alone, so that all
// machines agree. The error is below 4e-16.
[[nodiscard]] SineCosine sine_cosine(double angle);

}  // namespace scant::serve
