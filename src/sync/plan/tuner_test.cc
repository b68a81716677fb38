// The tuner, against a world that a table describes: what ranks would measure by the plan that it
// decides follows from true rates, and its choices must follow changes of these.
#include "sync/plan/tuner.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <utility>

#include "sync/plan/progress.h"

namespace scant::sync {
namespace {

using codec::Point;
using codec::ValueKind;

WorkRates rates(double factor = 1) {
  WorkRates work;
  for (auto* kinds : {&work.encode, &work.decode}) {
    for (WorkRates::Kind& kind : *kinds) kind = {0.5e-9 * factor, 2e-9 * factor};
  }
  work.scan_s = 0.3e-9 * factor;
  work.clear_s = 0.3e-9 * factor;
  work.record_s = 2e-6 * factor;
  return work;
}

// As of Gaussian gradients, roughly.
codec::Curve curve_of(uint64_t elements) {
  codec::Curve curve;
  curve.energy = static_cast<double>(elements);
  for (const Point point : codec::default_points()) {
    const double density = std::min(1.0, 2.2 * std::pow(point.density, 0.6));
    const double bits = codec::bits(point.values);
    const double value = std::max(0.3, 1 - 2.5 * std::pow(4.0, -bits));
    curve.points.push_back(
        {point, codec::expected_record_bytes(elements, point), curve.energy * density * value});
  }
  return curve;
}

// What the ranks measure: the prediction with the world's true rates, which the tuner does not
// know. `hidden` is what no model knows: a factor on compressed plans.
class World {
 public:
  explicit World(const std::vector<uint64_t>& sizes, int ranks = 4) {
    std::vector<codec::Shape> shapes;
    for (const uint64_t n : sizes) shapes.push_back({1, n});
    layout_.emplace(Layout::create(shapes, ranks).value());
    const auto parts = static_cast<double>(layout_->parts().size());
    truth.backward_s = 0.2;
    truth.rest_s = 0.1;
    for (double p = 1; p <= parts; ++p) truth.ready_s.push_back(truth.backward_s * p / parts);
    truth.contention = 0.4;
    truth.work = rates(1.7);
    set_link(1e-4, 1e8);
  }

  void set_link(double alpha_s, double bytes_per_s) {
    truth.link = {alpha_s, bytes_per_s, bytes_per_s};
  }
  [[nodiscard]] const Layout& layout() const { return *layout_; }

  std::vector<Measurement> measure(const Decision& decision) const {
    const Prediction step = predict(decision.plan, layout(), truth);
    const double factor = is_plain(decision.plan) ? 1 : hidden;
    Measurement one;
    one.steps = decision.steps - decision.skipped;
    one.step_s = step.step_s * factor + hidden_s(decision.plan);
    one.backward_s = step.backward_s;
    one.exposed_s = step.exposed_s + (factor - 1) * step.step_s + hidden_s(decision.plan);
    one.encode_s = step.work_s;
    one.end_s = std::max(step.end_s, one.backward_s + one.exposed_s);
    one.overlapped_work_s = step.work_s * beside_computing(one.end_s, one.exposed_s);
    one.sent_bytes = step.sent_bytes * (is_plain(decision.plan) ? 1 : more_bytes);
    one.kept = is_plain(decision.plan) ? 1 : kept;
    one.ready_s = truth.ready_s;
    one.needed_s = truth.needed_s;
    one.needed_s.resize(truth.ready_s.size());
    // The first size is not the tuner's to choose.
    one.sounding = sound(std::max(decision.sounding_bytes, 100'000u));
    if (decision.curves) {
      for (const PartLayout& part : layout().parts()) {
        one.curves.push_back(curve_of(part.range.elements));
      }
    }
    return std::vector<Measurement>(static_cast<size_t>(layout().ranks()), one);
  }

  [[nodiscard]] double hidden_s(const FusionPlan& plan) const {
    const bool costs = sent_bytes(plan, layout()) > hidden_from;
    return costs ? hidden_large_s : 0;
  }

  Profile truth;
  double hidden = 1;
  // Nor this: plans that send more bytes take so much longer.
  double hidden_from = 0;
  double hidden_large_s = 0;
  double kept = 0.9;
  double more_bytes = 1;  // of compressed plans, than the law of independent positions has it

 private:
  [[nodiscard]] SoundingTimes sound(double bytes) const {
    SoundingTimes times;
    times.small_s = truth.link.alpha_s;
    times.exchange_bytes = times.reduce_bytes = bytes;
    times.exchange_s = truth.link.alpha_s + bytes / truth.link.bytes_per_s;
    times.reduce_s =
        truth.link.alpha_s * messages_in_a_row(Path::all_reduce, layout().ranks(), bytes) +
        bytes / truth.link.reduced_bytes_per_s;
    return times;
  }
  std::optional<Layout> layout_;
};

// Runs agreements and returns the last decision; every one of them must be valid.
Decision run(World& world, Tuner& tuner, Decision decision, int agreements) {
  for (int i = 0; i < agreements; ++i) {
    decision = tuner.decide(world.measure(decision), 0.002);
    EXPECT_TRUE(validate(decision.plan, world.layout()).ok());
    EXPECT_LT(decision.skipped, decision.steps);
  }
  return decision;
}

double step_s(const World& world, const FusionPlan& plan) {
  return predict(plan, world.layout(), world.truth).step_s * (is_plain(plan) ? 1 : world.hidden);
}

std::vector<codec::Curve> curves(const World& world) {
  std::vector<codec::Curve> all;
  for (const PartLayout& part : world.layout().parts()) {
    all.push_back(curve_of(part.range.elements));
  }
  return all;
}

const std::vector<uint64_t> kSizes = {800'000, 800'000, 3'000, 800'000, 800'000};

// Fewer bits in the first steps cost a training more than in later ones: no fewer than needed.
// The law of independent positions is what a new plan is expected to send; from its second period
// on, what it sent.
TEST(Tuner, BytesOfAPlanThatRanAreThoseItSent) {
  World world({1'000'000, 1'000'000});
  world.more_bytes = 1.04;
  const UniformPlan wanted{.path = Path::split, .point = {0.01, codec::ValueKind::q4}};
  const TunerOptions options{.pinned = uniform_plan(wanted, world.layout())};
  Tuner tuner(world.layout(), world.truth.work, options);
  Decision decision = run(world, tuner, Tuner::first(world.layout(), options), 1);
  const double law = sent_bytes(*options.pinned, world.layout());
  EXPECT_NEAR(tuner.findings().predicted_bytes / law, 1, 1e-9);
  for (int i = 0; i < 3; ++i) {
    const double before = world.more_bytes;
    world.more_bytes += 0.01;
    decision = run(world, tuner, decision, 1);
    EXPECT_NEAR(tuner.findings().predicted_bytes / law, before, 1e-9);
  }
}

TEST(Tuner, MeasuresWithAsManyBitsAsTheLinkBringsInAMoment) {
  const World world(kSizes);
  const auto values = [&](double bytes_per_s) {
    const TunerOptions options{.bytes_per_s = bytes_per_s};
    const FusionPlan plan = Tuner::first(world.layout(), options).plan;
    return plan.buffers.front().points.front().first.values;
  };
  const double elements_sent = 1.5 * 3'203'000;
  EXPECT_EQ(values(1e9), ValueKind::bf16);
  EXPECT_EQ(values(2.2 * elements_sent / 0.3), ValueKind::bf16);
  EXPECT_EQ(values(1.8 * elements_sent / 0.3), ValueKind::q8);
  EXPECT_EQ(values(0.9 * elements_sent / 0.3), ValueKind::q4);
  EXPECT_EQ(values(1e3), ValueKind::q4);
  EXPECT_EQ(values(0), ValueKind::q4);
}

TEST(Tuner, OnAFastLinkPlainRuns) {
  World world(kSizes);
  world.set_link(1e-4, 5e9);
  Tuner tuner(world.layout(), rates(), {});
  const Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 8);
  EXPECT_TRUE(is_plain(last.plan));
  EXPECT_LT(tuner.findings().rho, 0.1);
}

TEST(Tuner, OnASlowLinkItSendsAsMuchAsHides) {
  World world(kSizes);
  world.set_link(1e-4, 1e7);
  Tuner tuner(world.layout(), rates(), {});
  const Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 8);
  EXPECT_FALSE(is_plain(last.plan));
  const double compute = world.truth.backward_s + world.truth.rest_s;
  EXPECT_LT(step_s(world, last.plan), 1.35 * compute);
  const Decision plain = Tuner::first(world.layout(), {.fidelity_min = 1});
  EXPECT_GT(step_s(world, plain.plan), 2 * compute);
}

TEST(Tuner, LearnsTheRatesOfTheWorld) {
  World world(kSizes);
  world.set_link(2e-3, 3e7);
  Tuner tuner(world.layout(), rates(), {});
  run(world, tuner, Tuner::first(world.layout(), {}), 10);
  const Findings& found = tuner.findings();
  EXPECT_NEAR(found.link.bytes_per_s, 3e7, 0.1 * 3e7);
  EXPECT_NEAR(found.slowest.step_s, found.predicted_s, 0.05 * found.slowest.step_s);
}

// 1 Gb/s to 50 Mb/s and back: within two agreements of 16 steps the plan is a good one again.
TEST(Tuner, FollowsALinkThatDropsAndRecovers) {
  World world(kSizes);
  world.set_link(1e-4, 1.25e8);
  Tuner tuner(world.layout(), rates(), {});
  Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 6);
  const double fast = step_s(world, last.plan);
  world.set_link(1e-4, 6.25e6);
  const double before = step_s(world, last.plan);
  const FusionPlan old = last.plan;
  last = run(world, tuner, last, 1);
  ASSERT_TRUE(tuner.findings().choice.has_value());
  EXPECT_NE(tuner.findings().choice->why.find("link"), std::string::npos);
  EXPECT_FALSE(last.plan == old);
  last = run(world, tuner, last, 1);
  EXPECT_LT(step_s(world, last.plan), 0.6 * before);
  world.set_link(1e-4, 1.25e8);
  last = run(world, tuner, last, 3);
  EXPECT_LT(step_s(world, last.plan), 1.05 * fast);
}

TEST(Tuner, ALinkThatDropsWithinAPeriodChangesThePlanAtItsEnd) {
  World world(kSizes);
  world.set_link(1e-4, 1e9);
  Tuner tuner(world.layout(), rates(), {});
  Decision decision = run(world, tuner, Tuner::first(world.layout(), {}), 20);
  ASSERT_TRUE(is_plain(decision.plan));
  std::vector<Measurement> by_rank = world.measure(decision);  // most steps were fast
  world.set_link(1e-4, 5e6);
  const std::vector<Measurement> after = world.measure(decision);
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    by_rank[rank].sounding = after[rank].sounding;
  }
  EXPECT_FALSE(is_plain(tuner.decide(by_rank, 0.002).plan));
}

// Compressed plans suddenly cost more than any model says: the guard takes the error over and goes
// back.
TEST(Tuner, TheGuardFallsBackToPlain) {
  World world(kSizes);
  world.set_link(1e-4, 4e7);
  Tuner tuner(world.layout(), rates(), {});
  Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 6);
  ASSERT_FALSE(is_plain(last.plan)) << "the world must tempt it first";
  world.hidden = 2.5;
  bool acted = false;
  for (int i = 0; i < 3 && !is_plain(last.plan); ++i) {
    last = run(world, tuner, last, 1);
    acted = acted || !tuner.findings().guard.empty();
  }
  EXPECT_TRUE(acted);
  EXPECT_TRUE(is_plain(last.plan));
}

TEST(Tuner, ErrorFeedbackThatGrowsRaisesTheFloor) {
  World world(kSizes);
  world.set_link(1e-4, 3e6);
  Tuner tuner(world.layout(), rates(), {});
  Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 6);
  ASSERT_FALSE(is_plain(last.plan));
  const double before = tuner.findings().kept;
  const FusionPlan old = last.plan;
  world.kept = 0.3;
  last = run(world, tuner, last, 1);
  EXPECT_NE(tuner.findings().guard.find("error feedback"), std::string::npos);
  ASSERT_TRUE(tuner.findings().choice.has_value());
  EXPECT_GT(tuner.findings().choice->chosen.kept, before);
  EXPECT_FALSE(last.plan == old);
}

// A plan of more bytes looks better and is not: what ran before is known, and runs again.
TEST(Tuner, ComesBackToThePlanThatRanBest) {
  for (const double rate : {2e7, 3e7, 4e7, 5e7}) {
    World world(kSizes);
    world.set_link(1e-4, rate);
    Tuner tuner(world.layout(), rates(), {});
    Decision decision = run(world, tuner, Tuner::first(world.layout(), {}), 12);
    const FusionPlan before = decision.plan;
    world.set_link(1e-4, 1.2 * rate);
    world.hidden_from = 1.01 * sent_bytes(before, world.layout());
    world.hidden_large_s = 0.06;
    const auto worth_of = [&](const FusionPlan& plan) {
      const Candidate weighed = weigh(plan, world.layout(), world.truth, curves(world), {});
      return progress(weighed.kept) / (weighed.prediction.step_s + world.hidden_s(plan));
    };
    decision = run(world, tuner, decision, 30);
    EXPECT_GE(worth_of(decision.plan), 0.98 * worth_of(before)) << rate;
  }
}

// Something else took the machine for a while; compressed plans get another try.
TEST(Tuner, PlainIsNotForEver) {
  World world(kSizes);
  world.set_link(1e-4, 4e7);
  Tuner tuner(world.layout(), rates(), {});
  Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 6);
  world.hidden = 2.5;
  for (int i = 0; i < 4 && !is_plain(last.plan); ++i) last = run(world, tuner, last, 1);
  ASSERT_TRUE(is_plain(last.plan));
  world.hidden = 1;
  for (int i = 0; i < 40 && is_plain(last.plan); ++i) last = run(world, tuner, last, 1);
  EXPECT_FALSE(is_plain(last.plan));
}

TEST(Tuner, PlainIsComparedSeldomWhereItIsMuchSlower) {
  World world(kSizes);
  world.set_link(1e-4, 3e6);
  Tuner tuner(world.layout(), rates(), {});
  Decision decision = Tuner::first(world.layout(), {});
  double plain_steps = 0;
  for (int i = 0; i < 60; ++i) {
    decision = run(world, tuner, decision, 1);
    if (is_plain(decision.plan)) plain_steps += decision.steps;
  }
  EXPECT_EQ(plain_steps, 0);
}

// A shaper let a sounding pass at once, in a period that was slow for another reason.
TEST(Tuner, OneSoundingThatIsMuchTooFastChangesNothing) {
  World world(kSizes);
  world.set_link(1e-4, 3e6);
  Tuner tuner(world.layout(), rates(), {});
  Decision decision = run(world, tuner, Tuner::first(world.layout(), {}), 6);
  for (int i = 0; i < 20; ++i) {
    std::vector<Measurement> by_rank = world.measure(decision);
    if (i % 3 == 0) {
      for (Measurement& one : by_rank) {
        one.step_s *= 1.3;
        one.exposed_s += 0.3 / 1.3 * one.step_s;
        one.sounding.exchange_s /= 8;
        one.sounding.reduce_s /= 8;
      }
    }
    decision = tuner.decide(by_rank, 0.002);
    EXPECT_FALSE(is_plain(decision.plan)) << i;
    EXPECT_LT(tuner.findings().link.bytes_per_s, 1.3 * 3e6);
  }
  world.set_link(1e-4, 2.4e7);
  run(world, tuner, decision, 2);
  EXPECT_NEAR(tuner.findings().link.bytes_per_s, 2.4e7, 0.1 * 2.4e7);
}

TEST(Tuner, ComparingCostsLittle) {
  World world(kSizes);
  world.set_link(1e-4, 1e8);
  Tuner tuner(world.layout(), rates(), {});
  Decision decision = Tuner::first(world.layout(), {});
  double all = 0;
  double compared = 0;
  for (int i = 0; i < 200; ++i) {
    if (is_plain(decision.plan)) compared += decision.steps;
    all += decision.steps;
    decision = tuner.decide(world.measure(decision), 0.002);
  }
  EXPECT_GT(compared, 0);
  EXPECT_LT(compared, 0.05 * all);
}

TEST(Tuner, TheFloorOfTheUserHolds) {
  World world(kSizes);
  world.set_link(1e-4, 1e6);
  const TunerOptions exact{.fidelity_min = 1};
  Tuner tuner(world.layout(), rates(), exact);
  Decision decision = Tuner::first(world.layout(), exact);
  EXPECT_TRUE(is_plain(decision.plan));
  for (int i = 0; i < 6; ++i) {
    decision = tuner.decide(world.measure(decision), 0.002);
    EXPECT_TRUE(is_plain(decision.plan));
  }
}

TEST(Tuner, APinnedPlanIsPredictedAndNeverChanged) {
  World world(kSizes);
  world.set_link(1e-4, 5e9);
  const FusionPlan q2 =
      uniform_plan({.path = Path::split, .point = {1, ValueKind::q2}}, world.layout());
  const TunerOptions pinned{.pinned = q2};
  Tuner tuner(world.layout(), rates(), pinned);
  Decision decision = Tuner::first(world.layout(), pinned);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(decision.plan, q2);
    decision = run(world, tuner, decision, 1);
  }
  EXPECT_NEAR(tuner.findings().predicted_s, step_s(world, q2), 0.05 * step_s(world, q2));
}

TEST(Tuner, WhatForwardNeedsLaterMakesAPlanWorthMore) {
  double worth[2] = {};
  for (const bool in_forward : {false, true}) {
    World world(std::vector<uint64_t>(12, 200'000));
    world.set_link(1e-4, 3e6);
    if (in_forward) {
      const size_t parts = world.layout().parts().size();
      for (size_t p = 0; p < parts; ++p) {
        world.truth.needed_s.push_back(0.09 * static_cast<double>(parts - 1 - p) /
                                       static_cast<double>(parts));
      }
    }
    Tuner tuner(world.layout(), rates(), {});
    const Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 20);
    EXPECT_EQ(last.plan.reversed > 0, in_forward);
    worth[in_forward ? 1 : 0] = progress(tuner.findings().kept) / step_s(world, last.plan);
    EXPECT_NEAR(tuner.findings().slowest.step_s, tuner.findings().predicted_s,
                0.05 * tuner.findings().slowest.step_s);
  }
  EXPECT_GT(worth[1], 1.01 * worth[0]);
}

TEST(Tuner, AgreementsStayRareWhereStepsAreShort) {
  World world({20'000, 20'000});
  world.truth.backward_s = 0.002;
  world.truth.rest_s = 0.001;
  world.truth.ready_s = {0.001, 0.002};
  Tuner tuner(world.layout(), rates(), {});
  Decision decision = Tuner::first(world.layout(), {});
  double all_s = 0;
  for (int i = 0; i < 100; ++i) {
    decision = run(world, tuner, decision, 1);
    all_s += decision.steps * step_s(world, decision.plan);
  }
  EXPECT_LT(100 * 0.002, 0.01 * all_s);
}

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
}  // namespace scant::sync
