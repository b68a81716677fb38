// What ranks measured and what rank 0 decides, as bytes.
#include "plan/measurement.h"

#include <cmath>
#include <gtest/gtest.h>
#include <utility>
#include <vector>

#include "plan/decision.h"
#include "plan/testing/tuner_world.h"

namespace scant::plan {
namespace {

const std::vector<uint64_t> kSizes = {800'000, 800'000, 3'000, 800'000, 800'000};

TEST(MeasurementBytes, ComeBackAsTheyWere) {
  World world(kSizes);
  const Decision decision = Tuner::first(world.layout(), {});
  Measurement one = world.measure(decision).front();
  for (size_t p = 0; p < one.needed_s.size(); ++p) one.needed_s[p] = 0.01 * static_cast<double>(p);
  std::vector<std::byte> bytes(measurement_bytes(one.ready_s.size(), !one.curves.empty()));
  write_measurement(one, bytes);
  const auto back = read_measurement(bytes, world.layout(), true);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back.value().step_s, one.step_s);
  EXPECT_EQ(back.value().kept, one.kept);
  EXPECT_EQ(back.value().ready_s, one.ready_s);
  EXPECT_EQ(back.value().needed_s, one.needed_s);
  EXPECT_EQ(back.value().sounding.reduce_s, one.sounding.reduce_s);
  EXPECT_EQ(back.value().curves.back().points.back().energy,
            one.curves.back().points.back().energy);
}

TEST(MeasurementBytes, EveryFlippedBitIsNoticed) {
  World world({5'000, 100});
  const Measurement one = world.measure(Tuner::first(world.layout(), {.fidelity_min = 1})).front();
  std::vector<std::byte> bytes(measurement_bytes(one.ready_s.size(), false));
  write_measurement(one, bytes);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] ^= std::byte{1} << bit % 8;
    EXPECT_FALSE(read_measurement(bytes, world.layout(), false).ok()) << bit;
    bytes[bit / 8] ^= std::byte{1} << bit % 8;
  }
}

TEST(MeasurementBytes, NumbersThatNobodyMeasuresAreRefused) {
  World world(kSizes);
  Measurement one = world.measure(Tuner::first(world.layout(), {.fidelity_min = 1})).front();
  std::vector<std::byte> bytes(measurement_bytes(one.ready_s.size(), false));
  const auto refused = [&](double Measurement::*field, double value) {
    const double before = std::exchange(one.*field, value);
    write_measurement(one, bytes);
    one.*field = before;
    const auto read = read_measurement(bytes, world.layout(), false);
    return !read && read.error().code == ErrorCode::corrupt;
  };
  EXPECT_FALSE(refused(&Measurement::step_s, 1e6));
  EXPECT_TRUE(refused(&Measurement::step_s, 1.1e6));
  EXPECT_TRUE(refused(&Measurement::backward_s, -1e-9));
  EXPECT_TRUE(refused(&Measurement::kept, 1.1));
  EXPECT_TRUE(refused(&Measurement::residual, std::nan("")));
  EXPECT_TRUE(refused(&Measurement::sent_bytes, INFINITY));
}

TEST(MeasurementBytes, ANewerVersionIsRefusedByName) {
  World world(kSizes);
  const Measurement one = world.measure(Tuner::first(world.layout(), {.fidelity_min = 1})).front();
  std::vector<std::byte> bytes(measurement_bytes(one.ready_s.size(), false));
  write_measurement(one, bytes);
  bytes[4] = std::byte{99};
  const auto read = read_measurement(bytes, world.layout(), false);
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, ErrorCode::unsupported);
  EXPECT_EQ(read.error().message.find("the measurement is of version 99; this scant reads up to"),
            0U)
      << read.error().message;
}

TEST(DecisionBytes, ANewerVersionIsRefusedByName) {
  World world(kSizes);
  std::vector<std::byte> bytes =
      serialise(Tuner::first(world.layout(), {.fidelity_min = 1}), world.layout());
  bytes[4] = std::byte{99};
  const auto read = parse_decision(bytes, world.layout());
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.error().code, ErrorCode::unsupported);
  EXPECT_EQ(read.error().message.find("the decision is of version 99; this scant reads up to"), 0U)
      << read.error().message;
}

TEST(DecisionBytes, ComeBackAndAreGuarded) {
  World world(kSizes);
  for (const double floor : {0.0, 1.0}) {
    const Decision decision = Tuner::first(world.layout(), {.fidelity_min = floor});
    std::vector<std::byte> bytes = serialise(decision, world.layout());
    EXPECT_EQ(bytes.size(), decision_bytes(world.layout()));
    const auto back = parse_decision(bytes, world.layout());
    ASSERT_TRUE(back.ok()) << back.error().to_string();
    EXPECT_EQ(back.value(), decision);
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      bytes[bit / 8] ^= std::byte{1} << bit % 8;
      EXPECT_FALSE(parse_decision(bytes, world.layout()).ok()) << bit;
      bytes[bit / 8] ^= std::byte{1} << bit % 8;
    }
    EXPECT_FALSE(parse_decision(Bytes(bytes).first(bytes.size() - 1), world.layout()).ok());
  }
}

}  // namespace
}  // namespace scant::plan
