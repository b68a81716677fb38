#include "codec/select/threshold.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "codec/quantise/rounding.h"

namespace scant::codec {
namespace {

constexpr double kCarriedShare = 0.05;  // of a step's entries, may come from earlier steps
constexpr double kDebtMin = 4;          // entries that are always paid back: of rows' turns
constexpr uint64_t kSweepStepsMin = 32;
constexpr double kForcedShareMax = 1.0 / 64;
constexpr float kSlopeMin = 1.0f;
constexpr float kSlopeMax = 32.0f;
constexpr float kTrendMax = 0.25f;      // of one step
constexpr float kTrendShare = 0.4f;     // of the trend that is the newest step's
constexpr double kSettledShare = 0.01;  // of the entries, that a prediction may be off
constexpr double kCorrectionMax = 4.0;  // of one step, in counts; more is a new calibration's part

}  // namespace

bool ThresholdState::valid(uint64_t elements) const {
  const bool levels_valid = std::all_of(level.begin(), level.end(), [](float one) {
    return one >= 1 / kLevelMax && one <= kLevelMax;
  });
  const double most = 2 * static_cast<double>(elements) + 2;
  return std::abs(credit) <= most && density >= 0 && density <= 1 && std::isfinite(threshold) &&
         threshold >= 0 && std::abs(trend) <= kTrendMax && slope >= kSlopeMin &&
         slope <= kSlopeMax && turn >= 0 && turn <= most && levels_valid;
}

uint64_t begin_step(ThresholdState& state, double density, uint64_t elements) {
  const double share = density * static_cast<double>(elements);
  const double most = std::max(1.0, kCarriedShare * share);
  state.credit = std::clamp(state.credit, -std::max(kDebtMin, share), most) + share;
  return state.credit <= 0
             ? 0
             : std::min(elements, static_cast<uint64_t>(std::floor(state.credit + 1e-9)));
}

void end_step(ThresholdState& state, uint64_t sent) { state.credit -= static_cast<double>(sent); }

float corrected(float threshold, float slope, double count, double wanted) {
  const double ratio =
      std::clamp(std::max(count, 0.5) / std::max(wanted, 0.5), 1 / kCorrectionMax, kCorrectionMax);
  const auto factor = static_cast<float>(std::pow(ratio, 1.0 / static_cast<double>(slope)));
  return std::max(threshold * factor, kSmallestMagnitude);
}

void learn(ThresholdState& state, float used, uint64_t count, uint64_t wanted, uint64_t elements) {
  const double share = state.density * static_cast<double>(elements);
  const float before = state.threshold;
  state.threshold = corrected(used, state.slope, static_cast<double>(count), share);
  const float moved =
      before == 0 ? 0 : std::clamp(std::log(state.threshold / before), -kTrendMax, kTrendMax);
  state.trend += kTrendShare * (moved - state.trend);
  const double target = std::max<double>(static_cast<double>(wanted), 1);
  const double off = std::abs(static_cast<double>(count) - target);
  if (off > kSettledShare * target + 3 * std::sqrt(target)) state.settled = 0;
}

float predicted_threshold(const ThresholdState& state, uint64_t wanted, uint64_t elements) {
  if (state.threshold <= 0) return 0;
  return corrected(state.threshold * std::exp(state.trend), state.slope,
                   state.density * static_cast<double>(elements), static_cast<double>(wanted));
}

float fitted_slope(double count, double count_above, float ratio, float before) {
  if (count_above < 64 || count_above >= count || !(ratio > 1.0f)) return before;
  const double slope = std::log(count / count_above) / std::log(static_cast<double>(ratio));
  return std::clamp(static_cast<float>(slope), kSlopeMin, kSlopeMax);
}

uint64_t sweep_steps(double density, uint64_t columns) {
  const double sent_a_row = density * static_cast<double>(std::max<uint64_t>(columns, 1));
  const double steps = std::ceil(1.0 / (kForcedShareMax * sent_a_row));
  return std::max(kSweepStepsMin, static_cast<uint64_t>(std::min(steps, 0x1p62)));
}

RowWindow take_turns(ThresholdState& state, uint64_t rows, uint64_t steps, uint32_t every) {
  // A trifle more, so that rounding makes no sweep a step longer.
  constexpr double kMore = 1 + 1e-12;
  const auto all = static_cast<double>(rows);
  if (state.turn >= all) state.turn = 0;
  const double next = state.turn + all / static_cast<double>(steps) * kMore;
  RowWindow window{static_cast<uint64_t>(state.turn), static_cast<uint64_t>(next)};
  window.end = std::min(window.end, window.begin + rows);
  // Rows from `rows` on belong to the sweep that follows, whether that gives turns or this one.
  if (state.sweeps % every != every - 1)
    window.begin = std::min(std::max(window.begin, rows), window.end);
  if ((state.sweeps + 1) % every != every - 1) window.end = std::min(window.end, rows);
  state.turn = next;
  if (next >= all) {
    state.turn = next - all;
    ++state.sweeps;
  }
  return window;
}

void MagnitudeHistogram::add(std::span<const float> values) {
  bins_.resize(kBins);
  for (const float value : values) ++bins_[magnitude_bits(value) >> kShift];
}

float MagnitudeHistogram::threshold(double wanted) const {
  double above = 0;
  for (uint32_t bin = static_cast<uint32_t>(bins_.size()); bin-- > 0;) {
    const double here = bins_[bin];
    if (here > 0 && above + here >= wanted) {
      const double share =
          std::clamp((wanted - above) / here, 0.0, 1.0);  // of the bin, from its top
      const uint32_t down = static_cast<uint32_t>(share * (1u << kShift));
      const uint32_t bits = ((bin + 1) << kShift) - std::max(down, 1u);
      return std::max(std::bit_cast<float>(std::min(bits, kInfinityBits - 1)), kSmallestMagnitude);
    }
    above += here;
  }
  return kSmallestMagnitude;
}

double MagnitudeHistogram::count(float threshold) const {
  if (bins_.empty()) return 0;
  const uint32_t bits = magnitude_bits(threshold);
  double above = 0;
  for (uint32_t bin = kBins; --bin > bits >> kShift;) above += bins_[bin];
  const uint32_t up = (1u << kShift) - (bits & ((1u << kShift) - 1));
  return above + bins_[bits >> kShift] * static_cast<double>(up) / (1u << kShift);
}

uint32_t MagnitudeHistogram::near(float magnitude) const {
  return bins_.empty() ? 0 : bins_[magnitude_bits(magnitude) >> kShift];
}

MagnitudeHistogram::Side MagnitudeHistogram::side(float value, float magnitude) {
  const uint32_t own = magnitude_bits(value) >> kShift;
  const uint32_t bin = magnitude_bits(magnitude) >> kShift;
  return own < bin ? Side::below : (own == bin ? Side::same : Side::above);
}

}  // namespace scant::codec
