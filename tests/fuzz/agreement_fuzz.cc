// Agreements of the planner. What parses is the same bytes again; a tuner that was told anything
// that passes for a measurement decides something that passes for a decision, again and again.
// Input: mode, then a decision's bytes, a measurement's, or what numbers of measurements are made
// of, two bytes each.
#include <bit>
#include <cmath>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "fuzz_input.h"
#include "plan/decision.h"
#include "plan/measurement.h"
#include "plan/tuner.h"

using namespace scant;

namespace {

constexpr uint8_t kKinds = 3;
constexpr uint8_t kSealed = 4;  // magic, version, counts and checksum are put right
constexpr uint8_t kCurves = 8;
constexpr uint8_t kExact = 16;  // fidelity_min 1
constexpr int kPeriods = 12;

const gradient::Layout& layout() {
  static const gradient::Layout made = [] {
    const std::vector<codec::Shape> shapes = {{1, 10}, {300, 300}, {1, 1}};
    return gradient::Layout::create(shapes, 3).value();
  }();
  return made;
}

void put_checksum(MutableBytes bytes) {
  const size_t body = bytes.size() - sizeof(uint32_t);
  base::store_little(bytes.data() + body, base::crc32c(Bytes(bytes).first(body)));
}

void check_decision(const plan::Decision& decision) {
  SCANT_CHECK(gradient::validate(decision.plan, layout()).ok());
  const auto bytes = plan::serialise(decision, layout());
  const auto again = plan::parse_decision(bytes, layout());
  SCANT_CHECK(again.ok() && again.value() == decision);
}

void look_at_decision(Bytes given, bool sealed) {
  std::vector<std::byte> bytes(given.begin(), given.end());
  if (sealed) {
    bytes.resize(plan::decision_bytes(layout()));
    base::store_little(bytes.data(), plan::kDecisionMagic);
    base::store_little(bytes.data() + 4, uint16_t{1});
    put_checksum(bytes);
  }
  const auto parsed = plan::parse_decision(bytes, layout());
  if (parsed) {
    check_decision(parsed.value());
    SCANT_CHECK(fuzz::equal(plan::serialise(parsed.value(), layout()), bytes));
  }
}

void look_at_measurement(Bytes given, bool sealed, bool curves) {
  const size_t parts = layout().parts().size();
  std::vector<std::byte> bytes(given.begin(), given.end());
  if (sealed) {
    bytes.resize(plan::measurement_bytes(parts, curves));
    base::store_little(bytes.data(), plan::kMeasurementMagic);
    base::store_little(bytes.data() + 4, plan::kMeasurementVersion);
    base::store_little(bytes.data() + 6, uint16_t{0});
    base::store_little(bytes.data() + 8, static_cast<uint32_t>(parts));
    base::store_little(bytes.data() + 12, static_cast<uint32_t>(curves ? parts : 0));
    put_checksum(bytes);
  }
  const auto parsed = plan::read_measurement(bytes, layout(), curves);
  if (!parsed) return;
  std::vector<std::byte> again(bytes.size());
  plan::write_measurement(parsed.value(), again);
  SCANT_CHECK(plan::read_measurement(again, layout(), curves).ok());
}

// From 2^-128 to 2^127, or 0.
double number(fuzz::Input& input) {
  const uint16_t drawn = input.half();
  if (drawn == 0) return 0;
  return std::ldexp(1 + (drawn & 0xFF) / 256.0, (drawn >> 8) - 128);
}

std::vector<std::byte> measured(fuzz::Input& input, bool curves) {
  const size_t parts = layout().parts().size();
  std::vector<std::byte> bytes(plan::measurement_bytes(parts, curves));
  plan::Measurement empty;
  empty.ready_s.assign(parts, 0);
  empty.needed_s.assign(parts, 0);
  if (curves) empty.curves.resize(parts);
  plan::write_measurement(empty, bytes);
  constexpr size_t kHeaderBytes = 16;
  for (size_t at = kHeaderBytes; at + 12 <= bytes.size(); at += sizeof(double)) {
    base::store_little(bytes.data() + at, std::bit_cast<uint64_t>(number(input)));
  }
  put_checksum(bytes);
  return bytes;
}

void tune(fuzz::Input& input, double fidelity_min) {
  const plan::TunerOptions options{.fidelity_min = fidelity_min};
  plan::Tuner tuner(layout(), plan::WorkRates{}, options);
  plan::Decision decision = plan::Tuner::first(layout(), options);
  for (int period = 0; period < kPeriods && !input.rest().empty(); ++period) {
    std::vector<plan::Measurement> by_rank;
    for (int rank = 0; rank < layout().ranks(); ++rank) {
      auto one =
          plan::read_measurement(measured(input, decision.curves), layout(), decision.curves);
      if (!one) return;
      by_rank.push_back(std::move(one).value());
    }
    decision = tuner.decide(by_rank, std::min(number(input), 1e6));
    check_decision(decision);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  switch (mode % kKinds) {
    case 0:
      look_at_decision(input.rest(), (mode & kSealed) != 0);
      break;
    case 1:
      look_at_measurement(input.rest(), (mode & kSealed) != 0, (mode & kCurves) != 0);
      break;
    default:
      tune(input, (mode & kExact) != 0 ? 1 : 0);
  }
  return 0;
}
