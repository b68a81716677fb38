#include "plan/fit.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace scant::plan {
namespace {

// As deviations: of a measured time, of a second of work, of a byte.
constexpr double kComputeError = 0.03;
constexpr double kPerWorkExpected = 0.5;
constexpr double kPerWorkError = 0.5;
constexpr double kPerByteError = 1e-8;
constexpr double kPerWorkMost = 3;
constexpr double kPerByteMost = 1e-7;
constexpr double kRateLeast = 1;  // bytes a second
constexpr double kRateMost = 1e15;
constexpr double kForget = 0.7;  // of a sample's weight, with each later one

// Gauss, without exchanging rows: the matrix is positive definite.
std::array<double, 3> solve(std::array<std::array<double, 4>, 3> rows) {
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = i + 1; j < 3; ++j) {
      const double factor = rows[j][i] / rows[i][i];
      for (size_t k = i; k < 4; ++k) rows[j][k] -= factor * rows[i][k];
    }
  }
  std::array<double, 3> x{};
  for (size_t i = 3; i-- > 0;) {
    double value = rows[i][3];
    for (size_t k = i + 1; k < 3; ++k) value -= rows[i][k] * x[k];
    x[i] = value / rows[i][i];
  }
  return x;
}

// Of the ranks that asked. The first to come waits for the others, the last finds their bytes there
// already: neither tells the truth alone.
double mean(std::span<const SoundingTimes> by_rank, double SoundingTimes::*field) {
  double sum = 0;
  double count = 0;
  for (const SoundingTimes& one : by_rank) {
    if (!(one.*field > 0)) continue;
    sum += one.*field;
    ++count;
  }
  return count > 0 ? sum / count : 0;
}

}  // namespace

LinkRate fit_link(std::span<const SoundingTimes> by_rank, int ranks, const LinkRate& before) {
  const double small_s = mean(by_rank, &SoundingTimes::small_s);
  const double exchange_s = mean(by_rank, &SoundingTimes::exchange_s);
  const double reduce_s = mean(by_rank, &SoundingTimes::reduce_s);
  if (!(small_s > 0) || !(exchange_s > 0) || !(reduce_s > 0)) return before;
  const SoundingTimes& any = by_rank.front();
  LinkRate rate;
  rate.alpha_s = small_s;
  // Where the messages' share is nearly all, the rate is at least so high.
  const auto bytes_per_s = [](double bytes, double seconds, double waiting_s) {
    return std::clamp(bytes / std::max(seconds - waiting_s, 0.1 * seconds), kRateLeast, kRateMost);
  };
  rate.bytes_per_s = bytes_per_s(any.exchange_bytes, exchange_s, small_s);
  rate.reduced_bytes_per_s =
      bytes_per_s(any.reduce_bytes, reduce_s,
                  small_s * messages_in_a_row(gradient::Path::all_reduce, ranks, any.reduce_bytes));
  rate.cpu_s = mean(by_rank, &SoundingTimes::small_cpu_s);
  const double more_s = mean(by_rank, &SoundingTimes::exchange_cpu_s) - rate.cpu_s;
  rate.cpu_s_per_byte = std::clamp(more_s / std::max(any.exchange_bytes, 1.0), 0.0, kPerByteMost);
  return rate;
}

Contention fit_contention(std::span<const ComputeSample> samples) {
  if (samples.empty()) return {};
  const double scale = kComputeError * std::max(samples.back().compute_s, 1e-9);
  // Unknowns in units of their deviations: computing in `scale`, the others as above.
  std::array<std::array<double, 4>, 3> rows{};
  rows[0][0] = 1e-9;
  rows[1][1] = 1;
  rows[1][3] = kPerWorkExpected / kPerWorkError;
  rows[2][2] = 1;
  double weight = 1;
  for (size_t i = samples.size(); i-- > 0; weight *= kForget) {
    const ComputeSample& sample = samples[i];
    const std::array<double, 3> x = {1, sample.work_s * kPerWorkError / scale,
                                     sample.bytes * kPerByteError / scale};
    for (size_t j = 0; j < 3; ++j) {
      for (size_t k = 0; k < 3; ++k) rows[j][k] += weight * x[j] * x[k];
      rows[j][3] += weight * x[j] * sample.compute_s / scale;
    }
  }
  const std::array<double, 3> x = solve(rows);
  Contention fitted;
  fitted.per_work = std::clamp(x[1] * kPerWorkError, 0.0, kPerWorkMost);
  fitted.per_byte = std::clamp(x[2] * kPerByteError, 0.0, kPerByteMost);
  const ComputeSample& last = samples.back();
  const double disturbed = fitted.per_work * last.work_s + fitted.per_byte * last.bytes;
  fitted.compute_s = std::max(last.compute_s - disturbed, 0.2 * last.compute_s);
  return fitted;
}

}  // namespace scant::plan
