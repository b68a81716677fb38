#include "plan/measurement.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "base/check.h"
#include "base/crc.h"
#include "base/little_endian.h"
#include "base/version.h"

namespace scant::plan {
namespace {

constexpr size_t kHeaderBytes = 16;
constexpr size_t kScalars = 13;
constexpr size_t kSoundings = 7;

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  // Of two in the middle the lower: a pause makes steps longer, never shorter.
  const auto middle = values.begin() + static_cast<ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <typename Get>
double median_of(const std::vector<gradient::StepReport>& reports, const Get& get) {
  std::vector<double> values;
  values.reserve(reports.size());
  for (const gradient::StepReport& report : reports) values.push_back(get(report));
  return median(std::move(values));
}

double work_of(const gradient::StepReport& report) {
  return report.encode_s + report.add_s + report.decode_s;
}

double overlapped_work(const gradient::StepReport& report) {
  return work_of(report) * beside_computing(report.end_s, report.exposed_s);
}

struct Fidelity {
  double kept = 1;
  double residual = 0;
};

Fidelity fidelity_of(const std::vector<gradient::StepReport>& reports,
                     const gradient::Layout& layout) {
  double elements = 0;
  double kept = 0;
  double energy = 0;
  double left = 0;
  for (const gradient::StepReport& report : reports) {
    for (size_t p = 0; p < report.parts.size(); ++p) {
      const gradient::PartReport& part = report.parts[p];
      if (!(part.energy > 0) || !std::isfinite(part.energy)) continue;
      const auto n = static_cast<double>(layout.parts()[p].range.elements);
      elements += n;
      kept += n * std::clamp(1 - part.energy_left / part.energy, 0.0, 1.0);
      energy += part.energy;
      left += part.energy_left;
    }
  }
  if (elements == 0) return {};
  // The gradient and what was left before are taken to be independent.
  const double gradient = std::max(energy - left, 1e-12 * energy);
  return {kept / elements, std::sqrt(left / gradient)};
}

void put(std::byte*& at, double value) {
  base::store_little(at, std::bit_cast<uint64_t>(value));
  at += sizeof value;
}
// What a field may be, from 0.
constexpr double kSecondsMost = 1e6;
constexpr double kBytesMost = 1e18;
constexpr double kCountMost = 1e18;
constexpr double kShareMost = 1.001;  // a mean of ones, rounded
constexpr double kEnergyMost = 1e100;

template <typename Of>
struct Field {
  double Of::*field;
  double most;
};
constexpr Field<Measurement> kScalarFields[kScalars] = {
    {&Measurement::steps, kCountMost},
    {&Measurement::step_s, kSecondsMost},
    {&Measurement::backward_s, kSecondsMost},
    {&Measurement::exposed_s, kSecondsMost},
    {&Measurement::end_s, kSecondsMost},
    {&Measurement::encode_s, kSecondsMost},
    {&Measurement::add_s, kSecondsMost},
    {&Measurement::decode_s, kSecondsMost},
    {&Measurement::overlapped_work_s, kSecondsMost},
    {&Measurement::sent_bytes, kBytesMost},
    {&Measurement::nonfinite, kCountMost},
    {&Measurement::kept, kShareMost},
    {&Measurement::residual, kCountMost}};

constexpr Field<SoundingTimes> kSoundingFields[kSoundings] = {
    {&SoundingTimes::small_s, kSecondsMost},       {&SoundingTimes::exchange_s, kSecondsMost},
    {&SoundingTimes::exchange_bytes, kBytesMost},  {&SoundingTimes::reduce_s, kSecondsMost},
    {&SoundingTimes::reduce_bytes, kBytesMost},    {&SoundingTimes::small_cpu_s, kSecondsMost},
    {&SoundingTimes::exchange_cpu_s, kSecondsMost}};

// The numbers of a measurement, one after the other; remembers whether one was none.
class Numbers {
 public:
  explicit Numbers(const std::byte* at) : at_(at) {}
  double take(double least, double most) {
    const double value = std::bit_cast<double>(base::load_little<uint64_t>(at_));
    at_ += sizeof value;
    if (value >= least && value <= most) return value;  // not NaN either
    wrong_ = true;
    return 0;
  }
  [[nodiscard]] bool wrong() const { return wrong_; }

 private:
  const std::byte* at_;
  bool wrong_ = false;
};

}  // namespace

void Profiler::begin(uint32_t skipped) {
  skipped_ = skipped;
  reports_.clear();
  step_s_.clear();
}

void Profiler::add(const gradient::StepReport& report, std::optional<double> step_s) {
  if (skipped_ > 0) {
    --skipped_;
    return;
  }
  reports_.push_back(report);
  if (step_s) step_s_.push_back(*step_s);
}

Measurement Profiler::finish() const {
  Measurement out;
  const size_t parts = layout_.parts().size();
  out.ready_s.assign(parts, 0);
  out.needed_s.assign(parts, 0);
  out.steps = static_cast<double>(reports_.size());
  if (reports_.empty()) return out;
  out.backward_s = median_of(reports_, [](const gradient::StepReport& r) { return r.backward_s; });
  out.exposed_s = median_of(reports_, [](const gradient::StepReport& r) { return r.exposed_s; });
  out.end_s = median_of(reports_, [](const gradient::StepReport& r) { return r.end_s; });
  out.step_s = step_s_.empty() ? out.backward_s + out.exposed_s : median(step_s_);
  out.encode_s = median_of(reports_, [](const gradient::StepReport& r) { return r.encode_s; });
  out.add_s = median_of(reports_, [](const gradient::StepReport& r) { return r.add_s; });
  out.decode_s = median_of(reports_, [](const gradient::StepReport& r) { return r.decode_s; });
  out.overlapped_work_s = median_of(reports_, overlapped_work);
  for (const gradient::StepReport& report : reports_) {
    out.sent_bytes += static_cast<double>(report.sent_bytes) / out.steps;
    out.nonfinite += static_cast<double>(report.nonfinite);
  }
  const Fidelity fidelity = fidelity_of(reports_, layout_);
  out.kept = fidelity.kept;
  out.residual = fidelity.residual;
  for (size_t p = 0; p < parts; ++p) {
    out.ready_s[p] =
        median_of(reports_, [p](const gradient::StepReport& r) { return r.parts[p].ready; });
    out.needed_s[p] =
        median_of(reports_, [p](const gradient::StepReport& r) { return r.parts[p].needed; });
  }
  out.curves = reports_.back().curves;
  for (codec::Curve& curve : out.curves) {
    if (!std::isfinite(curve.energy)) curve = {};
    for (codec::CurvePoint& point : curve.points) {
      if (!std::isfinite(point.energy)) point.energy = 0;
    }
    for (double& held : curve.held) {
      if (!std::isfinite(held)) held = 0;
    }
  }
  return out;
}

size_t measurement_bytes(size_t parts, bool curves) {
  const size_t curve = curves ? 1 + codec::default_points().size() + codec::kHeldRanks.size() : 0;
  const size_t doubles = kScalars + kSoundings + 2 * parts + parts * curve;
  return kHeaderBytes + doubles * sizeof(double) + sizeof(uint32_t);
}

void write_measurement(const Measurement& measurement, MutableBytes to) {
  const size_t parts = measurement.ready_s.size();
  const size_t points = codec::default_points().size();
  const bool curves = !measurement.curves.empty();
  SCANT_CHECK(to.size() == measurement_bytes(parts, curves));
  base::store_little(to.data(), kMeasurementMagic);
  base::store_little(to.data() + 4, kMeasurementVersion);
  base::store_little(to.data() + 6, uint16_t{0});
  base::store_little(to.data() + 8, static_cast<uint32_t>(parts));
  base::store_little(to.data() + 12, static_cast<uint32_t>(measurement.curves.size()));
  std::byte* at = to.data() + kHeaderBytes;
  for (const auto& one : kScalarFields) put(at, measurement.*one.field);
  for (const auto& one : kSoundingFields) put(at, measurement.sounding.*one.field);
  SCANT_CHECK(measurement.needed_s.size() == parts);
  for (const double ready : measurement.ready_s) put(at, ready);
  for (const double needed : measurement.needed_s) put(at, needed);
  for (const codec::Curve& curve : measurement.curves) {
    put(at, curve.energy);
    for (size_t i = 0; i < points; ++i)
      put(at, i < curve.points.size() ? curve.points[i].energy : 0);
    for (const double held : curve.held) put(at, held);
  }
  base::store_little(at, base::crc32c(Bytes(to).first(to.size() - sizeof(uint32_t))));
}

Result<Measurement> read_measurement(Bytes from, const gradient::Layout& layout, bool curves) {
  const size_t parts = layout.parts().size();
  const auto damaged = [](const char* what) {
    return Error{.code = ErrorCode::corrupt, .message = std::string("measurement: ") + what};
  };
  if (from.size() != measurement_bytes(parts, curves)) return damaged("another length");
  if (base::load_little<uint32_t>(from.data()) != kMeasurementMagic)
    return damaged("no such thing");
  const auto version = base::load_little<uint16_t>(from.data() + 4);
  if (version != kMeasurementVersion) {
    return base::other_version("the measurement", version, kMeasurementVersion);
  }
  const size_t end = from.size() - sizeof(uint32_t);
  if (base::load_little<uint32_t>(from.data() + end) != base::crc32c(from.first(end))) {
    return damaged("its checksum is wrong");
  }
  if (base::load_little<uint32_t>(from.data() + 8) != parts ||
      base::load_little<uint32_t>(from.data() + 12) != (curves ? parts : 0)) {
    return Error{.code = ErrorCode::mismatch, .message = "measurement: of another model"};
  }
  Measurement out;
  Numbers numbers(from.data() + kHeaderBytes);
  for (const auto& one : kScalarFields) out.*one.field = numbers.take(0, one.most);
  for (const auto& one : kSoundingFields) {
    out.sounding.*one.field = numbers.take(0, one.most);
  }
  for (size_t p = 0; p < parts; ++p) out.ready_s.push_back(numbers.take(0, kSecondsMost));
  for (size_t p = 0; p < parts; ++p) out.needed_s.push_back(numbers.take(0, kSecondsMost));
  for (size_t p = 0; p < (curves ? parts : 0); ++p) {
    codec::Curve& curve = out.curves.emplace_back();
    curve.energy = numbers.take(0, kEnergyMost);
    const uint64_t elements = layout.parts()[p].range.elements;
    for (const codec::Point point : codec::default_points()) {
      // A coarse point may miss by more than there is.
      curve.points.push_back({point, codec::expected_record_bytes(elements, point),
                              numbers.take(-kEnergyMost, kEnergyMost)});
    }
    for (double& held : curve.held) held = numbers.take(0, kEnergyMost);
  }
  if (numbers.wrong()) return damaged("a number that nobody measures");
  return out;
}

}  // namespace scant::plan
