// The planner: predictions obey arithmetic that can be done by hand, and the choice is what a
// search through all plans of a small model would take, nearly.
#include "plan/planner.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <gtest/gtest.h>
#include <numeric>

#include "base/rng.h"
#include "base/testing/failing_allocations.h"
#include "plan/calibrate.h"
#include "plan/progress.h"

namespace scant::plan {
namespace {

using codec::Point;
using codec::ValueKind;

gradient::Layout layout_of(const std::vector<uint64_t>& elements, int ranks = 4) {
  std::vector<codec::Shape> shapes;
  for (const uint64_t n : elements) shapes.push_back({1, n});
  return gradient::Layout::create(shapes, ranks).value();
}

// Work that costs nothing, so that arithmetic is easy.
Profile free_work(const gradient::Layout& layout, double backward_s, double bytes_per_s) {
  Profile profile;
  const auto parts = static_cast<double>(layout.parts().size());
  for (double p = 1; p <= parts; ++p) profile.ready_s.push_back(backward_s * p / parts);
  profile.backward_s = backward_s;
  profile.rest_s = 0.5 * backward_s;
  profile.link = {.alpha_s = 1e-4, .bytes_per_s = bytes_per_s, .reduced_bytes_per_s = bytes_per_s};
  return profile;
}

gradient::FusionPlan plain(const gradient::Layout& layout, uint64_t buffer_bytes) {
  return gradient::uniform_plan({.buffer_bytes = buffer_bytes, .first_buffer_bytes = buffer_bytes},
                                layout);
}

TEST(Predict, OneBufferTakesBackwardAndTheLink) {
  const gradient::Layout layout = layout_of({1'000'000, 1'000'000});
  const Profile profile = free_work(layout, 0.1, 1e8);
  const Prediction one = predict(plain(layout, 1 << 30), layout, profile);
  const double link = 2.0 * 3 / 4 * 8e6 / 1e8;
  EXPECT_NEAR(one.link_s, link, 1e-12);
  EXPECT_NEAR(one.exposed_s, link + 6 * 1e-4, 1e-9);
  EXPECT_NEAR(one.step_s, 0.05 + 0.1 + link + 6 * 1e-4, 1e-9);
  EXPECT_NEAR(one.sent_bytes, 12e6, 1);
}

TEST(Predict, TheFirstOfTwoBuffersHidesUnderBackward) {
  const gradient::Layout layout = layout_of({1'000'000, 1'000'000});
  const Profile profile = free_work(layout, 0.2, 1e8);
  const Prediction two = predict(plain(layout, 4'000'000), layout, profile);
  // Ready at 0.1 and 0.2; 60 ms each on the link.
  EXPECT_NEAR(two.exposed_s, 0.06 + 6 * 1e-4, 1e-9);
  EXPECT_LT(two.step_s, predict(plain(layout, 1 << 30), layout, profile).step_s);
}

TEST(Predict, WorkAddsUpAndContentionStretchesBackward) {
  const gradient::Layout layout = layout_of({400'000, 400'000});
  Profile profile = free_work(layout, 0.1, 1e12);
  profile.link.alpha_s = 0;
  auto& q4 = profile.work;
  q4.encode[static_cast<size_t>(ValueKind::q4)].dense_s = 1e-9;
  q4.decode[static_cast<size_t>(ValueKind::q4)].dense_s = 2e-9;
  const gradient::FusionPlan plan =
      gradient::uniform_plan({.path = gradient::Path::split, .point = {1, ValueKind::q4}}, layout);
  const Prediction alone = predict(plan, layout, profile);
  // Encode all and a fourth of the average; add four times a fourth; decode all.
  EXPECT_NEAR(alone.work_s, 800'000 * (1.25e-9 + 2e-9 + 2e-9), 1e-12);
  EXPECT_DOUBLE_EQ(alone.backward_s, 0.1);
  profile.contention = 1;
  const Prediction crowded = predict(plan, layout, profile);
  EXPECT_GT(crowded.backward_s, 0.1 + 0.9 * alone.work_s);
  EXPECT_LE(crowded.backward_s, 0.1 + alone.work_s);
}

TEST(Predict, MessagesTakeOfTheCores) {
  const gradient::Layout layout = layout_of({500'000, 500'000, 500'000, 500'000});
  Profile profile = free_work(layout, 0.2, 1e12);
  profile.link.alpha_s = 0;
  profile.link.cpu_s = 1e-3;
  profile.link.cpu_s_per_byte = 1e-9;
  profile.contention = 1;
  // Rings of six messages: as two exchanges. All is over when backward is.
  const Prediction one = predict(plain(layout, 1 << 30), layout, profile);
  EXPECT_NEAR(one.sending_s, 2e-3 + 12e6 * 1e-9, 1e-9);
  const Prediction four = predict(plain(layout, 2'000'000), layout, profile);
  EXPECT_NEAR(four.sending_s - one.sending_s, 3 * 2e-3, 1e-9);
  EXPECT_NEAR(four.backward_s, 0.2 + four.sending_s, 1e-4);
}

// Forward, of 0.1 s, needs the parts that backward made last first.
Profile needed_in_forward(Profile profile) {
  const size_t parts = profile.ready_s.size();
  for (size_t p = 0; p < parts; ++p) {
    profile.needed_s.push_back(0.1 * static_cast<double>(parts - 1 - p) /
                               static_cast<double>(parts));
  }
  return profile;
}

TEST(Predict, WhatForwardNeedsLaterMayComeLater) {
  const gradient::Layout layout = layout_of({1'000'000, 1'000'000});
  const Profile at_once = free_work(layout, 0.2, 1e8);
  Profile later = at_once;
  later.needed_s = {0, 0};
  const gradient::FusionPlan two = plain(layout, 4'000'000);
  EXPECT_DOUBLE_EQ(predict(two, layout, later).step_s, predict(two, layout, at_once).step_s);
  // The second ends 60.6 ms after backward.
  later.needed_s = {0, 0.05};
  EXPECT_NEAR(predict(two, layout, later).exposed_s, 0.0106, 1e-9);
  later.needed_s = {0, 0.07};
  EXPECT_DOUBLE_EQ(predict(two, layout, later).exposed_s, 0);
  // Not before its buffer's end, though the part is the first of it.
  const gradient::FusionPlan one = plain(layout, 1 << 30);
  later.needed_s = {0.02, 0.1};
  EXPECT_NEAR(predict(one, layout, later).exposed_s, 0.1206 - 0.02, 1e-9);
}

TEST(Predict, TheLastFirstHidesMoreUnderForward) {
  const gradient::Layout layout = layout_of(std::vector<uint64_t>(8, 500'000));
  const Profile profile = needed_in_forward(free_work(layout, 0.2, 6e7));
  gradient::FusionPlan plan = plain(layout, 2'000'000);
  ASSERT_EQ(plan.buffers.size(), 8u);
  const Prediction in_order = predict(plan, layout, profile);
  // Eight buffers of 50 ms each, ready every 25 ms: the link begins four within backward.
  EXPECT_EQ(in_order.begun_in_backward, 4u);
  plan.reversed = 4;
  EXPECT_LT(predict(plan, layout, profile).exposed_s, in_order.exposed_s - 0.03);
}

TEST(RankPlans, TurnsTheOrderWhereForwardWaitsForOnePartAfterTheOther) {
  base::Rng rng(8);
  for (int i = 0; i < 30; ++i) {
    const gradient::Layout layout = layout_of(std::vector<uint64_t>(4 + rng.below(12), 300'000));
    const Profile at_once = free_work(layout, 0.2, 1e7 * static_cast<double>(1 + rng.below(20)));
    const Profile later = needed_in_forward(at_once);
    const auto in_order = rank_plans(layout, at_once, {}, {});
    for (const Candidate& one : in_order.value()) EXPECT_EQ(one.plan.reversed, 0u);
    const auto ranked = rank_plans(layout, later, {}, {});
    const Candidate& chosen = ranked.value().front();
    ASSERT_TRUE(validate(chosen.plan, layout).ok());
    double best = chosen.prediction.step_s;
    gradient::FusionPlan other = chosen.plan;
    for (other.reversed = 0; other.reversed <= other.buffers.size(); ++other.reversed) {
      if (other.reversed != 1) best = std::min(best, predict(other, layout, later).step_s);
    }
    EXPECT_LE(chosen.prediction.step_s, 1.03 * best) << "round " << i;
  }
}

TEST(Predict, AFasterLinkNeverMakesAStepSlower) {
  base::Rng rng(5);
  for (int i = 0; i < 50; ++i) {
    std::vector<uint64_t> sizes;
    for (uint64_t n = 1 + rng.below(8); n > 0; --n) sizes.push_back(1 + rng.below(900'000));
    const gradient::Layout layout = layout_of(sizes, 2 + static_cast<int>(rng.below(6)));
    const gradient::FusionPlan plan = plain(layout, 1 + rng.below(4'000'000));
    double before = 1e9;
    for (const double rate : {1e6, 1e7, 1e8, 1e9}) {
      const double now = predict(plan, layout, free_work(layout, 0.1, rate)).step_s;
      EXPECT_LE(now, before);
      before = now;
    }
  }
}

TEST(Progress, NeverRisesWhenLessIsKept) {
  for (const auto of : {progress_of_elements, progress_of_factors}) {
    double before = of(1);
    EXPECT_EQ(before, 1);
    for (double kept = 1; kept > -0.1; kept -= 0.001) {
      const double now = of(kept);
      EXPECT_LE(now, before);
      EXPECT_GT(now, 0);
      before = now;
    }
  }
}

TEST(Progress, FactorsMakeNoLessThanElements) {
  for (double kept = 1; kept > 0; kept -= 0.01)
    EXPECT_GE(progress_of_factors(kept), progress_of_elements(kept)) << kept;
}

TEST(Progress, OfAPlanIsTheMeanOfItsParts) {
  EXPECT_EQ(progress({.elements = 0.5, .factors = 1, .of_factors = 0}), progress_of_elements(0.5));
  EXPECT_EQ(progress({.elements = 1, .factors = 0.5, .of_factors = 1}), progress_of_factors(0.5));
  EXPECT_DOUBLE_EQ(progress({.elements = 0.8, .factors = 0.6, .of_factors = 0.75}),
                   0.25 * progress_of_elements(0.8) + 0.75 * progress_of_factors(0.6));
}

TEST(CutInto, CoversAllPartsInOrderAndBalances) {
  base::Rng rng(6);
  for (int i = 0; i < 200; ++i) {
    std::vector<double> bytes(1 + rng.below(40));
    for (double& one : bytes) one = 1 + static_cast<double>(rng.below(1000));
    const size_t wanted = 1 + rng.below(20);
    const auto counts = cut_into(bytes, wanted);
    EXPECT_EQ(counts.size(), std::min(wanted, bytes.size()));
    EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), size_t{0}), bytes.size());
    EXPECT_TRUE(std::ranges::none_of(counts, [](uint32_t count) { return count == 0; }));
  }
}

// Curves as of Gaussian gradients: what a density and a kind keep.
codec::Curve curve_of(uint64_t elements, double energy) {
  codec::Curve curve{.energy = energy, .points = {}};
  constexpr double kKept[codec::kValueKindCount] = {1, 0.99999, 1, 0.9999, 0.993, 0.974, 0.9, 0.69};
  for (const Point point : codec::default_points()) {
    const double of_density = std::pow(point.density, 0.35);
    curve.points.push_back({point, codec::expected_record_bytes(elements, point),
                            energy * of_density * kKept[static_cast<size_t>(point.values)]});
  }
  return curve;
}

std::vector<codec::Curve> curves_of(const gradient::Layout& layout) {
  std::vector<codec::Curve> curves;
  for (const gradient::PartLayout& part : layout.parts()) {
    curves.push_back(curve_of(part.range.elements, static_cast<double>(part.range.elements)));
  }
  return curves;
}

const Candidate& best(const std::vector<Candidate>& ranked) { return ranked.front(); }

std::vector<Candidate> ranked(const gradient::Layout& layout, const Profile& profile,
                              const PlannerOptions& options = {}) {
  auto result = rank_plans(layout, profile, curves_of(layout), options);
  EXPECT_TRUE(result.ok());
  return std::move(result).value();
}

TEST(Planner, AFastLinkGetsExactPlainGradients) {
  const gradient::Layout layout = layout_of({500'000, 500'000, 1'000, 500'000});
  const auto all = ranked(layout, free_work(layout, 0.1, 1e10));
  EXPECT_EQ(best(all).kept, 1);
  EXPECT_EQ(best(all).plan.buffers[0].path, gradient::Path::all_reduce);
}

TEST(Planner, ASlowerLinkNeverKeepsMore) {
  const gradient::Layout layout = layout_of({500'000, 500'000, 1'000, 500'000});
  double before = 2;
  for (const double rate : {1e10, 1e9, 3e8, 1e8, 3e7, 1e7, 1e6}) {
    const auto all = ranked(layout, free_work(layout, 0.1, rate));
    EXPECT_LE(best(all).kept, before + 1e-9) << rate;
    EXPECT_TRUE(validate(best(all).plan, layout).ok());
    before = best(all).kept;
  }
  EXPECT_LT(before, 0.9);
}

TEST(Planner, TheFloorOfFidelityHolds) {
  const gradient::Layout layout = layout_of({500'000, 500'000});
  for (const Candidate& candidate :
       ranked(layout, free_work(layout, 0.1, 1e6), {.fidelity_min = 0.9}))
    EXPECT_GE(candidate.kept, 0.9);
}

TEST(Planner, BetweenTwoRanksNothingIsSentBack) {
  const gradient::Layout layout = layout_of({500'000, 500'000, 1'000}, 2);
  const Profile profile = free_work(layout, 0.1, 1e7);
  const auto curves = curves_of(layout);
  for (const Candidate& one : ranked(layout, profile)) {
    if (is_plain(one.plan)) continue;
    gradient::FusionPlan twin = one.plan;
    for (gradient::BufferPlan& buffer : twin.buffers) {
      ASSERT_EQ(buffer.path, gradient::Path::gather);
      buffer.path = gradient::Path::split;
      for (gradient::PartPlan& part : buffer.points) part.second = part.first;
    }
    EXPECT_TRUE(validate(one.plan, layout).ok());
    const Candidate split = weigh(twin, layout, profile, curves, {});
    EXPECT_LE(split.worth, one.worth * (1 + 1e-9)) << one.text;
    EXPECT_LE(split.kept, one.kept + 1e-9) << one.text;
    EXPECT_NEAR(split.prediction.sent_bytes, one.prediction.sent_bytes,
                0.01 * one.prediction.sent_bytes);
  }
}

TEST(Planner, WhatPlansByHandKeepIsKnownToo) {
  const std::vector<codec::Shape> shapes = {{500, 1000}, {500, 1000}};
  const gradient::Layout layout = gradient::Layout::create(shapes, 4).value();
  const Profile profile = free_work(layout, 0.1, 1e7);
  const auto curves = curves_of(layout);
  const auto kept = [&](codec::Point point) {
    const gradient::FusionPlan plan =
        gradient::uniform_plan({.path = gradient::Path::gather, .point = point}, layout);
    return weigh(plan, layout, profile, curves, {}).kept;
  };
  const double bf16 = kept({0.01, codec::ValueKind::bf16});
  EXPECT_GT(bf16, 0);
  EXPECT_EQ(kept({0.01, codec::ValueKind::bf16, true}), bf16);
  EXPECT_EQ(kept({0.012, codec::ValueKind::bf16}), bf16);
  EXPECT_EQ(kept({1, codec::ValueKind::f16}), kept({1, codec::ValueKind::bf16}));
  EXPECT_EQ(kept({1, codec::ValueKind::f32}), 1);
}

std::vector<Candidate> ranked_by(const gradient::Layout& layout, const Profile& profile,
                                 const std::vector<codec::Curve>& curves, double floor) {
  auto all = rank_plans(layout, profile, curves, {.fidelity_min = floor});
  EXPECT_TRUE(all.ok());
  return std::move(all).value();
}

// A head that was not used in the step that was looked at is no reason to starve it.
TEST(Planner, APartWithoutGradientIsTakenToBeLikeTheOthers) {
  const gradient::Layout layout = layout_of({500'000, 500'000});
  const Profile profile = free_work(layout, 0.1, 1e7);
  auto curves = curves_of(layout);
  curves[1] = curves[0];
  const Candidate whole = best(ranked_by(layout, profile, curves, 0.9));
  curves[1] = {};
  const Candidate half = best(ranked_by(layout, profile, curves, 0.9));
  EXPECT_EQ(half.plan, whole.plan);
  EXPECT_NEAR(half.kept, whole.kept, 1e-9);
  curves[0].energy = 0;
  const auto all = ranked_by(layout, profile, curves, 0);
  EXPECT_TRUE(std::ranges::all_of(all, [](const auto& one) { return is_plain(one.plan); }));
}

TEST(Planner, WithoutCurvesOnlyPlainPlansAreLookedAt) {
  const gradient::Layout layout = layout_of({500'000, 500'000});
  const auto all = rank_plans(layout, free_work(layout, 0.1, 1e6), {}, {});
  ASSERT_TRUE(all.ok());
  for (const Candidate& candidate : all.value()) EXPECT_EQ(candidate.kept, 1);
}

// Of plain plans, and all cuts into buffers with each part at some of the points, the most worth.
double most_worth(const gradient::Layout& layout, const std::vector<codec::Curve>& curves,
                  const Profile& profile) {
  double most = 0;
  const size_t points = codec::default_points().size();
  const gradient::Path path = compressed_path(layout);
  for (uint32_t cuts = 0; cuts < 4; ++cuts) {
    for (size_t code = 0; code <= points * points * points; ++code) {
      const size_t choice[] = {code % points, code / points % points, code / points / points};
      const bool is_plain = code == points * points * points;
      if (!is_plain && code % 29 != 0) continue;  // some of them are enough, and quick
      double kept = 0;
      double elements = 0;
      gradient::FusionPlan plan;
      for (uint32_t p = 0; p < 3; ++p) {
        if (p == 0 || (cuts >> (p - 1) & 1) != 0) {
          plan.buffers.push_back({p, 0, is_plain ? gradient::Path::all_reduce : path, {}});
        }
        ++plan.buffers.back().parts;
        if (is_plain) continue;
        const auto& chosen = curves[p].points[choice[p]];
        const bool back = path == gradient::Path::split;
        plan.buffers.back().points.push_back(
            {chosen.point, back ? chosen.point : gradient::kNoSecondLeg});
        const auto n = static_cast<double>(layout.parts()[p].range.elements);
        const double share = chosen.energy / curves[p].energy;
        kept += n * share * (back ? share : 1);
        elements += n;
      }
      const double share = is_plain ? 1 : kept / elements;
      most = std::max(most, progress_of_elements(share) / predict(plan, layout, profile).step_s);
    }
  }
  return most;
}

TEST(Planner, RegretAgainstAllPlansOfASmallModelIsSmall) {
  double worst = -1;
  for (const int ranks : {2, 4}) {
    const gradient::Layout layout = layout_of({300'000, 200'000, 100'000}, ranks);
    const auto curves = curves_of(layout);
    for (const double rate : {1e6, 1e7, 3e7, 1e8, 1e9}) {
      const Profile profile = free_work(layout, 0.05, rate);
      const double chosen = best(ranked(layout, profile)).worth;
      const double regret = 1 - chosen / most_worth(layout, curves, profile);
      EXPECT_LE(regret, 0.05) << ranks << " ranks, " << rate;
      worst = std::max(worst, regret);
    }
  }
  std::printf("worst regret: %.2f %%\n", 100 * worst);
}

// A model of equal layers: the choice against all plans with one kind up to some part and another
// from there on, each part in a buffer of its own.
TEST(Planner, FindsBudgetsBetweenThoseThatLieFarApart) {
  const gradient::Layout layout = layout_of(std::vector<uint64_t>(16, 200'000));
  const auto curves = curves_of(layout);
  constexpr ValueKind kKinds[] = {ValueKind::bf16, ValueKind::q8, ValueKind::q4, ValueKind::q3,
                                  ValueKind::q2};
  for (const double rate : {1e6, 3e6, 6e6, 9e6, 1.2e7, 1.5e7, 2e7, 4e7, 8e7}) {
    const Profile profile = free_work(layout, 0.21, rate);
    double most = 0;
    for (const ValueKind early : kKinds) {
      for (const ValueKind late : kKinds) {
        for (uint32_t change = 0; change < 16; ++change) {
          gradient::FusionPlan plan = gradient::uniform_plan(
              {.path = gradient::Path::split, .buffer_bytes = 1, .first_buffer_bytes = 1}, layout);
          for (uint32_t part = 0; part < 16; ++part) {
            const Point point{1, part < change ? early : late};
            plan.buffers[part].points = {{point, point}};
          }
          most = std::max(most, weigh(plan, layout, profile, curves, {}).worth);
        }
      }
    }
    EXPECT_GE(best(ranked(layout, profile)).worth, 0.99 * most) << rate;
  }
}

// docs/planner.md: exposed = rho / 4 * share * bytes * compute, where all but the last buffer
// hides.
TEST(Planner, TheLastBufferTellsWhatCannotHide) {
  const gradient::Layout layout = layout_of({400'000, 400'000, 400'000, 200'000});
  Profile profile = free_work(layout, 0.2, 2e8);
  profile.link.alpha_s = 0;
  const double compute_s = profile.backward_s + profile.rest_s;
  const double rho = 1.5 * 4 * 1'400'000 / 2e8 / compute_s;
  for (const ValueKind values : {ValueKind::f32, ValueKind::bf16, ValueKind::q4}) {
    const gradient::Path path =
        values == ValueKind::f32 ? gradient::Path::all_reduce : gradient::Path::split;
    const gradient::FusionPlan plan = gradient::uniform_plan(
        {.path = path, .point = {1, values}, .buffer_bytes = 1, .first_buffer_bytes = 1}, layout);
    const LastBuffer last = last_buffer(plan, layout);
    EXPECT_DOUBLE_EQ(last.share, 1.0 / 7);
    EXPECT_NEAR(last.bytes, codec::bits(values) / 8.0, 0.05 * last.bytes);
    const double law_s = rho / 4 * last.share * last.bytes * compute_s;
    EXPECT_NEAR(predict(plan, layout, profile).exposed_s, law_s, 1e-9);
  }
}

TEST(Planner, TheLawCountsTheOneLegBetweenTwoRanks) {
  const gradient::Layout layout = layout_of({400'000, 400'000}, 2);
  const gradient::FusionPlan plan = gradient::uniform_plan(
      {.path = gradient::Path::gather, .point = {1, ValueKind::q8}, .first_buffer_bytes = 1 << 30},
      layout);
  const LastBuffer last = last_buffer(plan, layout);
  EXPECT_NEAR(last.bytes, 1, 0.05);
  EXPECT_DOUBLE_EQ(last.share, 1);
}

TEST(Calibrate, GivesRatesThatMakeSense) {
  const Result<WorkRates> measured = calibrate([] { return std::chrono::steady_clock::now(); });
  ASSERT_TRUE(measured.ok()) << measured.error().to_string();
  const WorkRates& rates = measured.value();
  for (int i = 0; i < codec::kValueKindCount; ++i) {
    EXPECT_GT(rates.encode[static_cast<size_t>(i)].dense_s, 0);
    EXPECT_GT(rates.decode[static_cast<size_t>(i)].dense_s, 0);
    EXPECT_GE(rates.encode[static_cast<size_t>(i)].entry_s, 0);
  }
  EXPECT_GE(rates.scan_s, 0);
  EXPECT_GT(rates.record_s, 0);
  EXPECT_GT(rates.product_s, 0);
  EXPECT_GT(rates.basis_s, 0);
}

TEST(Calibrate, SaysSoWhereMemoryIsShort) {
  for (const uint64_t number : {0u, 1u, 2u, 3u, 5u, 8u}) {
    const base::testing::FailingAllocations failing(number);
    const Result<WorkRates> measured = calibrate([] { return std::chrono::steady_clock::now(); });
    // Some memory can be done without, but not the first.
    EXPECT_TRUE(number > 0 || !measured) << number;
    if (measured) continue;
    EXPECT_TRUE(failing.failed()) << number;
    EXPECT_EQ(measured.error().code, ErrorCode::resource) << number;
  }
}

}  // namespace
}  // namespace scant::plan
