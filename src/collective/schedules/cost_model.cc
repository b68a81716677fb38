// Coefficients of each algorithm, the choice among them, and the fit. Only + - * / and integer
// logarithms, so that equal inputs give equal choices on every machine. docs/collectives.md has the
// coefficients as a table.
#include "collective/schedules/cost_model.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "collective/schedules/schedule.h"

namespace scant::collective {
namespace {

struct Coefficients {
  double steps = 0;
  double bytes = 0;
  double reduced = 0;
};

constexpr double kExtraMessage =
    0.25;  // a further message of one step, in steps: it costs a call, not a round trip
constexpr double kSegment = 256.0 * 1024;
// Partners that are a round apart send to one rank at once: a short queue in front of it overflows.
// On links of 100 Mb/s with queues of 20 ms that cost 1.2 to 1.3 times the ring's time, so this
// share of its bytes is added when algorithms are compared.
constexpr double kCrossing = 0.25;
constexpr size_t kSamplesMax = 256;
// A slower run raises an envelope by at most this, so that one late peer changes next to nothing.
constexpr double kForget = 1.0 + 1.0 / 16;
// Observations after which an envelope that was not run again counts half.
constexpr uint64_t kHalfLife = 256;

int log2_floor(int value) {
  return static_cast<int>(std::bit_width(static_cast<unsigned>(value))) - 1;
}
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
      return {2 * (p - 1), all_reduce_sent_bytes(n, size), (p - 1) / p * n};
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
      if (algorithm == Algorithm::recursive_doubling) return {levels, (p - 1) / p * n, n};
      return one_step;
    case OpKind::barrier:
      return {levels, 0, 0};
    default:
      return one_step;
  }
}

double predicted_s(const CostParameters& with, const Coefficients& c) {
  return with.alpha_s * c.steps + with.beta_s_per_byte * c.bytes +
         with.gamma_s_per_byte * c.reduced;
}

// Kinds whose every member works until the end, so that its time is the operation's. A run without
// bytes is a barrier whatever its kind (docs/engine.md, Mismatch).
bool tells_the_link(OpKind kind, uint64_t bytes) {
  if (kind == OpKind::barrier) return true;
  return bytes > 0 && (kind == OpKind::all_reduce || kind == OpKind::all_gather ||
                       kind == OpKind::reduce_scatter);
}

}  // namespace

double CostModel::predict_s(OpKind kind, Algorithm algorithm, int size, uint64_t bytes) const {
  if (size <= 1) return 0;
  return predicted_s(agreed_, coefficients(kind, algorithm, size, bytes));
}

Algorithm CostModel::choose(OpKind kind, int size, uint64_t bytes) const {
  const std::vector<Algorithm> candidates = algorithms_for(kind);
  SCANT_CHECK(!candidates.empty());
  if (size <= 1) return candidates.front();
  const auto cost_s = [&](Algorithm algorithm) {
    Coefficients c = coefficients(kind, algorithm, size, bytes);
    if (algorithm == Algorithm::halving_doubling) c.bytes *= 1 + kCrossing;
    return predicted_s(agreed_, c);
  };
  return *std::min_element(candidates.begin(), candidates.end(),
                           [&](Algorithm x, Algorithm y) { return cost_s(x) < cost_s(y); });
}

void CostModel::observe(OpKind kind, Algorithm algorithm, int size, uint64_t bytes,
                        double seconds) {
  if (size <= 1 || !(seconds > 0) || !tells_the_link(kind, bytes)) return;
  const uint64_t key = static_cast<uint64_t>(kind) | static_cast<uint64_t>(algorithm) << 8 |
                       static_cast<uint64_t>(std::bit_width(bytes)) << 16 |
                       static_cast<uint64_t>(size) << 32;
  const Coefficients c = coefficients(kind, algorithm, size, bytes);
  ++observations_;
  auto sample = std::find_if(samples_.begin(), samples_.end(),
                             [key](const Sample& s) { return s.key == key; });
  if (sample == samples_.end()) {
    if (samples_.size() >= kSamplesMax) {
      samples_.erase(std::min_element(
          samples_.begin(), samples_.end(),
          [](const Sample& x, const Sample& y) { return x.observed_at < y.observed_at; }));
    }
    samples_.push_back({key, observations_, c.steps, c.bytes, c.reduced, seconds});
    return;
  }
  // Runs of one magnitude differ in bytes: the envelope is that of seconds per predicted second.
  const double before = predicted_s(agreed_, {sample->steps, sample->bytes, sample->reduced});
  const double ratio = before > 0 ? predicted_s(agreed_, c) / before : 1;
  const double risen = sample->seconds * kForget * ratio;
  *sample = {key, observations_, c.steps, c.bytes, c.reduced, std::min(seconds, risen)};
}

// Least squares of relative errors in (alpha, beta), neither below zero.
CostParameters CostModel::measured() const {
  double ss = 0;
  double sb = 0;
  double bb = 0;
  double st = 0;
  double bt = 0;
  double pp = 0;  // of the prediction in force with itself, and with the measured rest
  double pt = 0;
  for (const Sample& sample : samples_) {
    const double rest =
        std::max(sample.seconds - agreed_.gamma_s_per_byte * sample.reduced, sample.seconds / 16);
    const uint64_t halvings =
        std::min<uint64_t>((observations_ - sample.observed_at) / kHalfLife, 62);
    const double weight =
        1 / (sample.seconds * sample.seconds * static_cast<double>(uint64_t{1} << halvings));
    ss += weight * sample.steps * sample.steps;
    sb += weight * sample.steps * sample.bytes;
    bb += weight * sample.bytes * sample.bytes;
    st += weight * sample.steps * rest;
    bt += weight * sample.bytes * rest;
    const double predicted =
        agreed_.alpha_s * sample.steps + agreed_.beta_s_per_byte * sample.bytes;
    pp += weight * predicted * predicted;
    pt += weight * predicted * rest;
  }
  CostParameters fit = agreed_;
  if (samples_.empty()) return fit;
  // A workload of a single size cannot tell steps from bytes: it scales the parameters in force,
  // both alike. Scaled so, they count as a hundredth of what was measured, which decides wherever
  // it can.
  constexpr double kPriorWeight = 1e-2;
  const double scale = pp > 0 ? pt / pp : 1;
  const double prior_s = kPriorWeight * ss;
  ss += prior_s;
  st += prior_s * agreed_.alpha_s * scale;
  if (bb > 0) {
    const double prior_b = kPriorWeight * bb;
    bb += prior_b;
    bt += prior_b * agreed_.beta_s_per_byte * scale;
  } else {  // barriers alone say nothing of bytes
    bb = 1;
    bt = agreed_.beta_s_per_byte;
  }
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

}  // namespace scant::collective
