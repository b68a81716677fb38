// Trainings of several members whose plans follow what they measure, in virtual time: over fast
// and slow links, links that change, with members who go, who lie, and whose operations fail.
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <string>

#include "plan/testing/agreeing_members.h"
#include "plan/testing/hand_driven_exchange.h"

namespace scant::plan {
namespace {

using gradient::Operation;
using Kind = Operation::Kind;
using State = Agreement::State;

const std::vector<uint64_t> kSizes = {800'000, 800'000, 3'000, 800'000, 800'000};

Error lost() { return {.code = ErrorCode::peer_lost, .message = "rank 0 is gone"}; }

class Training {
 public:
  Training(int members, double bytes_per_s, const TunerOptions& tuning = {}, double given_work = 1)
      : network(members, 1e-4, bytes_per_s), world(kSizes, members), layout_(world.layout()) {
    set_link(bytes_per_s);
    for (Rank station = 0; station < members; ++station) {
      all_.push_back(std::make_unique<AgreeingMember>(
          network.at(station), layout_, AgreementOptions{.tuning = tuning}, rates(given_work)));
    }
  }

  void set_link(double bytes_per_s) {
    network.bytes_per_s = bytes_per_s;
    world.set_link(network.alpha_s, bytes_per_s);
  }
  void begin() {
    for (const Rank station : network.stations()) at(station).begin(network.members_at(station));
  }
  // The others go on in a world of theirs.
  void only(const std::vector<Rank>& stations) {
    network.leave(stations);
    const double hidden = world.hidden;
    world = World(kSizes, static_cast<int>(stations.size()));
    world.hidden = hidden;
    set_link(network.bytes_per_s);
    begin();
  }
  // Steps until an agreement begins.
  void period() {
    for (uint32_t i = 0; network.idle(); ++i) {
      ASSERT_LT(i, 1'000'000u);
      network.now += duration_of(first().step_s(world));
      for (const Rank station : network.stations()) at(station).step(world);
    }
  }
  void carry_until(State state) {
    while (first().agreement().state() != state) ASSERT_NO_FATAL_FAILURE(network.carry());
  }
  void agreements(int times) {
    for (int i = 0; i < times; ++i) {
      ASSERT_NO_FATAL_FAILURE(period());
      ASSERT_NO_FATAL_FAILURE(network.carry_all());
      ASSERT_NO_FATAL_FAILURE(expect_one_decision());
    }
  }
  void expect_one_decision() const {
    for (const Rank station : network.stations()) {
      ASSERT_TRUE(at(station).running()) << "station " << station;
      EXPECT_EQ(at(station).agreement().decision(), first().agreement().decision());
      EXPECT_TRUE(validate(at(station).agreement().decision().plan, layout_).ok());
      if (&at(station) != &first()) {
        EXPECT_EQ(at(station).agreement().findings(), nullptr);
      }
    }
  }
  [[nodiscard]] AgreeingMember& at(Rank station) const {
    return *all_[static_cast<size_t>(station)];
  }
  [[nodiscard]] AgreeingMember& first() const { return at(network.stations().front()); }
  [[nodiscard]] const Decision& decision() const { return first().agreement().decision(); }
  [[nodiscard]] const Findings& findings() const { return *first().agreement().findings(); }

  HandDrivenNetwork network;
  World world;

 private:
  const gradient::Layout layout_;  // of all who were there at first
  std::vector<std::unique_ptr<AgreeingMember>> all_;
};

// 4 MiB in 8 ms are 524 MB/s: faster links are asked with 4 MiB.
TEST(FirstSounding, GrowsUntilItTellsTheRate) {
  const std::pair<double, uint32_t> cases[] = {
      {1e5, 16u << 10}, {4e6, 64u << 10}, {2e7, 256u << 10}, {1e8, 1u << 20}, {1e10, 4u << 20}};
  for (const auto& [bytes_per_s, bytes] : cases) {
    SCOPED_TRACE(bytes_per_s);
    Training training(4, bytes_per_s);
    training.begin();
    training.network.carry_all();
    training.expect_one_decision();
    EXPECT_EQ(training.decision().sounding_bytes, bytes);
  }
}

TEST(FirstSounding, ASlowLinkIsMeasuredWithFewBits) {
  const std::pair<double, codec::ValueKind> cases[] = {
      {1e9, codec::ValueKind::bf16}, {2.9e7, codec::ValueKind::q8}, {1e6, codec::ValueKind::q4}};
  for (const auto& [bytes_per_s, values] : cases) {
    Training training(4, bytes_per_s);
    training.begin();
    training.network.carry_all();
    const gradient::FusionPlan& plan = training.decision().plan;
    ASSERT_FALSE(is_plain(plan)) << bytes_per_s;
    EXPECT_EQ(plan.buffers[0].points[0].first.values, values) << bytes_per_s;
  }
}

TEST(Agreements, OnAFastLinkPlainRuns) {
  Training training(4, 5e9);
  training.begin();
  training.network.carry_all();
  training.agreements(8);
  EXPECT_TRUE(is_plain(training.decision().plan));
  EXPECT_LT(training.findings().rho, 0.1);
}

TEST(Agreements, OnASlowLinkTheyCompressAndLeaveThatWhenItRises) {
  Training training(4, 1e7);
  training.begin();
  training.network.carry_all();
  training.agreements(8);
  ASSERT_FALSE(is_plain(training.decision().plan));
  EXPECT_NEAR(training.findings().link.bytes_per_s, 1e7, 0.1 * 1e7);
  training.set_link(5e9);
  int agreements = 0;
  while (!is_plain(training.decision().plan) && agreements++ < 10)
    ASSERT_NO_FATAL_FAILURE(training.agreements(1));
  EXPECT_LE(agreements, 3);
  training.agreements(8);
  EXPECT_TRUE(is_plain(training.decision().plan));
}

// What no model knows makes compressed steps four times as long: the guard says so, plain runs.
TEST(Agreements, TheGuardLeavesAPlanThatLoses) {
  Training training(4, 1e8);
  training.begin();
  training.network.carry_all();
  training.agreements(8);
  ASSERT_FALSE(is_plain(training.decision().plan));
  training.world.hidden = 4;
  std::string guard;
  for (int i = 0; guard.empty() && i < 10; ++i) {
    ASSERT_NO_FATAL_FAILURE(training.agreements(1));
    guard = training.findings().guard;
  }
  EXPECT_NE(guard.find("plain makes more progress"), std::string::npos) << guard;
  training.agreements(8);
  EXPECT_TRUE(is_plain(training.decision().plan));
}

// One member, whatever it decides, asks nobody.
TEST(Agreements, OneMemberRunsPlainAndIsDoneWithItself) {
  Training training(1, 1e8);
  training.begin();
  EXPECT_TRUE(training.network.idle());
  training.agreements(3);
  EXPECT_TRUE(is_plain(training.decision().plan));
  EXPECT_EQ(training.decision().sounding_bytes, 0u);
}

struct Lie {
  const char* name;
  std::function<void(MutableBytes)> change;
  ErrorCode code;
  const char* says;
};

// Numbers that nobody measures, sealed by a checksum that fits.
void claim(MutableBytes bytes, const World& world, double Measurement::*field, double value) {
  const bool curves = bytes.size() == measurement_bytes(world.layout().parts().size(), true);
  Measurement measured = read_measurement(bytes, world.layout(), curves).value();
  measured.*field = value;
  write_measurement(measured, bytes);
}

TEST(Agreements, AMeasurementThatLiesEndsThemOnAllMembers) {
  const World world(kSizes, 4);
  const Lie lies[] = {
      {"a bit", [](MutableBytes bytes) { bytes[40] ^= std::byte{1}; }, ErrorCode::corrupt,
       "checksum"},
      {"zeros", [](MutableBytes bytes) { std::memset(bytes.data(), 0, bytes.size()); },
       ErrorCode::corrupt, "no such thing"},
      {"version", [](MutableBytes bytes) { bytes[4] = std::byte{9}; }, ErrorCode::unsupported,
       "version"},
      {"nan",
       [&](MutableBytes bytes) {
         claim(bytes, world, &Measurement::step_s, std::numeric_limits<double>::quiet_NaN());
       },
       ErrorCode::corrupt, "nobody measures"},
      {"negative", [&](MutableBytes bytes) { claim(bytes, world, &Measurement::backward_s, -1); },
       ErrorCode::corrupt, "nobody measures"},
      {"too long", [&](MutableBytes bytes) { claim(bytes, world, &Measurement::exposed_s, 1e7); },
       ErrorCode::corrupt, "nobody measures"}};
  for (const Lie& lie : lies) {
    SCOPED_TRACE(lie.name);
    Training training(4, 1e8);
    training.begin();
    training.network.carry_all();
    training.period();
    training.network.tamper = [&](std::vector<Operation*>& all) {
      if (all[0]->kind == Kind::gather) lie.change(all[0]->room[2]);
    };
    training.network.carry_all();
    EXPECT_EQ(training.first().agreement().findings(), nullptr);
    for (Rank station = 0; station < 4; ++station) {
      const Agreement& one = training.at(station).agreement();
      ASSERT_EQ(one.state(), State::failed) << "station " << station;
      EXPECT_EQ(one.error()->code, station == 0 ? lie.code : ErrorCode::corrupt);
      const char* says = station == 0 ? lie.says : "decision: no such thing";
      EXPECT_NE(one.error()->message.find(says), std::string::npos) << one.error()->message;
    }
  }
}

TEST(Agreements, ADecisionThatIsDamagedOnItsWayEndsThemThere) {
  Training training(3, 1e8);
  training.begin();
  training.network.carry_all();
  training.period();
  training.network.tamper = [](std::vector<Operation*>& all) {
    if (all[0]->kind == Kind::broadcast) all[2]->span[30] ^= std::byte{1};
  };
  training.network.carry_all();
  EXPECT_TRUE(training.at(0).running());
  EXPECT_TRUE(training.at(1).running());
  ASSERT_EQ(training.at(2).agreement().state(), State::failed);
  EXPECT_EQ(training.at(2).agreement().error()->code, ErrorCode::corrupt);
}

TEST(FirstSounding, ATimeThatNobodyMeasuresEndsItOnAllMembers) {
  const double none = std::numeric_limits<double>::quiet_NaN();
  for (const double claimed : {none, std::numeric_limits<double>::infinity(), 1e7}) {
    SCOPED_TRACE(claimed);
    Training training(3, 1e8);
    training.begin();
    training.network.tamper = [&](std::vector<Operation*>& all) {
      if (all[0]->dtype != DType::f64) return;
      for (Operation* one : all) std::memcpy(one->span.data(), &claimed, sizeof claimed);
    };
    training.network.carry_all();
    for (Rank station = 0; station < 3; ++station) {
      const Agreement& one = training.at(station).agreement();
      ASSERT_EQ(one.state(), State::failed);
      EXPECT_EQ(one.error()->code, ErrorCode::corrupt);
    }
  }
}

// By its states: the first member dies, all operations fail, and the others begin anew.
TEST(Members, ThatAreLeftAgreeAnewWhereverOneIsLost) {
  for (const State stage : {State::first_sounding, State::slowest, State::running, State::sounding,
                            State::gathering, State::telling}) {
    SCOPED_TRACE(static_cast<int>(stage));
    Training training(4, 1e7);
    training.begin();
    if (stage != State::first_sounding && stage != State::slowest) {
      training.network.carry_all();
      training.agreements(5);
      if (stage != State::running) training.period();
    }
    ASSERT_NO_FATAL_FAILURE(training.carry_until(stage));
    training.network.fail(lost());
    if (stage != State::running) {
      for (Rank station = 0; station < 4; ++station)
        EXPECT_EQ(training.at(station).agreement().error()->message, lost().message);
    }
    training.only({1, 2, 3});
    training.network.carry_all();
    ASSERT_NO_FATAL_FAILURE(training.expect_one_decision());
    EXPECT_EQ(training.first().agreement().findings(), nullptr);
    training.agreements(8);
    EXPECT_FALSE(is_plain(training.decision().plan));
    // Of three, each sends two thirds twice.
    EXPECT_NEAR(training.findings().dense_bytes, 2 * 2.0 / 3 * 4 * 3'203'000, 1000);
  }
}

TEST(Members, WhoComeAreAskedToo) {
  Training training(4, 1e7);
  training.network.leave({0, 1});
  training.only({0, 1});
  training.network.carry_all();
  training.agreements(4);
  training.only({0, 1, 2, 3});
  training.network.carry_all();
  training.agreements(6);
  EXPECT_FALSE(is_plain(training.decision().plan));
  EXPECT_NEAR(training.findings().dense_bytes, 2 * 3.0 / 4 * 4 * 3'203'000, 1000);
}

// A correction goes by a factor of four at most. The machine is 17 times as slow as its trials say,
// so that one period cannot tell, and what was known shows.
TEST(Members, KeepWhatTheStepsTaughtOfTheFirstMembersMachine) {
  const double truth = rates(1.7).record_s;
  for (const bool same_first : {true, false}) {
    SCOPED_TRACE(same_first);
    Training training(4, 1e7, {}, 0.1);
    training.begin();
    training.network.carry_all();
    training.agreements(6);
    EXPECT_NEAR(training.first().agreement().findings()->choice->profile.work.record_s, truth,
                0.1 * truth);
    training.only(same_first ? std::vector<Rank>{0, 2, 3} : std::vector<Rank>{1, 2, 3});
    training.network.carry_all();
    training.agreements(1);
    const double known = training.findings().choice->profile.work.record_s;
    if (same_first) {
      EXPECT_NEAR(known, truth, 0.1 * truth);
    } else {
      EXPECT_NEAR(known, 4 * rates(0.1).record_s, 1e-9);
    }
  }
}

}  // namespace
}  // namespace scant::plan
