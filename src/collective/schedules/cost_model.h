// α–β cost model: T(algorithm) = α·steps + β·bytes on the critical path + γ·bytes reduced, fitted
// from live measurements. All ranks must choose alike, so a choice only ever uses *agreed*
// parameters: every rank measures on its own, and the engine averages the measurements over the
// group at fixed sequence numbers (docs/collectives.md).
#pragma once

#include <cstdint>
#include <vector>

#include "collective/call.h"

namespace scant::collective {

struct CostParameters {
  double alpha_s = 30e-6;                // one message, end to end
  double beta_s_per_byte = 1.0 / 1.5e9;  // one byte on this rank's link
  double gamma_s_per_byte = 1.0 / 8e9;   // one byte combined
};

// What each of `size` ranks sends in an all_reduce of a large vector (ring, halving-doubling);
// whole where that is a number of bytes.
[[nodiscard]] constexpr double all_reduce_sent_bytes(double bytes, int size) {
  return 2.0 * (size - 1) * bytes / size;
}

class CostModel {
 public:
  CostModel() = default;
  explicit CostModel(CostParameters agreed) : agreed_(agreed) {}

  // Seconds predicted for the whole collective with the agreed parameters.
  [[nodiscard]] double predict_s(OpKind kind, Algorithm algorithm, int size, uint64_t bytes) const;
  // Deterministic in (agreed parameters, arguments): equal on all ranks.
  [[nodiscard]] Algorithm choose(OpKind kind, int size, uint64_t bytes) const;

  // Local measurements, not used by choose() until agreed. Operations that say nothing of the link
  // (docs/collectives.md, Measuring) are ignored.
  void observe(OpKind kind, Algorithm algorithm, int size, uint64_t bytes, double seconds);
  [[nodiscard]] CostParameters measured() const;
  void set_agreed(CostParameters parameters) { agreed_ = parameters; }
  [[nodiscard]] CostParameters agreed() const { return agreed_; }

 private:
  // The fastest recent run of one (kind, algorithm, size, magnitude of bytes): late peers only make
  // runs slower.
  struct Sample {
    uint64_t key = 0;
    uint64_t observed_at = 0;  // value of observations_ at its last run
    double steps = 0;          // coefficients of alpha, beta and gamma in predict_s
    double bytes = 0;
    double reduced = 0;
    double seconds = 0;  // decaying minimum
  };

  CostParameters agreed_;
  std::vector<Sample> samples_;
  uint64_t observations_ = 0;
};

}  // namespace scant::collective
