// Rounds whose gradients are encoded elsewhere and later: the bits of a round of hosts, whatever
// the order in which devices end, and work that goes on meanwhile.
#include <gtest/gtest.h>

#include "gradient/testing/devices.h"

namespace scant::gradient {
namespace {

using codec::Place;
using testing::all_of;
using testing::kept_by;
using testing::Kind;
using testing::LateRank;
using testing::Member;
using testing::plan_of;
using testing::Ranks;
using testing::small_layout;

void expect_the_same(Ranks& devices, Ranks& hosts) {
  for (Member& member : devices.rounds->all()) {
    SCOPED_TRACE(::testing::Message() << "rank " << member.station);
    Member& twin = hosts.at(member.station);
    ASSERT_TRUE(member.outcome && twin.outcome);
    ASSERT_TRUE(twin.outcome->ok()) << twin.outcome->error().to_string();
    ASSERT_TRUE(member.outcome->ok()) << member.outcome->error().to_string();
    ASSERT_EQ(member.arena, twin.arena);
    ASSERT_EQ(member.step->save().value(), twin.step->save().value());
    const StepReport& own = member.outcome->value();
    const StepReport& other = twin.outcome->value();
    EXPECT_EQ(own.sent_bytes, other.sent_bytes);
    EXPECT_EQ(own.nonfinite, other.nonfinite);
    ASSERT_EQ(own.accounts.size(), other.accounts.size());
    for (size_t i = 0; i < own.accounts.size(); ++i) {
      EXPECT_EQ(own.accounts[i].residual_energy, other.accounts[i].residual_energy);
    }
    for (size_t i = 0; i < own.parts.size(); ++i) {
      EXPECT_EQ(own.parts[i].bytes, other.parts[i].bytes);
      EXPECT_EQ(own.parts[i].energy, other.parts[i].energy);
    }
    ASSERT_EQ(own.curves.size(), other.curves.size());
    for (size_t i = 0; i < own.curves.size(); ++i) {
      EXPECT_EQ(own.curves[i].energy, other.curves[i].energy);
      EXPECT_EQ(own.curves[i].held, other.curves[i].held);
    }
  }
}

// What does not arrive of a bounded leg, by who and what alone.
std::vector<codec::Range> lost_of(const Lane&, Rank sender, Rank receiver,
                                  const Operation::Piece& piece) {
  const uint64_t drawn =
      base::random_at(static_cast<uint64_t>(sender), static_cast<uint64_t>(receiver), piece.slice);
  if (drawn % 4 != 0) return {};
  return {piece.range};
}

// With gradients on a device, what owners kept goes another way where all gather all, and rounds
// otherwise: this plan has no buffer of that path.
void keep_owners_apart(FusionPlan& plan, Path without) {
  for (BufferPlan& buffer : plan.buffers) {
    if (buffer.path != without) continue;
    buffer.path = Path::all_reduce;
    buffer.points.clear();
  }
}

void run_both(uint64_t seed, int ranks, Kind kind) {
  base::Rng rng(seed, static_cast<uint64_t>(ranks));
  const Layout layout = small_layout(ranks);
  StepOptions options{.residual = static_cast<codec::ResidualKind>(1 + rng.below(3)),
                      .decay = rng.chance(0.5) ? 1.0f : 0.75f,
                      .verdict_last = rng.chance(0.3)};
  if (rng.chance(0.3)) options.first_leg.exact = options.second_leg.exact = false;
  std::vector<Kind> kinds;
  for (int rank = 0; rank < ranks; ++rank) kinds.push_back(rng.chance(0.6) ? kind : Kind::host);
  kinds[rng.below(kinds.size())] = kind;
  Ranks devices(layout, kinds, options);
  Ranks hosts(layout, std::vector<Kind>(kinds.size(), Kind::host), options);
  devices.network.lose = hosts.network.lose = lost_of;
  for (uint64_t round = 1; round <= 4; ++round) {
    FusionPlan plan = testing::random_plan(rng, layout, seed % 2 == 0);
    if (kind == Kind::staged) keep_owners_apart(plan, seed % 3 == 0 ? Path::split : Path::gather);
    for (Ranks* one : {&devices, &hosts}) {
      one->curves = round == 3;
      one->rounds->set_plan(plan);
      const std::vector<uint32_t> absent(round == 2 ? 1 : 0, 2u);
      // In other orders, too.
      one->rounds->run(round, all_of(ranks), 1, seed * 10 + round + (one == &hosts ? 999 : 0),
                       absent);
    }
    SCOPED_TRACE(::testing::Message()
                 << "seed " << seed << ", " << ranks << " ranks, round " << round);
    ASSERT_NO_FATAL_FAILURE(expect_the_same(devices, hosts));
  }
  for (auto& [rank, one] : devices.staged) EXPECT_GT(one->woken, 0);
  for (auto& [rank, one] : devices.late) EXPECT_EQ(one.woken, one.ended);
  // What was saved on a host goes on on a device, and the other way round.
  for (Member& member : devices.rounds->all()) {
    const auto saved = member.step->save().value();
    ASSERT_TRUE(member.step->restore(hosts.at(member.station).step->save().value()).ok());
    ASSERT_TRUE(hosts.at(member.station).step->restore(saved).ok());
  }
  for (Ranks* one : {&devices, &hosts}) one->rounds->run(5, all_of(ranks), 1, seed);
  ASSERT_NO_FATAL_FAILURE(expect_the_same(devices, hosts));
}

TEST(StepDevices, HaveTheBitsOfARoundOfHosts) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      ASSERT_NO_FATAL_FAILURE(run_both(seed, ranks, Kind::staged));
    }
  }
}

TEST(StepDevices, HaveThemWhateverEndsFirst) {
  for (int ranks = 1; ranks <= 5; ++ranks) {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
      ASSERT_NO_FATAL_FAILURE(run_both(seed, ranks, Kind::late));
    }
  }
}

// All buffers but that of the tensor which is held back arrive on every rank.
TEST(StepDevices, OtherBuffersGoOnWhileADeviceWorks) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const Layout layout = small_layout(3);
    Ranks ranks(layout, {Kind::host, Kind::late, Kind::host}, {});
    const auto last = static_cast<uint32_t>(layout.tensors().size() - 1);
    const FusionPlan plan = plan_of(layout, Path::split, 1.0, 1);
    ASSERT_EQ(plan.buffers.size(), layout.parts().size());
    ranks.rounds->set_plan(plan);
    LateRank& late = ranks.late[1];
    late.held = last;
    ranks.rounds->begin(1, all_of(3), 1, seed);
    ranks.rounds->drive(seed);
    EXPECT_GT(late.working(), 0u);
    EXPECT_TRUE(ranks.at(1).step->device_works());
    for (Member& member : ranks.rounds->all()) {
      EXPECT_FALSE(member.outcome);
      size_t arrived = 0;
      while (const auto buffer = member.step->next_arrived()) {
        EXPECT_NE(*buffer, last);
        ++arrived;
      }
      EXPECT_EQ(arrived, plan.buffers.size() - 1) << "rank " << member.station;
    }
    late.held = UINT32_MAX;
    ranks.rounds->drive(seed);
    for (Member& member : ranks.rounds->all()) {
      ASSERT_TRUE(member.outcome && member.outcome->ok());
      EXPECT_EQ(member.arena, ranks.at(0).arena);
    }
  }
}

// A part comes to be encoded twice, and its effort is told when it is done.
TEST(StepDevices, AJobComesAgainWhenAllSlicesOfItsPartAreDone) {
  const Layout layout = small_layout(1);
  Ranks ranks(layout, {Kind::late}, {});
  ranks.rounds->set_plan(plan_of(layout, Path::split, 1.0));
  Member& member = ranks.at(0);
  RoundSpec spec{.round = 1, .arena = member.arena, .members = everyone(1, 0)};
  ASSERT_TRUE(member.step->begin(spec, Time{}).ok());
  member.step->ready(0, Time{});
  const auto run = [&](const GradientStep::Job& job) {
    const Effort effort = member.step->run(job);
    member.step->finished(job, Time{}, Time{});
    return effort;
  };
  const auto job = member.step->next();
  ASSERT_TRUE(job);
  EXPECT_EQ(run(*job), Effort{});
  EXPECT_FALSE(member.step->next());
  for (auto& [tensor, encoder] : ranks.late[0].all()) encoder->end();
  const auto again = member.step->next();
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, *job);
  EXPECT_EQ(run(*again).records, ranks.late[0].all().size());
  EXPECT_FALSE(member.step->next());
  member.step->abort({.code = ErrorCode::closed, .message = "over"});
  EXPECT_TRUE(member.step->take_outcome(Time{}));
}

TEST(StepDevices, WhatDoesNotGoFromADeviceIsRefusedByName) {
  const Layout layout = small_layout(1);
  Ranks ranks(layout, {Kind::staged}, {});
  Member& member = ranks.at(0);
  RoundSpec spec{.round = 1, .arena = member.arena, .members = everyone(1, 0)};
  ranks.staged[0]->change(member, spec);
  const auto expect_refused = [&](const RoundSpec& wrong, ErrorCode code, const char* what) {
    const Result<void> begun = member.step->begin(wrong, Time{});
    ASSERT_FALSE(begun.ok()) << what;
    EXPECT_EQ(begun.error().code, code);
    EXPECT_NE(begun.error().message.find(what), std::string::npos) << begun.error().message;
    EXPECT_TRUE(member.step->idle());
  };
  RoundSpec elsewhere = spec;
  elsewhere.gradients.place.ordinal = 7;
  ranks.rounds->set_plan(plan_of(layout, Path::all_reduce, 1.0));
  expect_refused(elsewhere, ErrorCode::invalid_argument, "they lie on device 7");
  ranks.rounds->set_plan(plan_of(layout, Path::split, 1.0));
  RoundSpec shorter = spec;
  shorter.gradients.memory = shorter.gradients.memory.first(3);
  expect_refused(shorter, ErrorCode::invalid_argument, "gradients: the layout needs");
  RoundSpec pinned = spec;
  pinned.gradients.place.kind = Place::Kind::pinned;
  expect_refused(pinned, ErrorCode::invalid_argument, "lie in the arena");
  // Nobody copies for a plain buffer; an encoder of the host is given what lies on a device.
  Ranks hosts(layout, {Kind::host}, {});
  hosts.rounds->set_plan(plan_of(layout, Path::all_reduce, 1.0));
  spec.arena = hosts.at(0).arena;
  const Result<void> begun = hosts.at(0).step->begin(spec, Time{});
  ASSERT_FALSE(begun.ok());
  EXPECT_EQ(begun.error().code, ErrorCode::unsupported);
  EXPECT_NE(begun.error().message.find("buffer 0 of the plan goes as all_reduce"),
            std::string::npos);
  hosts.rounds->set_plan(
      testing::plan_of(layout, Path::split, testing::ranked(2, codec::ValueKind::q4)));
  const Result<void> factors = hosts.at(0).step->begin(spec, Time{});
  ASSERT_FALSE(factors.ok());
  EXPECT_EQ(factors.error().code, ErrorCode::unsupported);
  EXPECT_NE(factors.error().message.find("of the plan sends factors, which are made on the host, "
                                         "and no device was given"),
            std::string::npos)
      << factors.error().message;
  hosts.rounds->set_plan(member.step->plan());
  hosts.rounds->change = [&](Member& of, RoundSpec& changed) {
    ranks.staged[0]->change(of, changed);
  };
  hosts.rounds->run(1, {0}, 1, 1);
  ASSERT_FALSE(hosts.at(0).outcome->ok());
  EXPECT_EQ(hosts.at(0).outcome->error().code, ErrorCode::invalid_argument);
}

// Of encoders whose residuals the host does not reach.
TEST(StepDevices, FactorsOfWhatADeviceKeepsAreAnErrorOnEveryRank) {
  const Layout layout = small_layout(3);
  Ranks ranks(layout, {Kind::host, Kind::late, Kind::host}, {});
  ranks.late[1].keeps_elsewhere = true;
  ranks.curves = true;
  ranks.rounds->set_plan(
      testing::plan_of(layout, Path::split, testing::ranked(2, codec::ValueKind::q4)));
  ranks.rounds->run(1, all_of(3), 1, 1);
  for (Member& member : ranks.rounds->all()) {
    ASSERT_TRUE(member.outcome && !member.outcome->ok());
    const Error& error = member.outcome->error();
    EXPECT_EQ(error.code, ErrorCode::unsupported);
    EXPECT_EQ(error.peer, member.station == 1 ? kNoRank : 1);
  }
  EXPECT_NE(ranks.at(1).outcome->error().message.find("its residuals lie on a device"),
            std::string::npos);
  // Another plan goes on, and nobody has looked for directions there.
  ranks.rounds->set_plan(plan_of(layout, Path::split, 1.0));
  ranks.rounds->run(2, all_of(3), 2, 2);
  const uint32_t matrix = layout.tensors()[3].first_part;
  for (Member& member : ranks.rounds->all()) {
    ASSERT_TRUE(member.outcome->ok()) << member.outcome->error().to_string();
    EXPECT_EQ(member.outcome->value().curves[matrix].held.back() > 0, member.station != 1);
  }
}

// To come to the arena, where directions are found and the rest is encoded; and where curves are
// wanted, first of all to be looked at.
TEST(StepDevices, AMatrixPartComesOnce) {
  const Layout layout = small_layout(1);
  for (const bool factors : {true, false}) {
    Ranks ranks(layout, {Kind::staged}, {});
    ranks.curves = !factors;
    const codec::Point rest{1.0, codec::ValueKind::q2};
    ranks.rounds->set_plan(testing::plan_of(
        layout, Path::split, factors ? testing::ranked(2, codec::ValueKind::q4, rest) : rest));
    Member& member = ranks.at(0);
    RoundSpec spec{.round = 1, .arena = member.arena, .members = everyone(1, 0)};
    ranks.rounds->change(member, spec);
    ASSERT_TRUE(member.step->begin(spec, Time{}).ok());
    constexpr uint32_t kTensor = 3;
    const TensorLayout& tensor = layout.tensors()[kTensor];
    member.step->ready(kTensor, Time{});
    std::vector<Stage> stages;
    while (const auto job = member.step->next()) {
      EXPECT_EQ(job->part, tensor.first_part);
      stages.push_back(job->stage);
      static_cast<void>(member.step->run(*job));
      member.step->finished(*job, Time{}, Time{});
      EXPECT_EQ(ranks.staged[0]->works(), member.step->device_works());

      while (ranks.staged[0]->run_one()) {
      }
    }
    const auto again = factors ? std::vector{Stage::basis, Stage::basis}
                               : std::vector{Stage::values, Stage::values, Stage::values};
    EXPECT_EQ(stages, again);
    member.step->abort({.code = ErrorCode::closed, .message = "over"});
    EXPECT_TRUE(member.step->take_outcome(Time{}));
  }
}

// Wherever its gradients lie: what a device has kept goes along.
void run_plain_after_split(bool from_the_host) {
  const Layout layout = small_layout(2);
  Ranks ranks(layout, {Kind::staged, Kind::host}, {});
  ranks.rounds->set_plan(plan_of(layout, Path::split, 0.1));
  ranks.rounds->run(1, {0, 1}, 1, 1);
  const std::vector<double> before = kept_by(*ranks.rounds, {0, 1});
  if (from_the_host) ranks.rounds->change = nullptr;
  ranks.rounds->set_plan(plan_of(layout, Path::all_reduce, 1.0));
  ranks.rounds->run(2, {0, 1}, 1, 2);
  EXPECT_EQ(ranks.at(0).step->residuals().measured_energy(), 0);
  for (size_t i = 0; i < before.size(); ++i) {
    double wanted = before[i];
    for (const Member& member : ranks.rounds->all()) wanted += member.gradient[i];
    ASSERT_NEAR(2 * ranks.at(0).arena[i], wanted, 2e-5) << i;
  }
}

TEST(StepDevices, APlainRoundTakesWhatADeviceKept) {
  run_plain_after_split(true);
  run_plain_after_split(false);
}

// What an owner kept of a plan of `split` goes to the worker where all gather all.
TEST(StepDevices, AGatheredRoundOfADeviceLosesNothingThatItsOwnerKept) {
  const Layout layout = small_layout(2);
  Ranks ranks(layout, {Kind::staged, Kind::host}, {});
  ranks.rounds->set_plan(plan_of(layout, Path::split, 0.1));
  ranks.rounds->run(1, {0, 1}, 1, 1);
  const std::vector<double> before = kept_by(*ranks.rounds, {0, 1});
  EXPECT_GT(ranks.at(0).step->residuals().owner_energy(), 0);
  ranks.rounds->set_plan(plan_of(layout, Path::gather, 0.1));
  ranks.rounds->run(2, {0, 1}, 1, 2);
  EXPECT_EQ(ranks.at(0).step->residuals().owner_energy(), 0);
  const std::vector<double> after = kept_by(*ranks.rounds, {0, 1});
  for (size_t i = 0; i < before.size(); ++i) {
    double wanted = before[i];
    for (const Member& member : ranks.rounds->all()) wanted += member.gradient[i];
    ASSERT_NEAR(after[i] + 2 * ranks.at(0).arena[i], wanted, 2e-5) << i;
  }
  EXPECT_EQ(ranks.at(0).arena, ranks.at(1).arena);
}

// What a device ends after the change goes to the owner of then.
TEST(StepDevices, OwnersChangeWhileDevicesWork) {
  size_t changed = 0;
  for (uint64_t seed = 1; seed <= 80; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    const Layout layout = small_layout(3);
    FusionPlan plan = plan_of(layout, Path::split, rng.chance(0.5) ? 1.0 : 0.3);
    if (rng.chance(0.5)) plan.reversed = static_cast<uint32_t>(plan.buffers.size());
    if (plan.reversed == 1) plan.reversed = 0;
    Ranks ranks(layout, {Kind::host, Kind::late, Kind::staged}, {.verdict_last = rng.chance(0.5)});
    ranks.rounds->set_plan(plan);
    for (uint64_t round = 1; round <= 3; ++round) {
      ranks.rounds->owner_changes.assign(1 + rng.below(2), duties_for(layout, 3));
      for (auto& duties : ranks.rounds->owner_changes) {
        for (SliceDuty& duty : duties) duty.owner = static_cast<Rank>(rng.below(3));
      }
      std::vector<double> wanted = kept_by(*ranks.rounds, all_of(3));
      ranks.rounds->run(round, all_of(3), 1, seed * 10 + round);
      const std::vector<double> after = kept_by(*ranks.rounds, all_of(3));
      for (const Member& member : ranks.rounds->all()) {
        ASSERT_TRUE(member.outcome) << "rank " << member.station << " waits for ever";
        ASSERT_TRUE(member.outcome->ok()) << member.outcome->error().to_string();
        ASSERT_EQ(member.arena, ranks.at(0).arena);
        for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += member.gradient[i];
      }
      for (size_t i = 0; i < wanted.size(); ++i) {
        ASSERT_NEAR(after[i] + 3.0 * ranks.at(0).arena[i], wanted[i], 5e-5) << "element " << i;
      }
      changed += ranks.at(0).outcome->value().changed_buffers;
    }
  }
  EXPECT_GT(changed, 100u);
}

}  // namespace
}  // namespace scant::gradient
