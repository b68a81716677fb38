#include "codec/rate/probe.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <string>

#include "base/fault.h"
#include "base/rng.h"
#include "codec/kernels/kernels.h"
#include "codec/record/block_writer.h"
#include "codec/record/positions.h"

namespace scant::codec {
namespace {

constexpr uint64_t kPieceElements = 256;  // whole groups, and long enough for the memory to stream
constexpr uint64_t kSampleShare = 1024;   // the sample is this part of the range
constexpr uint64_t kSampleElementsMin = 8192;
constexpr uint64_t kSampleElementsMax = kSparseBlockElements;
// With fewer entries than this in a sample, the law of independent positions is closer to what a
// record takes than the sample's own gaps.
constexpr size_t kGapEntriesMin = 32;
constexpr double kGapSurplusMax = 1.1;  // of what passes by what is meant
// So many values tell which share of the energy a kind keeps.
constexpr size_t kQuantisedMax = 4096;
static_assert(kQuantisedMax <= GroupMagnitudes::kMost * kGroupElements);
constexpr size_t kListSlack = 32;  // what a kernel may write past a list's end
// Sums of squares in f32 are exact enough between these.
constexpr float kPlainEnergyMin = 1e-20f;
constexpr float kPlainEnergyMax = 1e30f;

constexpr double kDensities[] = {1, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001};
constexpr ValueKind kKinds[] = {ValueKind::f32, ValueKind::bf16, ValueKind::q8, ValueKind::q4,
                                ValueKind::q3,  ValueKind::q2,   ValueKind::q1};

using base::invalid;

std::optional<Error> check(const Encoder& encoder, std::span<const float> gradient,
                           std::span<const Point> points) {
  if (gradient.size() != encoder.range().elements) {
    return invalid("gradient has " + std::to_string(gradient.size()) + " elements, the range has " +
                   std::to_string(encoder.range().elements));
  }
  for (size_t p = 0; p < points.size(); ++p) {
    const Point point = points[p];
    if (!(point.density > 0 && point.density <= 1) ||
        static_cast<size_t>(point.values) >= kValueKindCount) {
      return invalid("point " + std::to_string(p) + " has density " +
                     std::to_string(point.density) + " and kind " +
                     std::to_string(static_cast<int>(point.values)));
    }
  }
  return std::nullopt;
}

// `plain`: the sum of squares as f32.
double energy_of(const float* values, size_t n, float plain) {
  if (plain > kPlainEnergyMin && plain < kPlainEnergyMax) return static_cast<double>(plain);
  double energy = 0;
  for (size_t i = 0; i < n; ++i)
    energy += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return energy;
}

// Fewer do for kinds that lose little: bf16 a 2^18th at most and q8 a thousandth (four when it
// draws), whatever the values are; q4 and q3 some hundredths.
size_t quantised_max(ValueKind kind) {
  if (kind == ValueKind::bf16 || kind == ValueKind::q8) return kQuantisedMax / 8;
  return kind == ValueKind::q4 || kind == ValueKind::q3 ? kQuantisedMax / 2 : kQuantisedMax;
}

// Leaves the values as they are.
double energy_of(float* values, size_t n) {
  return energy_of(values, n, kernels().accumulate(nullptr, values, n, 1.0f).energy);
}

// Bytes of an entry's position when entries are independent: the best of all kinds.
double position_bytes_of_law(double density) {
  if (density <= 0) return 0;
  double best = std::min(2.0, 0.125 / density);
  for (unsigned width = 1; width <= kPackedWidthMax; ++width) {
    const double past = std::pow(1 - density, (1 << width) - 1);  // that a gap needs one code more
    if (past < 1) best = std::min(best, width / 8.0 / (1 - past));
  }
  return best;
}

// Bytes of a block's values when its entries have this mean.
double mean_value_bytes(ValueKind kind, double entries, bool varies) {
  const double whole = std::floor(entries);
  const auto below = static_cast<uint64_t>(whole);
  if (!varies || whole < 1) {
    const auto low = static_cast<double>(value_bytes(kind, below));
    const auto high = static_cast<double>(value_bytes(kind, below + 1));
    return low + (entries - whole) * (high - low);
  }
  // The last group and the last byte are half full, on the average.
  const double scales = quantised(kind) ? std::max(1.0, entries / kGroupElements + 0.5) : 0.0;
  return scales + entries * bits(kind) / 8 + (bits(kind) < 8 ? 0.5 : 0.0);
}

// Works in a workspace's memory for the length of one call.
class Probe {
 public:
  static constexpr size_t kList = kSampleElementsMax + kListSlack;
  static constexpr size_t kWorkFloats = kSampleElementsMax + kList + kList / 2 + 2 * kQuantisedMax;

  // `memory`: kWorkFloats of them.
  Probe(const Encoder& encoder, const float* gradient, Workspace::Scratch& scratch, float* memory)
      : encoder_(encoder), scratch_(scratch), elements_(encoder.range().elements) {
    const uint64_t share = std::max(kSampleElementsMin, elements_ / kSampleShare);
    const uint64_t wanted = std::min(share, kSampleElementsMax) / kPieceElements * kPieceElements;
    size_ = static_cast<size_t>(std::min(elements_, wanted));
    sample_ = memory;
    lists_ = {scratch_.values(), sample_ + kSampleElementsMax};
    indices_ = reinterpret_cast<uint16_t*>(lists_[1] + kList);
    picked_ = lists_[1] + kList + kList / 2;
    payload_ = reinterpret_cast<std::byte*>(picked_ + kQuantisedMax);
    if (size_ > 0) take_sample(gradient);
    scale_ = size_ > 0 ? static_cast<double>(elements_) / static_cast<double>(size_) : 0;
    energy_ = energy_of(sample_, size_, sums_.energy);
  }

  Curve run(std::span<const Point> points);

 private:
  static constexpr unsigned kBinShift = 18;   // 32 bins an octave
  static constexpr uint32_t kBins = 32 * 32;  // of the largest magnitudes; the last takes the rest
  // The bin in which a density's last entry lies, and how many values are beyond it.
  struct Cut {
    double density = 1;
    uint32_t floor = 0;  // bits of the bin's least magnitude; the rest's is 0
    size_t above = 0;
  };
  struct Selection {
    double density = 1;
    float* values = nullptr;
    size_t count = 0;
    double energy = 0;          // of those that are meant
    double entries = 0;         // of a record
    double position_bytes = 0;  // of a record
  };

  void take_sample(const float* gradient);
  void count_bins();
  std::vector<Cut> find_cuts(std::span<const Point> points, std::span<const size_t> order);
  Selection all() const;
  Selection select(const Cut& cut, const Selection& from);
  double surplus_energy(const Selection& selection, const Cut& cut, double surplus) const;
  double position_bytes(const Selection& selection, double wanted) const;
  // Takes the values that tell what kinds keep.
  void pick(const Selection& selection);
  // Which part of the energy of the picked values the kind keeps.
  double kept_share(ValueKind kind);
  CurvePoint estimate(Point point, const Selection& selection);

  const Encoder& encoder_;
  Workspace::Scratch& scratch_;
  uint64_t elements_;
  size_t size_ = 0;  // of the sample
  float* sample_ = nullptr;
  // Selections are made from the one before, whose values stand in the other list.
  std::array<float*, 2> lists_{};
  uint16_t* indices_ = nullptr;
  float* picked_ = nullptr;
  size_t picked_count_ = 0;
  Accumulated picked_sums_;
  double picked_energy_ = 0;
  GroupMagnitudes groups_;
  std::byte* payload_ = nullptr;
  double scale_ = 0;  // elements for each one of the sample
  Accumulated sums_;
  double energy_ = 0;
  std::array<std::array<uint32_t, kBins>, 2> bins_{};
};

void Probe::take_sample(const float* gradient) {
  if (size_ == elements_) {
    for (size_t at = 0; at < size_; at += kDenseBlockElements) {
      const size_t n = std::min<size_t>(kDenseBlockElements, size_ - at);
      encoder_.peek(at, gradient + at, {sample_ + at, n});
    }
  } else {
    // One piece in each of as many equal parts; where in the part is drawn.
    const uint64_t pieces = size_ / kPieceElements;
    const uint64_t groups = elements_ / kGroupElements;
    constexpr uint64_t kPieceGroups = kPieceElements / kGroupElements;
    const uint64_t slack = groups / pieces - kPieceGroups + 1;
    for (uint64_t piece = 0; piece < pieces; ++piece) {
      const uint64_t begin = groups / pieces * piece + groups % pieces * piece / pieces;
      const uint64_t drawn = base::random_at(encoder_.options().seed, encoder_.step(), piece);
      const uint64_t at = (begin + drawn % slack) * kGroupElements;
      encoder_.peek(at, gradient + at, {sample_ + piece * kPieceElements, kPieceElements});
    }
  }
  sums_ = kernels().accumulate(nullptr, sample_, size_, 1.0f);
  if (sums_.magnitude_max < kInfinityBits) return;
  std::replace_if(
      sample_, sample_ + size_, [](float v) { return !is_finite(v); }, 0.0f);
  sums_ = kernels().accumulate(nullptr, sample_, size_, 1.0f);
}

// Twice half of the values: no count waits for the one before.
void Probe::count_bins() {
  const auto top = static_cast<int32_t>(sums_.magnitude_max >> kBinShift);
  const auto nth = [&](size_t i) {
    const auto below = top - static_cast<int32_t>(magnitude_bits(sample_[i]) >> kBinShift);
    return static_cast<uint32_t>(std::min(below, int32_t{kBins - 1}));
  };
  const size_t half = size_ / 2;
  for (size_t i = 0; i < half; ++i) {
    ++bins_[0][nth(i)];
    ++bins_[1][nth(half + i)];
  }
  if (size_ % 2 != 0) ++bins_[0][nth(size_ - 1)];
}

// `order`: of descending densities; so are the cuts.
std::vector<Probe::Cut> Probe::find_cuts(std::span<const Point> points,
                                         std::span<const size_t> order) {
  std::vector<Cut> cuts;
  Cut cut;
  uint32_t nth = 0;
  const auto in_bin = [&] { return bins_[0][nth] + bins_[1][nth]; };
  for (auto p = order.rbegin(); p != order.rend(); ++p) {
    const double density = points[*p].density;
    if (density == 1 || density == cut.density) continue;
    if (cuts.empty()) count_bins();
    cut.density = density;
    const double wanted = density * static_cast<double>(size_);
    for (; nth < kBins - 1 && static_cast<double>(cut.above + in_bin()) < wanted; ++nth)
      cut.above += in_bin();
    const uint32_t top = sums_.magnitude_max >> kBinShift;
    cut.floor = nth < kBins - 1 && nth < top ? (top - nth) << kBinShift : 0;
    cuts.push_back(cut);
  }
  std::reverse(cuts.begin(), cuts.end());
  return cuts;
}

Probe::Selection Probe::all() const {
  return {.values = sample_,
          .count = size_,
          .energy = energy_,
          .entries = static_cast<double>(elements_)};
}

// All of the cut's bin pass; those that are too many are taken out again by their mean.
Probe::Selection Probe::select(const Cut& cut, const Selection& from) {
  const double wanted = cut.density * static_cast<double>(size_);
  const float floor = std::max(std::bit_cast<float>(cut.floor), kSmallestMagnitude);
  float* const values = from.values == lists_[0] ? lists_[1] : lists_[0];
  uint16_t* const positions = scratch_.positions();
  const bool first = from.values == sample_;
  uint16_t* const listed = first ? positions : indices_;
  const size_t count =
      kernels().select(nullptr, from.values, from.count, 1.0f, floor, listed, values).count;
  if (!first)
    for (size_t i = 0; i < count; ++i) positions[i] = positions[indices_[i]];
  Selection result{.density = cut.density, .values = values, .count = count};
  result.energy = energy_of(values, count);
  const auto passed = static_cast<double>(count);
  if (passed > wanted)
    result.energy = std::max(0.0, result.energy - surplus_energy(result, cut, passed - wanted));
  result.entries = std::min(passed, wanted) * scale_;
  result.position_bytes = position_bytes(result, wanted);
  return result;
}

// A bin is a part of one octave, where magnitudes are as far apart as their bits: the mean of the
// bits is that of the magnitudes, and its square nearly the mean square.
double Probe::surplus_energy(const Selection& selection, const Cut& cut, double surplus) const {
  constexpr size_t kChunk = 4096;  // sums fit 32 bits
  uint64_t sum = 0;
  for (size_t begin = 0; begin < selection.count; begin += kChunk) {
    const size_t end = std::min(begin + kChunk, selection.count);
    uint32_t part = 0;
    for (size_t i = begin; i < end; ++i) {
      const uint32_t above = magnitude_bits(selection.values[i]) - cut.floor;
      part += above < (1u << kBinShift) ? above : 0;
    }
    sum += part;
  }
  const uint64_t inside = selection.count - cut.above;
  const auto mean = std::bit_cast<float>(cut.floor + static_cast<uint32_t>(sum / inside));
  return surplus * static_cast<double>(mean) * static_cast<double>(mean);
}

double Probe::position_bytes(const Selection& selection, double wanted) const {
  if (selection.count == 0) return 0;
  const auto count = static_cast<double>(selection.count);
  const bool by_gaps = size_ == elements_ || selection.count >= kGapEntriesMin;
  if (by_gaps && count <= kGapSurplusMax * wanted) {
    const PositionChoice choice =
        choose_positions({scratch_.positions(), selection.count}, static_cast<uint32_t>(size_));
    return choice.bytes * scale_ * (std::min(count, wanted) / count);
  }
  return selection.entries *
         position_bytes_of_law(selection.entries / static_cast<double>(elements_));
}

void Probe::pick(const Selection& selection) {
  const size_t n = selection.count;
  // Whole quads, where there is one: what is left behind the last takes longer than it tells.
  const size_t most = std::min(n, kQuantisedMax);
  const size_t used = most < kQuadElements ? most : most / kQuadElements * kQuadElements;
  float* const work = scratch_.work();
  if (used < kQuadElements) {
    std::copy_n(selection.values, used, work);
  } else {
    // One group of each of as many equal parts; the first half alone is spread as evenly. Which one
    // changes from part to part, so that no period of the tensor's hides some.
    const size_t groups = used / kGroupElements;
    const size_t part = n / kGroupElements / groups;
    for (size_t g = 0; g < groups; ++g) {
      const size_t nth = g < groups / 2 ? 2 * g : 2 * (g - groups / 2) + 1;
      const uint32_t golden = static_cast<uint32_t>(nth) * 0x9e3779b9u;  // spreads over 32 bits
      const size_t group = n / kGroupElements * nth / groups + (uint64_t{golden} * part >> 32);
      std::copy_n(selection.values + group * kGroupElements, kGroupElements,
                  work + g * kGroupElements);
    }
  }
  std::fill_n(picked_, used, 0.0f);  // which the values are added to
  picked_count_ = used;
  picked_sums_ = kernels().accumulate_groups(work, picked_, used, 1.0f, groups_, {});
  picked_energy_ = energy_of(picked_, used, picked_sums_.energy);
}

double Probe::kept_share(ValueKind kind) {
  if (kind == ValueKind::f32) return 1;
  if (picked_energy_ == 0) return 0;
  size_t n = std::min(picked_count_, quantised_max(kind));
  double energy = n == picked_count_ ? picked_energy_ : energy_of(picked_, n);
  if (energy == 0) {
    n = picked_count_;
    energy = picked_energy_;
  }
  float* const work = scratch_.work();
  const bool stochastic = encoder_.options().stochastic;
  const uint64_t draws = stochastic ? 2 : 1;  // two halve the variance that comes from drawing
  double left = 0;
  for (uint64_t draw = 0; draw < draws; ++draw) {
    std::copy_n(picked_, n, work);
    const auto key =
        static_cast<uint32_t>(base::random_at(encoder_.options().seed, encoder_.step(), ~draw));
    BlockHeader header;
    write_values(kind, {stochastic, {.add = key, .flip = ~key}}, picked_sums_.magnitude_max, work,
                 n, payload_, header, &groups_);
    left += energy_of(work, n);
  }
  return std::max(0.0, 1 - left / (static_cast<double>(draws) * energy));
}

CurvePoint Probe::estimate(Point point, const Selection& selection) {
  CurvePoint result{.point = point};
  const uint64_t blocks = (elements_ + kSparseBlockElements - 1) / kSparseBlockElements;
  if (point.density == 1 || blocks == 0) {
    result.bytes = static_cast<double>(dense_record_bytes(elements_, point.values));
  } else {
    const auto count = static_cast<double>(blocks);
    result.bytes = kRecordHeaderBytes + selection.position_bytes +
                   count * (static_cast<double>(kBlockHeaderBytes) +
                            mean_value_bytes(point.values, selection.entries / count, blocks > 1));
  }
  result.energy = scale_ * selection.energy * kept_share(point.values);
  return result;
}

Curve Probe::run(std::span<const Point> points) {
  Curve curve{.energy = scale_ * energy_, .points = std::vector<CurvePoint>(points.size())};
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return points[a].density > points[b].density; });
  const std::vector<Cut> cuts = find_cuts(points, order);
  auto cut = cuts.begin();
  Selection selection = all();
  if (!points.empty() && points[order[0]].density == 1) pick(selection);
  for (const size_t p : order) {
    if (points[p].density != selection.density) {
      selection = select(*cut++, selection);
      pick(selection);
    }
    curve.points[p] = estimate(points[p], selection);
  }
  return curve;
}

}  // namespace

Result<Curve> probe(const Encoder& encoder, std::span<const float> gradient,
                    std::span<const Point> points, Workspace& workspace) {
  if (auto wrong = check(encoder, gradient, points)) return *std::move(wrong);
  if (Result<void> prepared = workspace.prepare(); !prepared) return prepared.error();
  const Result<float*> memory = workspace.whole(Probe::kWorkFloats);
  if (!memory) return memory.error();
  return Probe(encoder, gradient.data(), workspace.scratch(0), memory.value()).run(points);
}

double expected_record_bytes(uint64_t elements, Point point) {
  if (point.density == 0) return 0;
  if (point.density == 1.0) return static_cast<double>(dense_record_bytes(elements, point.values));
  const double position = position_bytes_of_law(point.density);
  const uint64_t whole = elements / kSparseBlockElements;
  const uint64_t rest = elements % kSparseBlockElements;
  const bool varies = whole + (rest != 0 ? 1 : 0) > 1;
  const auto block = [&](uint64_t covered) {
    const double entries = point.density * static_cast<double>(covered);
    return static_cast<double>(kBlockHeaderBytes) + entries * position +
           mean_value_bytes(point.values, entries, varies);
  };
  return static_cast<double>(kRecordHeaderBytes) +
         static_cast<double>(whole) * block(kSparseBlockElements) + (rest != 0 ? block(rest) : 0.0);
}

std::span<const Point> default_points() {
  static const auto kPoints = [] {
    std::array<Point, std::size(kDensities) * std::size(kKinds)> points;
    size_t next = 0;
    for (const double density : kDensities)
      for (const ValueKind kind : kKinds) points[next++] = {density, kind};
    return points;
  }();
  return kPoints;
}

}  // namespace scant::codec
