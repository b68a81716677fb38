// Which magnitudes are sent: thresholds carried from step to step. The arithmetic alone, no data
// beyond a histogram: counts in, thresholds out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace scant::codec {

// Of one range; part of what an encoder saves.
struct ThresholdState {
  double credit = 0;           // entries that may be sent, a fraction carried over included
  double density = 0;          // what the threshold was found for
  float threshold = 0;         // 0: none yet
  float slope = kSlopeFirst;   // -d log(count) / d log(threshold)
  float trend = 0;             // of log(threshold), each step: residuals grow for a while
  uint32_t settled = 0;        // steps in a row that it predicted well
  std::vector<float> level{};  // with evenness: each block's own threshold by the common one

  double turn = 0;      // the row whose turn is next, and how much of the step to the one behind
  uint32_t sweeps = 0;  // times that all rows have had their turn
  // Of a state that was read, for a range of so many elements.
  [[nodiscard]] bool valid(uint64_t elements) const;

  static constexpr float kSlopeFirst = 7.0f;  // of a Gaussian at 1 %
};

// Entries to send in this step. Adds the step's share to the credit, of which at most a twentieth
// is kept from earlier steps, one entry at least. A debt of more than one step and four
// entries is forgiven.
[[nodiscard]] uint64_t begin_step(ThresholdState& state, double density, uint64_t elements);
void end_step(ThresholdState& state, uint64_t sent);

// The threshold that would have passed `wanted` where `threshold` passed `count`.
[[nodiscard]] float corrected(float threshold, float slope, double count, double wanted);
// The threshold for the next step, after a step of a large range passed `count` at `used`.
void learn(ThresholdState& state, float used, uint64_t count, uint64_t wanted, uint64_t elements);
// What learn() left, carried on by the trend and to this step's count; 0 when there is none.
[[nodiscard]] float predicted_threshold(const ThresholdState& state, uint64_t wanted,
                                        uint64_t elements);
// From the number of entries at two thresholds.
[[nodiscard]] float fitted_slope(double count, double count_above, float ratio, float before);

// How often a row that passes nothing sends its largest entry: once in so many steps. These entries
// are at most a 64th of what is sent.
[[nodiscard]] uint64_t sweep_steps(double density, uint64_t columns);
// Rows [begin, end) have their turn; those from `rows` on stand for the first ones again.
struct RowWindow {
  uint64_t begin = 0;
  uint64_t end = 0;
};
// Moves on by rows / steps, so that all rows have a turn in any `steps` steps, also when the number
// of steps changes in between. Where one sweep in `every` gives turns, in any `every` * `steps`.
[[nodiscard]] RowWindow take_turns(ThresholdState& state, uint64_t rows, uint64_t steps,
                                   uint32_t every = 1);

// Counts magnitudes by the upper 15 bits of their floats: steps of 1/128 or finer.
class MagnitudeHistogram {
 public:
  // Takes its memory at once, and touches it when the first values come.
  MagnitudeHistogram() { bins_.reserve(kBins); }
  void add(std::span<const float> values);
  // The threshold that about `wanted` of the counted values pass: a line within the bin. The
  // smallest positive float when no more are positive.
  [[nodiscard]] float threshold(double wanted) const;
  // About how many values pass this threshold.
  [[nodiscard]] double count(float threshold) const;
  // Values in the bin that holds this magnitude.
  [[nodiscard]] uint32_t near(float magnitude) const;
  // Where a value's bin lies, seen from that of `magnitude`.
  enum class Side : uint8_t { below, same, above };
  [[nodiscard]] static Side side(float value, float magnitude);

 private:
  static constexpr uint32_t kShift = 16;
  static constexpr uint32_t kBins = 1u << 15;
  std::vector<uint32_t> bins_;
};

inline constexpr float kLevelMax =
    64.0f;  // a block's own threshold by the common one, or its inverse
inline constexpr float kSmallestMagnitude = 0x1p-149f;

}  // namespace scant::codec
