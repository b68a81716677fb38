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
constexpr uint64_t kSampleShare = 1024;   // the sample is this part of the range
constexpr uint64_t kSampleElementsMin = 8192;
constexpr uint64_t kSampleElementsMax = kSparseBlockElements;
// With fewer entries than this in a sample, the law of independent positions is closer to what a
// record takes than the sample's own gaps.
constexpr size_t kGapEntriesMin = 32;
constexpr double kGapSurplusMax = 1.1;  // of what passes by what is meant
// So many values tell which share of the energy a kind keeps.
constexpr size_t kQuantisedMax = 4096;
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
  static constexpr unsigned kBinShift = 18;  // 32 bins an octave
  struct Selection {                         // its values stand in the scratch memory
    double density = 1;
    size_t count = 0;
    double energy = 0;          // of those that are meant
    double entries = 0;         // of a record
    double position_bytes = 0;  // of a record
  };

  void take_sample(const float* gradient);
  void count_bins();
  CurvePoint dense(Point point);
  Selection select(double density);
  CurvePoint sparse(Point point, const Selection& selection);
  // Which part of the values' energy the kind keeps.
  double kept_share(ValueKind kind, const float* values, size_t n);

  const Encoder& encoder_;
  Workspace::Scratch& scratch_;
  uint64_t elements_;
  size_t size_ = 0;  // of the sample
  float* sample_ = nullptr;
  std::byte* payload_ = nullptr;
  double scale_ = 0;  // elements for each one of the sample
  double energy_ = 0;
  std::array<uint32_t, 1u << (31 - kBinShift)> bins_{};
  // Densities come in ascending order: the search for a bin goes on where the last one ended.
  uint32_t bin_ = 0;
  size_t above_ = 0;  // values beyond it
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
  if (kernels().accumulate(nullptr, sample_, size_, 1.0f).magnitude_max >= kInfinityBits)
    std::replace_if(
        sample_, sample_ + size_, [](float v) { return !is_finite(v); }, 0.0f);
}

void Probe::count_bins() {
  for (size_t i = 0; i < size_; ++i) ++bins_[magnitude_bits(sample_[i]) >> kBinShift];
  bin_ = static_cast<uint32_t>(bins_.size() - 1);
}

double Probe::kept_share(ValueKind kind, const float* values, size_t n) {
  if (kind == ValueKind::f32) return 1;
  float* work = scratch_.work();
  // Whole quads, where there is one: what is left behind the last takes longer than it tells.
  const size_t most = std::min(n, kQuantisedMax);
  const size_t used = most < kQuadElements ? most : most / kQuadElements * kQuadElements;
  // Whole pieces, spread evenly; with few values each piece is the next one.
  const size_t pieces = (used + kPieceElements - 1) / kPieceElements;
  for (size_t piece = 0; piece < pieces; ++piece) {
    const size_t to = piece * kPieceElements;
    const size_t from = used == n ? to : n / kPieceElements * piece / pieces * kPieceElements;
    std::copy_n(values + from, std::min<size_t>(kPieceElements, used - to), work + to);
  }
  const double energy = energy_of(work, used);
  if (energy == 0) return 0;
  const auto key = static_cast<uint32_t>(
      base::random_at(encoder_.options().seed, encoder_.step(), ~uint64_t{0}));
  BlockHeader header;
  write_values(kind, {encoder_.options().stochastic, {.add = key, .flip = ~key}},
               kernels().accumulate(nullptr, work, used, 1.0f).magnitude_max, work, used, payload_,
               header);
  return std::max(0.0, 1 - energy_of(work, used) / energy);
}

CurvePoint Probe::dense(Point point) {
  return {.point = point,
          .bytes = static_cast<double>(dense_record_bytes(elements_, point.values)),
          .energy = scale_ * energy_ * kept_share(point.values, sample_, size_)};
}

Probe::Selection Probe::select(double density) {
  const double wanted = density * static_cast<double>(size_);
  while (bin_ > 0 && static_cast<double>(above_ + bins_[bin_]) < wanted) above_ += bins_[bin_--];
  float* values = scratch_.values();
  Selection result{.density = density};
  // All of the last bin pass; those that are too many are taken out again by their mean.
  const float floor = std::max(std::bit_cast<float>(bin_ << kBinShift), kSmallestMagnitude);
  result.count =
      kernels().select(nullptr, sample_, size_, 1.0f, floor, scratch_.positions(), values).count;
  const auto count = static_cast<double>(result.count);
  result.energy = energy_of(values, result.count);
  if (count > wanted) {
    const float ceiling = std::bit_cast<float>((bin_ + 1) << kBinShift);
    double inside = 0;
    for (size_t i = 0; i < result.count; ++i) {
      const auto value = static_cast<double>(values[i]);
      inside += std::fabs(values[i]) < ceiling ? value * value : 0;
    }
    const double surplus = (count - wanted) / (count - static_cast<double>(above_));
    result.energy = std::max(0.0, result.energy - surplus * inside);
  }
  const double meant = std::min(count, wanted);
  result.entries = meant * scale_;
  const bool by_gaps = size_ == elements_ || result.count >= kGapEntriesMin;
  if (result.count > 0 && by_gaps && count <= kGapSurplusMax * wanted) {
    const PositionChoice choice =
        choose_positions({scratch_.positions(), result.count}, static_cast<uint32_t>(size_));
    result.position_bytes = choice.bytes * scale_ * (meant / count);
  } else if (result.count > 0) {
    result.position_bytes =
        result.entries * position_bytes_of_law(result.entries / static_cast<double>(elements_));
  }
  return result;
}

CurvePoint Probe::sparse(Point point, const Selection& selection) {
  const uint64_t blocks = (elements_ + kSparseBlockElements - 1) / kSparseBlockElements;
  CurvePoint result{.point = point, .bytes = kRecordHeaderBytes};
  if (blocks == 0) return result;
  const auto count = static_cast<double>(blocks);
  result.bytes += count * (static_cast<double>(kBlockHeaderBytes) +
                           mean_value_bytes(point.values, selection.entries / count, blocks > 1)) +
                  selection.position_bytes;
  result.energy =
      scale_ * selection.energy * kept_share(point.values, scratch_.values(), selection.count);
  return result;
}

Curve Probe::run(std::span<const Point> points) {
  Curve curve{.energy = scale_ * energy_, .points = std::vector<CurvePoint>(points.size())};
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return points[a].density < points[b].density; });
  Selection selection;
  for (const size_t p : order) {
    const Point point = points[p];
    if (point.density < 1 && selection.density == 1) count_bins();
    if (point.density < 1 && selection.density != point.density) selection = select(point.density);
    curve.points[p] = point.density < 1 ? sparse(point, selection) : dense(point);
  }
  return curve;
}

}  // namespace

Result<Curve> probe(const Encoder& encoder, std::span<const float> gradient,
                    std::span<const Point> points, Workspace& workspace) {
  if (auto wrong = check(encoder, gradient, points)) return *std::move(wrong);
  return Probe(encoder, gradient.data(), workspace).run(points);
}

double expected_record_bytes(uint64_t elements, Point point) {
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
