// The tuner, against a world that a table describes: its choices must follow its true rates.
#include "plan/tuner.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "plan/testing/tuner_world.h"

namespace scant::plan {
namespace {

using codec::ValueKind;

// Runs agreements and returns the last decision; every one of them must be valid.
Decision run(World& world, Tuner& tuner, Decision decision, int agreements) {
  for (int i = 0; i < agreements; ++i) {
    decision = tuner.decide(world.measure(decision), 0.002);
    EXPECT_TRUE(validate(decision.plan, world.layout()).ok());
    EXPECT_LT(decision.skipped, decision.steps);
  }
  return decision;
}

double step_s(const World& world, const gradient::FusionPlan& plan) {
  return predict(plan, world.layout(), world.truth).step_s * (is_plain(plan) ? 1 : world.hidden);
}

std::vector<codec::Curve> curves(const World& world) {
  std::vector<codec::Curve> all;
  for (const gradient::PartLayout& part : world.layout().parts()) {
    all.push_back(curve_of(part.range.elements));
  }
  return all;
}

const std::vector<uint64_t> kSizes = {800'000, 800'000, 3'000, 800'000, 800'000};

// Fewer bits in the first steps cost a training more than in later ones: no fewer than needed.
TEST(Tuner, MeasuresWithAsManyBitsAsTheLinkBringsInAMoment) {
  const World world(kSizes);
  const auto values = [&](double bytes_per_s) {
    const TunerOptions options{.bytes_per_s = bytes_per_s};
    const gradient::FusionPlan plan = Tuner::first(world.layout(), options).plan;
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

// An accelerator computes while the cores are idle: 3.2 million elements in 16 tensors, a step of
// 321 ms.
TEST(Tuner, OnAHostWithIdleCoresNearlyAllHides) {
  for (const auto& [bytes_per_s, share] : {std::pair{1.16e8, 0.96}, std::pair{1.19e7, 0.93}}) {
    World world(std::vector<uint64_t>(16, 200'000));
    world.truth.backward_s = 0.212;
    world.truth.rest_s = 0.109;
    for (double p = 0; p < 16; ++p)
      world.truth.ready_s[static_cast<size_t>(p)] = world.truth.backward_s * (p + 1) / 16;
    world.truth.contention = 0;
    world.truth.work = rates();
    world.set_link(2.5e-4, bytes_per_s);
    const TunerOptions options{.bytes_per_s = bytes_per_s};
    Tuner tuner(world.layout(), rates(), options);
    const Decision last = run(world, tuner, Tuner::first(world.layout(), options), 20);
    EXPECT_GE(0.321 / step_s(world, last.plan), share);
  }
}

// At such a rate plain would be exposed, and what loses nothing hides.
TEST(Tuner, WhatHidesAndLosesNothingIsWorthMoreThanPlain) {
  World world(std::vector<uint64_t>(16, 200'000));
  world.truth.contention = 0;
  world.truth.work = rates();
  world.set_link(2.5e-4, 1.16e8);
  world.truth.link.reduced_bytes_per_s = 0.8e8;
  Tuner tuner(world.layout(), rates(), {});
  const Decision last = run(world, tuner, Tuner::first(world.layout(), {}), 20);
  EXPECT_FALSE(is_plain(last.plan));
  EXPECT_GT(tuner.findings().kept, 0.995);
  EXPECT_LT(step_s(world, last.plan), 1.02 * (world.truth.backward_s + world.truth.rest_s));
}

// A sounding does not tell it; a plan of fewer bytes gains more by it than in proportion.
TEST(Tuner, LearnsHowMuchSlowerExchangesAreInSteps) {
  for (const double in_steps : {1.0, 1.05, 1.09}) {
    World world(std::vector<uint64_t>(16, 200'000));
    world.truth.contention = 0;
    world.truth.work = rates();
    world.truth.in_steps = in_steps;
    world.set_link(2.5e-4, 1.19e7);
    Tuner tuner(world.layout(), rates(), {});
    run(world, tuner, Tuner::first(world.layout(), {}), 1);
    ASSERT_TRUE(tuner.findings().choice.has_value());
    const Profile& profile = tuner.findings().choice->profile;
    EXPECT_NEAR(profile.in_steps, in_steps, 0.02);
    const Candidate& chosen = tuner.findings().choice->chosen;
    EXPECT_NEAR(chosen.prediction.step_s, step_s(world, chosen.plan),
                0.02 * chosen.prediction.step_s);
  }
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
  const gradient::FusionPlan old = last.plan;
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

TEST(Tuner, TheFloorHoldsWhileMeasuringToo) {
  const World world(kSizes);
  const auto first = [&](double floor) {
    const gradient::FusionPlan plan = Tuner::first(world.layout(), {.fidelity_min = floor}).plan;
    return is_plain(plan) ? ValueKind::f32 : plan.buffers.front().points.front().first.values;
  };
  EXPECT_EQ(first(0.9), ValueKind::q4);
  EXPECT_EQ(first(0.96), ValueKind::q8);
  EXPECT_EQ(first(0.9995), ValueKind::bf16);
  EXPECT_EQ(first(0.99999), ValueKind::f32);
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
  const gradient::FusionPlan old = last.plan;
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
    const gradient::FusionPlan before = decision.plan;
    world.set_link(1e-4, 1.2 * rate);
    world.hidden_from = 1.01 * gradient::sent_bytes(before, world.layout());
    world.hidden_large_s = 0.06;
    const auto worth_of = [&](const gradient::FusionPlan& plan) {
      const Candidate weighed = weigh(plan, world.layout(), world.truth, curves(world), {});
      return weighed.progress / (weighed.prediction.step_s + world.hidden_s(plan));
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

// Where plain cannot win it is run all the same, when the time for that has come.
TEST(Tuner, PlainIsComparedSeldomWhereItIsMuchSlower) {
  World world(kSizes);
  world.set_link(1e-4, 1e7);
  Tuner tuner(world.layout(), rates(), {});
  Decision decision = Tuner::first(world.layout(), {});
  double all_s = 0;
  double lost_s = 0;
  for (int i = 0; i < 600; ++i) {
    const double now_s = decision.steps * step_s(world, decision.plan);
    all_s += now_s;
    if (is_plain(decision.plan)) lost_s += now_s;
    decision = run(world, tuner, decision, 1);
    EXPECT_TRUE(i >= 40 || !is_plain(decision.plan)) << i;
  }
  EXPECT_GT(lost_s, 0);
  EXPECT_LT(lost_s, 0.006 * all_s);  // what the steps would have cost else comes on top
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
  const gradient::FusionPlan q2 = gradient::uniform_plan(
      {.path = gradient::Path::split, .point = {1, ValueKind::q2}}, world.layout());
  const TunerOptions pinned{.pinned = q2};
  Tuner tuner(world.layout(), rates(), pinned);
  Decision decision = Tuner::first(world.layout(), pinned);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(decision.plan, q2);
    decision = run(world, tuner, decision, 1);
  }
  EXPECT_NEAR(tuner.findings().predicted_s, step_s(world, q2), 0.05 * step_s(world, q2));
}

// The law of independent positions is what a new plan is expected to send; from its second period
// on, what it sent.
TEST(Tuner, BytesOfAPlanThatRanAreThoseItSent) {
  World world({1'000'000, 1'000'000});
  world.more_bytes = 1.04;
  const gradient::UniformPlan wanted{.path = gradient::Path::split,
                                     .point = {0.01, codec::ValueKind::q4}};
  const TunerOptions options{.pinned = gradient::uniform_plan(wanted, world.layout())};
  Tuner tuner(world.layout(), world.truth.work, options);
  Decision decision = run(world, tuner, Tuner::first(world.layout(), options), 1);
  const double law = gradient::sent_bytes(*options.pinned, world.layout());
  EXPECT_NEAR(tuner.findings().predicted_bytes / law, 1, 1e-9);
  for (int i = 0; i < 3; ++i) {
    const double before = world.more_bytes;
    world.more_bytes += 0.01;
    decision = run(world, tuner, decision, 1);
    EXPECT_NEAR(tuner.findings().predicted_bytes / law, before, 1e-9);
  }
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
    const Candidate weighed = weigh(last.plan, world.layout(), world.truth, curves(world), {});
    worth[in_forward ? 1 : 0] = weighed.progress / step_s(world, last.plan);
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

}  // namespace
}  // namespace scant::plan
