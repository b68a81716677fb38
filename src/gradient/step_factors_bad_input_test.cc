// Rounds with factors of gradients that no good training has: all ranks go on alike, or fail alike,
// and nothing waits where nobody sees it.
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <limits>

#include "gradient/testing/round_of_members.h"

namespace scant::gradient {
namespace {

using codec::Point;
using codec::ValueKind;
using testing::expect_alike_and_well;
using testing::expect_mass;
using testing::FakeNetwork;
using testing::first_stations;
using testing::kept_by;
using testing::Member;
using testing::plan_of;
using testing::ranked;
using testing::RoundOfMembers;
using testing::small_layout;

constexpr uint32_t kLarge = 3;  // the tensor of 64 x 80
constexpr int kRanks = 3;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kMost = std::numeric_limits<float>::max();

const Point kRests[] = {codec::kKeepAll, {1, ValueKind::q2}, {0.1, ValueKind::q4}};
using Gradient = std::function<float(int step, Rank rank, uint64_t element)>;

FusionPlan plan_at(const Layout& layout, Path path, uint16_t rank, ValueKind factors, Point rest) {
  return plan_of(layout, path, ranked(rank, factors, rest));
}

// Of the large matrix; all other tensors are as ever.
auto of_large(const Gradient& gradient) {
  return [gradient](int step, Rank rank, uint32_t tensor, uint64_t element) {
    return tensor == kLarge ? gradient(step, rank, element)
                            : gradient_at(step, rank, tensor, element);
  };
}

// What a verdict tells is told alike.
void expect_one_account(RoundOfMembers& rounds) {
  const StepReport& first = rounds.at(0).outcome->value();
  for (const Member& member : rounds.all()) {
    const StepReport& own = member.outcome->value();
    EXPECT_EQ(own.nonfinite, first.nonfinite);
    ASSERT_EQ(own.not_finite.size(), first.not_finite.size());
    for (size_t i = 0; i < own.not_finite.size(); ++i) {
      EXPECT_EQ(own.not_finite[i].tensor, first.not_finite[i].tensor);
      EXPECT_EQ(own.not_finite[i].ranks, first.not_finite[i].ranks);
    }
  }
}

void expect_finite_residuals(RoundOfMembers& rounds) {
  for (const double kept : kept_by(rounds, first_stations(kRanks))) {
    ASSERT_TRUE(std::isfinite(kept));
  }
}

double largest_of_large(const Layout& layout, const std::vector<float>& arena) {
  const TensorLayout& known = layout.tensors()[kLarge];
  double most = 0;
  for (uint64_t i = 0; i < known.shape.elements(); ++i) {
    most = std::max(most, std::fabs(static_cast<double>(arena[known.offset + i])));
  }
  return most;
}

// Several ranks, several kinds, in every path; the round after has nothing of it.
TEST(StepFactorsOfBadInput, WhatIsNotFiniteIsToldAlikeByAll) {
  for (const Path path : {Path::split, Path::gather}) {
    for (const Point rest : kRests) {
      const Layout layout = small_layout(kRanks);
      FakeNetwork network(kRanks);
      RoundOfMembers rounds(network, layout, kRanks);
      rounds.set_plan(plan_at(layout, path, 2, ValueKind::q4, rest));
      rounds.gradient = of_large([](int step, Rank rank, uint64_t element) {
        if (step == 1 && rank == 0 && element == 5) return kInfinity;
        if (step == 1 && rank == 2 && element % 1000 == 1) return kNan;
        return gradient_at(step, rank, kLarge, element);
      });
      rounds.run(1, first_stations(kRanks), 1, 1);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
      ASSERT_NO_FATAL_FAILURE(expect_one_account(rounds));
      const StepReport& report = rounds.at(0).outcome->value();
      ASSERT_EQ(report.not_finite.size(), 1u);
      EXPECT_EQ(report.not_finite[0].tensor, kLarge);
      EXPECT_EQ(report.not_finite[0].ranks, (std::vector<Rank>{0, 2}));
      ASSERT_NO_FATAL_FAILURE(expect_finite_residuals(rounds));
      const std::vector<double> before = kept_by(rounds, first_stations(kRanks));
      rounds.run(2, first_stations(kRanks), 1, 2);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
      EXPECT_EQ(rounds.at(0).outcome->value().nonfinite, 0u);
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(kRanks), before, 4e-5));
    }
  }
}

// Left factors would overflow: directions are found all the same, and what cannot be sent is told.
// Nothing of it waits unseen.
TEST(StepFactorsOfBadInput, FiniteValuesWhoseProductsOverflowAreSentOrTold) {
  for (const float size : {0x1p90f, 0x1p99f, 0x1p110f, 0x1p120f, 0.25f * kMost}) {
    for (const bool one_rank : {true, false}) {
      for (const Point rest : kRests) {
        SCOPED_TRACE(::testing::Message()
                     << size << (one_rank ? " on rank 1" : "") << ", rest " << rest.density);
        const Layout layout = small_layout(kRanks);
        FakeNetwork network(kRanks);
        RoundOfMembers rounds(network, layout, kRanks);
        rounds.set_plan(plan_at(layout, Path::split, 2, ValueKind::q8, rest));
        rounds.gradient = of_large([=](int step, Rank rank, uint64_t element) {
          if (one_rank && rank != 1) return gradient_at(step, rank, kLarge, element);
          return element % 2 == element / 80 % 2 ? size : -size;  // one direction
        });
        rounds.run(1, first_stations(kRanks), 1, 1);
        ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
        ASSERT_NO_FATAL_FAILURE(expect_one_account(rounds));
        ASSERT_NO_FATAL_FAILURE(expect_finite_residuals(rounds));
        const StepReport& report = rounds.at(0).outcome->value();
        if (report.nonfinite > 0) {
          EXPECT_GT(size, 0x1p90f);
          ASSERT_EQ(report.not_finite.size(), 1u);
          EXPECT_EQ(report.not_finite[0].tensor, kLarge);
          EXPECT_EQ(report.not_finite[0].ranks,
                    one_rank ? std::vector<Rank>{1} : (std::vector<Rank>{0, 1, 2}));
          continue;
        }
        // Codes have a largest scale, so few bits of the largest values say less than all.
        const double mean = size / (one_rank ? 3.0 : 1.0);
        EXPECT_GT(largest_of_large(layout, rounds.at(0).arena), 0.1 * mean);
        const std::vector<double> after = kept_by(rounds, first_stations(kRanks));
        const TensorLayout& known = layout.tensors()[kLarge];
        for (uint64_t i = known.offset; i < known.offset + known.shape.elements(); ++i) {
          double wanted = 0;
          for (const Member& member : rounds.all()) wanted += member.gradient[i];
          ASSERT_NEAR(after[i] + 3.0 * rounds.at(0).arena[i], wanted, 1e-5 * size) << i;
        }
      }
    }
  }
}

// Nothing where there is nothing; on one rank, on all, and of few directions.
TEST(StepFactorsOfBadInput, ZerosAndFewDirectionsAreExact) {
  const auto row = [](uint64_t element) {
    return static_cast<float>(static_cast<int>(element % 80 % 9) - 4);
  };
  const std::vector<std::pair<const char*, Gradient>> cases = {
      {"zeros", [](int, Rank, uint64_t) { return 0.0f; }},
      {"zeros but on rank 2",
       [row](int, Rank rank, uint64_t element) { return rank == 2 ? row(element) : 0.0f; }},
      {"one repeated row", [row](int, Rank, uint64_t element) { return row(element); }},
      {"one row", [row](int, Rank, uint64_t e) { return e / 80 == 40 ? row(e) : 0.0f; }},
      {"one element", [](int, Rank, uint64_t element) { return element == 4000 ? 3.0f : 0.0f; }},
      {"two directions", [row](int, Rank rank, uint64_t element) {
         return row(element) * static_cast<float>(element / 80) + static_cast<float>(rank);
       }}};
  for (const auto& [what, gradient] : cases) {
    for (const Path path : {Path::split, Path::gather}) {
      for (const Point rest : kRests) {
        SCOPED_TRACE(::testing::Message() << what << ", rest " << rest.density);
        const Layout layout = small_layout(kRanks);
        FakeNetwork network(kRanks);
        RoundOfMembers rounds(network, layout, kRanks);
        rounds.set_plan(plan_at(layout, path, 3, ValueKind::f32, rest));
        rounds.gradient = of_large(gradient);
        for (uint64_t round = 1; round <= 3; ++round) {
          const std::vector<double> before = kept_by(rounds, first_stations(kRanks));
          rounds.run(round, first_stations(kRanks), 1, round);
          ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
          ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(kRanks), before, 1e-3));
          EXPECT_EQ(rounds.at(0).outcome->value().nonfinite, 0u);
          // No more directions than the factors have: they hold all.
          const TensorLayout& known = layout.tensors()[kLarge];
          for (uint64_t i = 0; i < known.shape.elements(); ++i) {
            double wanted = 0;
            for (Rank rank = 0; rank < kRanks; ++rank) {
              wanted += gradient(1, rank, i) / static_cast<double>(kRanks);
            }
            ASSERT_NEAR(rounds.at(0).arena[known.offset + i], wanted, 2e-3) << i;
          }
        }
      }
    }
  }
}

// So small that products vanish, of any kind of factors.
TEST(StepFactorsOfBadInput, DenormalsWaitOrGoAndNothingIsLost) {
  for (const float size : {0x1p-149f, 0x1p-140f, 0x1p-126f}) {
    for (int kind = 0; kind < codec::kValueKindCount; ++kind) {
      for (const Point rest : kRests) {
        const Layout layout = small_layout(kRanks);
        FakeNetwork network(kRanks);
        RoundOfMembers rounds(network, layout, kRanks);
        rounds.set_plan(plan_at(layout, Path::split, 2, static_cast<ValueKind>(kind), rest));
        rounds.gradient = of_large([size](int, Rank rank, uint64_t element) {
          return size * static_cast<float>(static_cast<int>(element % 7) - 3 + rank);
        });
        const TensorLayout& known = layout.tensors()[kLarge];
        std::vector<double> before = kept_by(rounds, first_stations(kRanks));
        for (uint64_t round = 1; round <= 2; ++round) {
          rounds.run(round, first_stations(kRanks), 1, round);
          ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
          const std::vector<double> after = kept_by(rounds, first_stations(kRanks));
          for (uint64_t i = known.offset; i < known.offset + known.shape.elements(); ++i) {
            double wanted = before[i];
            for (const Member& member : rounds.all()) wanted += member.gradient[i];
            ASSERT_NEAR(after[i] + 3.0 * rounds.at(0).arena[i], wanted, 64 * 0x1p-149 + 1e-5 * size)
                << "size " << size << ", kind " << kind << ", element " << i;
          }
          before = after;
        }
      }
    }
  }
}

TEST(StepFactorsOfBadInput, Rank256Runs) {
  const Layout layout =
      Layout::create(std::vector<codec::Shape>{{300, 900}, {1, 30}}, kRanks).value();
  for (const Point rest : {codec::kKeepAll, Point{1, ValueKind::q1}}) {
    FakeNetwork network(kRanks);
    RoundOfMembers rounds(network, layout, kRanks);
    // No factors have so many numbers as the matrix; 256 is the most of any rank.
    FusionPlan plan = plan_at(layout, Path::split, 1, ValueKind::q8, rest);
    for (PartPlan& part : plan.buffers[0].points) {
      if (part.first.rank > 0) part.first.rank = part.second.rank = 256;
    }
    rounds.set_plan(plan);
    for (uint64_t round = 1; round <= 2; ++round) {
      const std::vector<double> before = kept_by(rounds, first_stations(kRanks));
      rounds.run(round, first_stations(kRanks), 1, round);
      ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
      ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(kRanks), before, 2e-4));
    }
    EXPECT_EQ(rounds.at(0).step->plan().buffers[0].points[0].first.rank, 256);
  }
}

TEST(StepFactorsOfBadInput, RankBeyondTheSidesIsRefusedByAllOrClamped) {
  const Layout layout = small_layout(kRanks);
  const FusionPlan clamped = plan_at(layout, Path::split, 200, ValueKind::q4, {1, ValueKind::q1});
  FakeNetwork network(kRanks);
  RoundOfMembers rounds(network, layout, kRanks);
  for (const auto most : {uint16_t{65}, uint16_t{257}, uint16_t{65535}}) {
    FusionPlan wrong = plan_at(layout, Path::split, 2, ValueKind::q4, {1, ValueKind::q1});
    const PartPlan* changed = nullptr;
    for (BufferPlan& buffer : wrong.buffers) {
      const uint32_t part = layout.tensors()[kLarge].first_part;
      if (part < buffer.first_part || part >= buffer.first_part + buffer.parts) continue;
      PartPlan& points = buffer.points[part - buffer.first_part];
      points.first.rank = points.second.rank = most;
      changed = &points;
    }
    ASSERT_NE(changed, nullptr);
    for (const Member& member : rounds.all()) {
      const Result<void> refused = member.step->set_plan(wrong);
      ASSERT_FALSE(refused.ok());
      EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
      EXPECT_NE(refused.error().message.find("rank " + std::to_string(most) +
                                             ", the part has at most 64"),
                std::string::npos)
          << refused.error().message;
    }
  }
  rounds.set_plan(clamped);
  const std::vector<double> before = kept_by(rounds, first_stations(kRanks));
  rounds.run(1, first_stations(kRanks), 1, 1);
  ASSERT_NO_FATAL_FAILURE(expect_alike_and_well(rounds, first_stations(kRanks)));
  ASSERT_NO_FATAL_FAILURE(expect_mass(rounds, first_stations(kRanks), before, 4e-5));
}

}  // namespace
}  // namespace scant::gradient
