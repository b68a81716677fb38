#include "codec/probe.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <string>

#include "base/rng.h"
#include "codec/block_writer.h"
#include "codec/kernels.h"
#include "codec/positions.h"

namespace scant::codec {
namespace {

constexpr uint64_t kPieceElements = 256;  // whole groups, and long enough for the memory to stream
constexpr uint64_t kSampleShare = 512;    // the sample is this part of the range
constexpr uint64_t kSampleElementsMin = 8192;
constexpr uint64_t kSampleElementsMax = kSparseBlockElements;
// With fewer entries than this in a sample, the law of independent positions is closer to what a
// record takes than the sample's own gaps.
constexpr size_t kGapEntriesMin = 256;
// Sums of squares in f32 are exact enough between these.
constexpr float kPlainEnergyMin = 1e-20f;
constexpr float kPlainEnergyMax = 1e30f;

constexpr double kDensities[] = {1, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001};
constexpr ValueKind kKinds[] = {ValueKind::f32, ValueKind::bf16, ValueKind::q8, ValueKind::q4,
                                ValueKind::q3,  ValueKind::q2,   ValueKind::q1};

Error invalid(std::string message) {
  return Error{.code = ErrorCode::invalid_argument, .message = std::move(message)};
}

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

// Leaves the values as they are.
double energy_of(float* values, size_t n) {
  const float plain = kernels().accumulate(nullptr, values, n, 1.0f).energy;
  if (plain > kPlainEnergyMin && plain < kPlainEnergyMax) return static_cast<double>(plain);
  double energy = 0;
  for (size_t i = 0; i < n; ++i)
    energy += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  return energy;
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
  Probe(const Encoder& encoder, const float* gradient, Workspace& workspace)
      : encoder_(encoder), scratch_(workspace.scratch(0)), elements_(encoder.range().elements) {
    const uint64_t share = std::max(kSampleElementsMin, elements_ / kSampleShare);
    const uint64_t wanted = std::min(share, kSampleElementsMax) / kPieceElements * kPieceElements;
    size_ = static_cast<size_t>(std::min(elements_, wanted));
    sample_ = workspace.whole(2 * kSampleElementsMax);
    payload_ = reinterpret_cast<std::byte*>(sample_ + kSampleElementsMax);
    if (size_ > 0) take_sample(gradient);
    scale_ = size_ > 0 ? static_cast<double>(elements_) / static_cast<double>(size_) : 0;
    energy_ = energy_of(sample_, size_);
  }

  Curve run(std::span<const Point> points);

 private:
  static constexpr unsigned kBinShift = 20;  // eight bins an octave
  struct Selection {
    size_t count = 0;
    double energy = 0;
    double entries = 0;         // of a record
    double position_bytes = 0;  // of a record
    double share = 1;           // of the selected entries that are meant
  };

  void take_sample(const float* gradient);
  void count_bins();
  CurvePoint dense(Point point);
  Selection select(double density);
  CurvePoint sparse(Point point, const Selection& selection);
  size_t keep_largest(size_t count, size_t keep, size_t above, uint32_t bin);
  // Energy of the values at scratch_.work() that the kind keeps, of `energy`.
  double kept(ValueKind kind, size_t n, double energy);

  const Encoder& encoder_;
  Workspace::Scratch& scratch_;
  uint64_t elements_;
  size_t size_ = 0;  // of the sample
  float* sample_ = nullptr;
  std::byte* payload_ = nullptr;
  double scale_ = 0;  // elements for each one of the sample
  double energy_ = 0;
  std::array<uint32_t, 1u << (31 - kBinShift)> bins_{};
};

void Probe::take_sample(const float* gradient) {
  if (size_ == elements_) {
    for (size_t at = 0; at < size_; at += kDenseBlockElements) {
      const size_t n = std::min<size_t>(kDenseBlockElements, size_ - at);
      encoder_.peek(at, gradient + at, {sample_ + at, n});
    }
  } else {
    // One piece in each of as many equal parts, where in the part is drawn.
    const uint64_t pieces = size_ / kPieceElements;
    const uint64_t groups = elements_ / kGroupElements;
    constexpr uint64_t kPieceGroups = kPieceElements / kGroupElements;
    for (uint64_t piece = 0; piece < pieces; ++piece) {
      const uint64_t begin = groups / pieces * piece + groups % pieces * piece / pieces;
      const uint64_t slack = groups / pieces - kPieceGroups + 1;
      const uint64_t drawn = base::random_at(encoder_.options().seed, encoder_.step(), piece);
      const uint64_t at = (begin + drawn % slack) * kGroupElements;
      encoder_.peek(at, gradient + at, {sample_ + piece * kPieceElements, kPieceElements});
    }
  }
  if (magnitude_max(sample_, size_) >= kInfinityBits)
    std::replace_if(
        sample_, sample_ + size_, [](float v) { return !is_finite(v); }, 0.0f);
}

void Probe::count_bins() {
  for (size_t i = 0; i < size_; ++i) ++bins_[magnitude_bits(sample_[i]) >> kBinShift];
}

double Probe::kept(ValueKind kind, size_t n, double energy) {
  if (kind == ValueKind::f32 || n == 0) return energy;
  float* work = scratch_.work();
  const auto key = static_cast<uint32_t>(
      base::random_at(encoder_.options().seed, encoder_.step(), ~uint64_t{0}));
  BlockHeader header;
  write_values(kind, {encoder_.options().stochastic, {.add = key, .flip = ~key}},
               magnitude_max(work, n), work, n, payload_, header);
  return std::max(0.0, energy - energy_of(work, n));
}

CurvePoint Probe::dense(Point point) {
  std::copy_n(sample_, size_, scratch_.work());
  return {.point = point,
          .bytes = static_cast<double>(dense_record_bytes(elements_, point.values)),
          .energy = scale_ * kept(point.values, size_, energy_)};
}

// Of the candidates, all with magnitudes of `bin` or more, of which `above` lie beyond it, the
// `keep` largest; of equal ones the first.
size_t Probe::keep_largest(size_t count, size_t keep, size_t above, uint32_t bin) {
  float* values = scratch_.values();
  uint16_t* positions = scratch_.positions();
  std::vector<uint32_t> inside;
  inside.reserve(count - above);
  for (size_t i = 0; i < count; ++i) {
    const uint32_t magnitude = magnitude_bits(values[i]);
    if (magnitude >> kBinShift == bin) inside.push_back(magnitude);
  }
  const auto last = inside.begin() + static_cast<std::ptrdiff_t>(keep - above) - 1;
  std::nth_element(inside.begin(), last, inside.end(), std::greater<>());
  const uint32_t cut = *last;
  auto ties = std::count(inside.begin(), last + 1, cut);
  size_t kept_count = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t magnitude = magnitude_bits(values[i]);
    if (magnitude < cut || (magnitude == cut && ties == 0)) continue;
    if (magnitude == cut) --ties;
    positions[kept_count] = positions[i];
    values[kept_count++] = values[i];
  }
  return kept_count;
}

Probe::Selection Probe::select(double density) {
  Selection selection;
  const double wanted = density * static_cast<double>(size_);
  const auto keep = std::max<size_t>(1, static_cast<size_t>(std::llround(wanted)));
  size_t above = 0;
  auto bin = static_cast<uint32_t>(bins_.size() - 1);
  for (; bin > 0 && above + bins_[bin] < keep; --bin) above += bins_[bin];
  const float floor = std::max(std::bit_cast<float>(bin << kBinShift), 0x1p-149f);
  selection.count =
      kernels()
          .select(nullptr, sample_, size_, 1.0f, floor, scratch_.positions(), scratch_.values())
          .count;
  if (selection.count >= keep) {
    selection.count = keep_largest(selection.count, keep, above, bin);
    selection.share = wanted / static_cast<double>(keep);
  }
  selection.energy = energy_of(scratch_.values(), selection.count);
  selection.entries = static_cast<double>(selection.count) * selection.share * scale_;
  if (size_ == elements_ || selection.count >= kGapEntriesMin) {
    const PositionChoice choice =
        choose_positions({scratch_.positions(), selection.count}, static_cast<uint32_t>(size_));
    selection.position_bytes = choice.bytes * selection.share * scale_;
  } else {
    selection.position_bytes =
        selection.entries *
        position_bytes_of_law(selection.entries / static_cast<double>(elements_));
  }
  return selection;
}

CurvePoint Probe::sparse(Point point, const Selection& selection) {
  const uint64_t blocks = (elements_ + kSparseBlockElements - 1) / kSparseBlockElements;
  CurvePoint result{.point = point, .bytes = kRecordHeaderBytes};
  if (blocks == 0) return result;
  std::copy_n(scratch_.values(), selection.count, scratch_.work());
  const auto count = static_cast<double>(blocks);
  result.bytes += count * (static_cast<double>(kBlockHeaderBytes) +
                           mean_value_bytes(point.values, selection.entries / count, blocks > 1)) +
                  selection.position_bytes;
  result.energy = scale_ * selection.share * kept(point.values, selection.count, selection.energy);
  return result;
}

Curve Probe::run(std::span<const Point> points) {
  Curve curve{.energy = scale_ * energy_, .points = std::vector<CurvePoint>(points.size())};
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return points[a].density > points[b].density; });
  double selected = 1;  // the density that `selection` is for
  Selection selection;
  for (const size_t p : order) {
    if (points[p].density == 1) {
      curve.points[p] = dense(points[p]);
      continue;
    }
    if (selected == 1) count_bins();
    if (points[p].density != selected) selection = select(points[p].density);
    selected = points[p].density;
    curve.points[p] = sparse(points[p], selection);
  }
  return curve;
}

}  // namespace

Result<Curve> probe(const Encoder& encoder, std::span<const float> gradient,
                    std::span<const Point> points, Workspace& workspace) {
  if (auto wrong = check(encoder, gradient, points)) return *std::move(wrong);
  return Probe(encoder, gradient.data(), workspace).run(points);
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
