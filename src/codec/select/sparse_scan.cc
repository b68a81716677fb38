// How a sparse step finds its thresholds: exactly in a range that is scanned as a whole, from a
// sample in one that is not. By row it needs none.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>

#include "base/rng.h"
#include "codec/step.h"

namespace scant::codec {
namespace {

constexpr uint64_t kBlock = kSparseBlockElements;
// Up to here every non-zero element is a candidate: no threshold is needed.
constexpr uint64_t kSmallElements = 16384;
// A sample: pieces of a few cache lines, enough of them for a count that can be trusted.
constexpr size_t kSmallPiece = 256;
constexpr size_t kLargePiece = 1024;
constexpr uint64_t kSampleElementsMin = 65536;
constexpr uint64_t kSampleShare = 128;  // a sample is at least this part of the range
constexpr double kSampleEntries = 500;  // that a sample should hold
constexpr double kDrift = 0.05;         // of a small sample's count, beyond noise
// A threshold that cannot be predicted comes from a sample with this many entries, if a quarter of
// the range has them.
constexpr double kCalibrationEntries = 16384;
constexpr double kSettledDrift = 0.01;  // of such a sample's count
constexpr uint32_t kSettledSteps = 3;   // well predicted, one after the other: small samples do
constexpr double kTieShare = 0.1;       // of the wanted entries that are equal

bool within(double count, double expected, double share, double deviations) {
  return std::abs(count - expected) <= share * expected + deviations * std::sqrt(expected);
}

// A value's magnitude times `share`; what is finite stays so.
uint32_t shared_bits(float value, float share) {
  if (!is_finite(value)) return magnitude_bits(value);
  return std::min(magnitude_bits(value * share), kInfinityBits - 1);
}

// What a scan aims at, so that it seldom passes fewer than are wanted: three standard deviations.
double with_margin(uint64_t wanted) {
  const auto count = static_cast<double>(wanted);
  return count * 1.01 + 3 * std::sqrt(count) + 1;
}

}  // namespace

uint64_t SparseStep::scan(float threshold, bool add) {
  const auto body = [&](size_t number, size_t worker) {
    select(number, worker, add, whole_ + number * kBlock, threshold);
  };
  workspace_.pool().for_each(blocks_.size(), std::ref(body));
  uint64_t count = 0;
  for (const Block& block : blocks_) count += block.positions.size();
  return count;
}

Result<void> SparseStep::take_whole() {
  whole_ = encoder_.residual_.in_place();
  if (whole_ != nullptr) return {};
  const Result<float*> taken = workspace_.whole(encoder_.range_.elements);
  if (!taken) return taken.error();
  whole_ = taken.value();
  return {};
}

void SparseStep::run_whole() {
  const uint64_t elements = encoder_.range_.elements;
  ThresholdState& state = encoder_.threshold_;
  float threshold = elements <= kSmallElements ? kSmallestMagnitude : state.threshold;
  uint64_t count = scan(threshold > 0 ? threshold : HUGE_VALF, true);
  if (count < wanted_ && threshold != kSmallestMagnitude) {
    threshold = calibrated_threshold();
    count = scan(threshold, false);
  }
  if (count < wanted_ && threshold > kSmallestMagnitude) {  // a line within a bin may miss by a few
    threshold = kSmallestMagnitude;
    count = scan(threshold, false);
  }
  trim(count, threshold);
  workspace_.pool().for_each(blocks_.size(), [this](size_t number, size_t) {
    finish_block(number, whole_ + number * kBlock);
  });
  adjust_levels();
}

void SparseStep::run_by_row() {
  scan(HUGE_VALF, true);
  encoder_.threshold_.threshold = 0;  // a step that is not by row finds one anew
  workspace_.pool().for_each(blocks_.size(), [this](size_t number, size_t worker) {
    float* work = whole_ + number * kBlock;
    select_by_row(number, work, orders_[worker]);
    finish_block(number, work);
  });
}

// What a block holds of each row sends its share of `wanted_`, and what is not finite. Fractions
// add up from row to row; where they begin is drawn for each step, so that no row is preferred.
void SparseStep::select_by_row(uint64_t number, const float* work, std::vector<uint64_t>& order) {
  const uint64_t all = encoder_.range_.elements;
  const uint64_t columns = encoder_.shape_.columns;
  const uint64_t first = encoder_.range_.first + number * kBlock;
  const size_t elements = elements_of(number);
  std::vector<uint16_t>& positions = blocks_[number].positions;
  positions.clear();
  uint64_t credit = base::random_at(encoder_.options_.seed, encoder_.step_, number) % all;
  for (size_t from = 0, to = 0; from < elements; from = to) {
    to = std::min<uint64_t>(elements, from + columns - (first + from) % columns);
    credit += (to - from) * wanted_;
    order.clear();  // magnitude, then position, the lowest first
    uint64_t nonfinite = 0;
    for (size_t i = from; i < to; ++i) {
      const uint64_t magnitude = magnitude_bits(work[i]);
      if (magnitude != 0) order.push_back(magnitude << 16 | (kBlock - 1 - i));
      nonfinite += magnitude >= kInfinityBits ? 1 : 0;
    }
    const uint64_t share = std::min<uint64_t>(std::max(credit / all, nonfinite), order.size());
    credit %= all;
    const auto end = order.begin() + static_cast<ptrdiff_t>(share);
    std::nth_element(order.begin(), end, order.end(), std::greater<>());
    for (auto key = order.begin(); key != end; ++key)
      positions.push_back(static_cast<uint16_t>(kBlock - 1 - *key % kBlock));
    std::sort(positions.end() - static_cast<ptrdiff_t>(share), positions.end());
  }
  std::vector<float>& values = blocks_[number].values;
  values.clear();
  for (const uint16_t position : positions) values.push_back(work[position]);
}

float SparseStep::calibrated_threshold() {
  histogram_.add({whole_, encoder_.range_.elements});
  return histogram_.threshold(with_margin(wanted_));
}

void SparseStep::trim(uint64_t count, float threshold) {
  std::vector<uint32_t>& magnitudes = magnitudes_;
  uint64_t nonfinite = 0;
  for (uint64_t b = 0; b < blocks_.size(); ++b) {
    const float share = 1 / threshold_of(b, 1.0f);
    for (const float value : blocks_[b].values) {
      magnitudes.push_back(shared_bits(value, share));
      nonfinite += magnitudes.back() >= kInfinityBits ? 1 : 0;
    }
  }
  // Magnitudes are compared as shares of their block's threshold.
  // The threshold that would have been right for this step is the one to begin the next with.
  ThresholdState& state = encoder_.threshold_;
  const auto aim = static_cast<uint64_t>(with_margin(wanted_));
  auto end = magnitudes.end();
  if (count >= aim && aim > 0) {
    end = magnitudes.begin() + static_cast<ptrdiff_t>(aim);
    std::nth_element(magnitudes.begin(), end - 1, magnitudes.end(), std::greater<>());
    state.threshold = std::bit_cast<float>(std::min(*(end - 1), kInfinityBits - 1));
  } else {
    state.threshold =
        corrected(threshold, state.slope, static_cast<double>(count), static_cast<double>(aim));
  }
  const uint64_t keep = std::max(wanted_, nonfinite);
  if (count <= keep) return;
  if (keep == 0) {
    for (Block& block : blocks_) {
      block.positions.clear();
      block.values.clear();
    }
    return;
  }
  if (static_cast<ptrdiff_t>(keep) > end - magnitudes.begin()) end = magnitudes.end();
  const auto last = magnitudes.begin() + static_cast<ptrdiff_t>(keep) - 1;
  std::nth_element(magnitudes.begin(), last, end, std::greater<>());
  const uint32_t cut = *last;
  // Of equal magnitudes at the cut, the first in order stay.
  auto ties = static_cast<uint64_t>(std::count(magnitudes.begin(), last + 1, cut));
  for (uint64_t b = 0; b < blocks_.size(); ++b) {
    const float share = 1 / threshold_of(b, 1.0f);
    Block& block = blocks_[b];
    size_t kept = 0;
    for (size_t i = 0; i < block.values.size(); ++i) {
      const uint32_t magnitude = shared_bits(block.values[i], share);
      if (magnitude < cut || (magnitude == cut && ties == 0)) continue;
      if (magnitude == cut) --ties;
      block.positions[kept] = block.positions[i];
      block.values[kept++] = block.values[i];
    }
    block.positions.resize(kept);
    block.values.resize(kept);
  }
}

// Calls see(values) for pieces spread evenly over the range, at places that change from step to
// step. With evenness, values come as shares of their block's threshold.
template <size_t kPiece, class See>
uint64_t SparseStep::sample(uint64_t wanted, const See& see) const {
  const uint64_t pieces = std::max<uint64_t>(1, wanted / kPiece);
  const uint64_t stride = encoder_.range_.elements / pieces / kGroupElements * kGroupElements;
  const uint64_t slack = (stride - kPiece) / kGroupElements + 1;
  std::array<float, kPiece> values{};
  for (uint64_t piece = 0; piece < pieces; ++piece) {
    const uint64_t moved = base::random_at(encoder_.options_.seed, encoder_.step_, piece) % slack;
    const uint64_t at = piece * stride + moved * kGroupElements;
    encoder_.peek(at, gradient_ + at, decay_, values);
    if (encoder_.options_.evenness > 0) {
      for (size_t i = 0; i < kPiece; i += kGroupElements) {
        const float share = 1 / threshold_of((at + i) / kBlock, 1.0f);
        for (size_t j = i; j < i + kGroupElements; ++j) values[j] *= share;
      }
    }
    see(std::span<const float>(values));
  }
  return pieces * kPiece;
}

uint64_t SparseStep::elements_for(double entries) const {
  return static_cast<uint64_t>(
      std::min(entries / point_.density, static_cast<double>(encoder_.range_.elements)));
}

float SparseStep::confirm_threshold() {
  ThresholdState& state = encoder_.threshold_;
  const uint64_t elements = encoder_.range_.elements;
  const double share = static_cast<double>(wanted_) / static_cast<double>(elements);
  const float predicted = predicted_threshold(state, wanted_, elements);
  if (state.settled >= kSettledSteps) {
    const uint64_t for_entries = elements_for(kSampleEntries);
    const uint64_t few = std::max(
        {kSampleElementsMin, elements / kSampleShare, std::min(elements / 8, for_entries)});
    uint64_t count = 0;
    const uint64_t seen = sample<kSmallPiece>(few, [&](std::span<const float> values) {
      for (const float v : values) count += !(std::abs(v) < predicted) ? 1 : 0;
    });
    if (within(static_cast<double>(count), share * static_cast<double>(seen), kDrift, 4))
      return predicted;
    state.settled = 0;  // an abrupt change: what was carried is worth nothing
    state.threshold = 0;
    state.trend = 0;
  }
  return calibrate(share, state.threshold > 0 ? predicted : 0);
}

float SparseStep::calibrate(double share, float predicted) {
  ThresholdState& state = encoder_.threshold_;
  const uint64_t for_entries = elements_for(kCalibrationEntries);
  const uint64_t elements = encoder_.range_.elements;
  const uint64_t many = std::clamp(for_entries, elements / 32, elements / 4);
  const uint64_t seen =
      sample<kLargePiece>(many, [&](std::span<const float> v) { histogram_.add(v); });
  const double expected = share * static_cast<double>(seen);
  const float threshold = histogram_.threshold(expected);
  if (predicted > 0) {
    const bool good = within(histogram_.count(predicted), expected, kSettledDrift, 2);
    state.settled = good ? state.settled + 1 : 0;
    // Both err by about as much, independently.
    if (good) return std::sqrt(predicted * threshold);
  }
  // Many in one bin: are they equal? Then no threshold tells them apart.
  if (histogram_.near(threshold) <= 2 * kTieShare * expected) return threshold;
  std::vector<uint32_t> near;
  uint64_t above = 0;
  sample<kLargePiece>(many, [&](std::span<const float> values) {
    for (const float value : values) {
      const MagnitudeHistogram::Side side = histogram_.side(value, threshold);
      if (side == MagnitudeHistogram::Side::same) near.push_back(magnitude_bits(value));
      above += side == MagnitudeHistogram::Side::above ? 1 : 0;
    }
  });
  const auto rank = static_cast<ptrdiff_t>(std::clamp(expected - static_cast<double>(above) - 1,
                                                      0.0, static_cast<double>(near.size() - 1)));
  std::nth_element(near.begin(), near.begin() + rank, near.end(), std::greater<>());
  const uint32_t cut = near[static_cast<size_t>(rank)];
  const auto equal = static_cast<double>(std::count(near.begin(), near.end(), cut));
  if (cut == 0 || equal <= kTieShare * expected) return threshold;
  const auto greater =
      static_cast<double>(above) +
      static_cast<double>(std::count_if(near.begin(), near.end(),
                                        [&](uint32_t magnitude) { return magnitude > cut; }));
  tie_.magnitude = std::bit_cast<float>(cut);
  tie_.keep =
      static_cast<uint32_t>(std::clamp((expected - greater) / equal, 0.0, 1.0) * (0x1p32 - 1));
  return tie_.magnitude;
}

void SparseStep::drop_ties(uint64_t number) {
  if (tie_.magnitude == 0) return;
  Block& block = blocks_[number];
  const DrawKey key = encoder_.draw_key(number, 1);
  const float share = 1 / threshold_of(number, 1.0f);  // as in sample()
  size_t kept = 0;
  for (size_t i = 0; i < block.values.size(); ++i) {
    const float own = std::abs(block.values[i] * share);
    if (own < tie_.magnitude) continue;
    if (own == tie_.magnitude && draw_word(key, block.positions[i]) >= tie_.keep) continue;
    block.positions[kept] = block.positions[i];
    block.values[kept++] = block.values[i];
  }
  block.positions.resize(kept);
  block.values.resize(kept);
}

}  // namespace scant::codec
