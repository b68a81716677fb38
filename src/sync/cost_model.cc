// Coefficients of each algorithm, the choice among them, and the fit. Only + - * / and integer
// logarithms, so that equal inputs give equal choices on every machine. docs/collectives.md has the
// coefficients as a table.
#include "sync/cost_model.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "sync/schedule.h"

namespace scant::sync {
namespace {

struct Coefficients {
  double steps = 0;
  double bytes = 0;
  double reduced = 0;
};

constexpr double kExtraMessage =
    0.25;  // a further message of one step, in steps: it costs a call, not a round trip
constexpr double kSegment = 256.0 * 1024;
constexpr size_t kSamplesMax = 256;

int log2_floor(int value) { return std::bit_width(static_cast<unsigned>(value)) - 1; }
int log2_ceil(int value) { return value <= 1 ? 0 : log2_floor(value - 1) + 1; }

Coefficients all_reduce(Algorithm algorithm, double p, int size, double n) {
  const double rounds = log2_floor(size);
  const double core = static_cast<double>(1 << log2_floor(size));
  const bool folds = core < p;
  switch (algorithm) {
    case Algorithm::direct:
      return {1 + kExtraMessage * (p - 2), (p - 1) * n, (p - 1) * n};
    case Algorithm::recursive_doubling:
      return {rounds + (folds ? 2 : 0), (rounds + (folds ? 2 : 0)) * n,
              (rounds + (folds ? 1 : 0)) * n};
    case Algorithm::halving_doubling: {
      const double share = (core - 1) / core;
      return {2 * rounds + (folds ? 2 : 0), (2 * share + (folds ? 2 : 0)) * n,
              (share + (folds ? 1 : 0)) * n};
    }
    default:
      return {2 * (p - 1), 2 * (p - 1) / p * n, (p - 1) / p * n};
  }
}

// n: the vector for all_reduce, reduce and broadcast; all parts together for the others.
Coefficients coefficients(OpKind kind, Algorithm algorithm, int size, uint64_t bytes) {
  const double p = size;
  const auto n = static_cast<double>(bytes);
  const double levels = log2_ceil(size);
  const double segment = std::min(n, kSegment);
  const Coefficients one_step = {1 + kExtraMessage * (p - 2), (p - 1) / p * n, 0};
  switch (kind) {
    case OpKind::all_reduce:
      return all_reduce(algorithm, p, size, n);
    case OpKind::broadcast:
      if (algorithm == Algorithm::tree) return {levels, n * std::max(1.0, levels), 0};
      if (algorithm == Algorithm::ring) return {p - 1, n + (p - 2) * segment, 0};
      return {1 + kExtraMessage * (p - 2), (p - 1) * n, 0};
    case OpKind::reduce:
      if (algorithm == Algorithm::tree)
        return {levels, n * std::max(1.0, levels), n * std::max(1.0, levels)};
      if (algorithm == Algorithm::ring) return {p - 1, n + (p - 2) * segment, n};
      return {1 + kExtraMessage * (p - 2), (p - 1) * n, (p - 1) * n};
    case OpKind::reduce_scatter:
      if (algorithm == Algorithm::ring) return {p - 1, (p - 1) / p * n, (p - 1) / p * n};
      return {one_step.steps, one_step.bytes, (p - 1) / p * n};
    case OpKind::all_gather:
      if (algorithm == Algorithm::ring) return {p - 1, (p - 1) / p * n, 0};
      return one_step;
    case OpKind::barrier:
      return {levels, 0, 0};
    default:
      return one_step;
  }
}

}  // namespace

double CostModel::predict_s(OpKind kind, Algorithm algorithm, int size, uint64_t bytes) const {
  if (size <= 1) return 0;
  const Coefficients c = coefficients(kind, algorithm, size, bytes);
  return agreed_.alpha_s * c.steps + agreed_.beta_s_per_byte * c.bytes +
         agreed_.gamma_s_per_byte * c.reduced;
}

Algorithm CostModel::choose(OpKind kind, int size, uint64_t bytes) const {
  const std::vector<Algorithm> candidates = algorithms_for(kind);
  SCANT_CHECK(!candidates.empty());
  Algorithm best = candidates.front();
  for (const Algorithm algorithm : candidates) {
    if (predict_s(kind, algorithm, size, bytes) < predict_s(kind, best, size, bytes))
      best = algorithm;
  }
  return best;
}

void CostModel::observe(OpKind kind, Algorithm algorithm, int size, uint64_t bytes,
                        double seconds) {
  if (size <= 1 || seconds <= 0 || kind == OpKind::send || kind == OpKind::recv) return;
  const uint64_t key = static_cast<uint64_t>(kind) | static_cast<uint64_t>(algorithm) << 8 |
                       static_cast<uint64_t>(std::bit_width(bytes)) << 16 |
                       static_cast<uint64_t>(size) << 32;
  const Coefficients c = coefficients(kind, algorithm, size, bytes);
  auto sample = std::find_if(samples_.begin(), samples_.end(),
                             [key](const Sample& s) { return s.key == key; });
  if (sample == samples_.end()) {
    if (samples_.size() >= kSamplesMax) samples_.erase(samples_.begin());
    samples_.push_back({key, c.steps, c.bytes, c.reduced, seconds});
    return;
  }
  // The lower envelope rises by a 32nd with every slower run, so that a link that became slow is
  // noticed within some dozens of runs, and a single late peer is not.
  constexpr double kForget = 1.0 + 1.0 / 32;
  const double risen = sample->seconds * kForget;
  *sample = {key, c.steps, c.bytes, c.reduced, std::min(seconds, risen)};
}

// Least squares of relative errors in (alpha, beta), neither below zero.
CostParameters CostModel::measured() const {
  double ss = 0;
  double sb = 0;
  double bb = 0;
  double st = 0;
  double bt = 0;
  for (const Sample& sample : samples_) {
    const double rest =
        std::max(sample.seconds - agreed_.gamma_s_per_byte * sample.reduced, sample.seconds / 16);
    const double weight = 1 / (sample.seconds * sample.seconds);
    ss += weight * sample.steps * sample.steps;
    sb += weight * sample.steps * sample.bytes;
    bb += weight * sample.bytes * sample.bytes;
    st += weight * sample.steps * rest;
    bt += weight * sample.bytes * rest;
  }
  CostParameters fit = agreed_;
  if (samples_.empty()) return fit;
  // The parameters in force count as one weak observation of each kind, so that a workload of a
  // single size, which cannot tell steps from bytes, moves both only as far as it must.
  constexpr double kPriorWeight = 1e-2;
  const double prior_s = kPriorWeight / (agreed_.alpha_s * agreed_.alpha_s);
  const double prior_b = kPriorWeight / (agreed_.beta_s_per_byte * agreed_.beta_s_per_byte);
  ss += prior_s;
  st += prior_s * agreed_.alpha_s;
  bb += prior_b;
  bt += prior_b * agreed_.beta_s_per_byte;
  const double determinant = ss * bb - sb * sb;
  double alpha = determinant > 0 ? (st * bb - bt * sb) / determinant : 0;
  double beta = determinant > 0 ? (bt * ss - st * sb) / determinant : 0;
  if (alpha < 0 || determinant <= 0) {
    alpha = 0;
    beta = bt / bb;
  } else if (beta < 0) {
    beta = 0;
    alpha = st / ss;
  }
  // Never zero: a zero would make an algorithm look free and could not be left again.
  fit.alpha_s = std::max(alpha, 1e-7);
  fit.beta_s_per_byte = std::max(beta, 1e-12);
  return fit;
}

}  // namespace scant::sync
