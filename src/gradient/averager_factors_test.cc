// Averagers of several ranks over real sockets by plans with factors: the same bits for any number
// of workers, owners that change within a step, and a rank that is lost in each phase.
#include <atomic>
#include <gtest/gtest.h>

#include "codec/accumulate.h"
#include "codec/rank/factors.h"
#include "collective/testing/threads_as_ranks.h"
#include "gradient/communicator_exchange.h"
#include "gradient/testing/averagers.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;
using codec::ValueKind;

constexpr int kRanks = 3;
constexpr codec::Point kWithRest = {1.0, ValueKind::q1, false, 4, ValueKind::q4};
constexpr codec::Point kAlone = {0.0, ValueKind::f32, false, 4, ValueKind::q8};

FusionPlan plan_of(const Layout& layout, codec::Point point, Path path = Path::split) {
  return uniform_plan({.path = path,
                       .point = point,
                       .buffer_bytes = 300'000,
                       .first_buffer_bytes = 10'000,
                       .small_elements = 100},
                      layout);
}

TEST(AveragerFactors, TheSameBitsForAnyNumberOfWorkers) {
  for (const codec::Point point : {kWithRest, kAlone}) {
    for (const Path path : {Path::split, Path::gather}) {
      Collected collected;
      collective::on_ranks(2, [&](Communicator& communicator) {
        const Layout layout = layout_for(2);
        std::vector<float> reference;
        std::vector<std::byte> saved;
        for (const size_t workers : {size_t{1}, size_t{3}, size_t{8}}) {
          AveragerOptions options;
          options.workers = workers;
          options.key = std::to_string(workers);
          Host host(communicator, layout, options);
          host.set(plan_of(layout, point, path));
          for (int number = 1; number <= 3; ++number) ASSERT_TRUE(host.step(number, 9).ok());
          if (reference.empty()) {
            reference = host.arena;
            saved = host.averager->save().value();
          }
          EXPECT_EQ(reference, host.arena) << workers << " workers";
          EXPECT_EQ(saved, host.averager->save().value()) << workers << " workers";
        }
        collected.add(communicator.rank(), reference);
      });
      collected.expect_alike();
    }
  }
}

// A factor's values from records of all its slices: averages, or each rank's, to be added.
std::vector<float> factor_from(std::span<const codec::RecordView> records, uint32_t tensor,
                               codec::Shape shape, float weight) {
  std::vector<float> out(shape.elements());
  codec::Workspace workspace;
  for (uint64_t first = 0; first < out.size();) {
    std::vector<codec::RecordView> here;
    for (const codec::RecordView& record : records) {
      const codec::RecordHeader& header = record.header();
      if (header.tensor == tensor && header.first == first) here.push_back(record);
    }
    if (here.empty()) {
      ADD_FAILURE() << "no record of tensor " << tensor << " at " << first;
      break;
    }
    const auto to = std::span(out).subspan(first, here.front().header().elements);
    EXPECT_TRUE(codec::accumulate(here, tensor, shape, first, to, weight, workspace).ok());
    first += to.size();
  }
  return out;
}

std::vector<codec::RecordView> records_of(const AveragedBuffer& buffer) {
  std::vector<codec::RecordView> all;
  for (const auto* messages : {&buffer.basis_messages, &buffer.messages}) {
    for (const Bytes message : *messages) {
      auto parsed = codec::parse_all(message);
      EXPECT_TRUE(parsed.ok());
      for (codec::RecordView& record : parsed.value()) all.push_back(std::move(record));
    }
  }
  return all;
}

// Without a rest: what a part's average is made from is all in the messages.
void expect_products(const Host& host, float weight) {
  const Layout& layout = host.layout;
  size_t matrices = 0;
  for (const AveragedBuffer& buffer : host.averager->averaged()) {
    const auto records = records_of(buffer);
    EXPECT_EQ(buffer.basis_messages.empty(), buffer.matrices.empty());
    for (const AveragedBuffer::Matrix& one : buffer.matrices) {
      const PartLayout& part = layout.parts()[one.part];
      const codec::Shape shape = layout.tensors()[part.tensor].shape;
      codec::Factors factors(shape, part.range, 0);
      ASSERT_TRUE(factors.set_rank(one.rank).ok());
      factors.set_basis(
          factor_from(records, codec::kLeftFactors + one.part, {one.rank, factors.rows()}, weight));
      const auto right =
          factor_from(records, codec::kRightFactors + one.part, {one.rank, shape.columns}, weight);
      std::vector<float> product(part.range.elements);
      codec::Workspace workspace;
      EXPECT_TRUE(factors.add_average(right, part.range, product, workspace));
      const auto at = layout.arena_offset(part.tensor, part.range);
      EXPECT_TRUE(std::ranges::equal(product, std::span(host.arena).subspan(at, product.size())))
          << "part " << one.part;
      ++matrices;
    }
  }
  EXPECT_GT(matrices, 2U);
}

// Whatever plan is set meanwhile.
TEST(AveragerFactors, WhatWasAveragedTellsTheRecordsOfBothFactors) {
  for (const Path path : {Path::split, Path::gather}) {
    collective::on_ranks(kRanks, [&](Communicator& communicator) {
      Host host(communicator, layout_for(kRanks));
      const float weight = path == Path::split ? 1.0f : codec::mean_weight(kRanks);
      for (const int number : {1, 2}) {
        host.set(plan_of(host.layout, kAlone, path));
        ASSERT_TRUE(host.step(number, 3).ok());
        expect_products(host, weight);
      }
      host.set(uniform(host.layout, Path::all_reduce, 1.0, ValueKind::f32));
      expect_products(host, weight);
    });
  }
}

// Every second step has other owners, from its first buffer on.
TEST(AveragerFactors, OwnersChangeWithinAStepAndNothingIsLost) {
  constexpr int kSteps = 5;
  for (const codec::Point point : {kWithRest, kAlone}) {
    Collected collected;
    collective::on_ranks(kRanks, [&](Communicator& communicator) {
      const Layout layout = layout_for(kRanks);
      Host host(communicator, layout);
      std::vector<SliceDuty> duties = duties_for(layout, kRanks);
      for (SliceDuty& duty : duties) duty.owner = (duty.owner + 1) % kRanks;
      std::vector<double> applied(layout.arena_elements(), 0.0);
      for (int number = 1; number <= kSteps; ++number) {
        const FusionPlan plan = number < kSteps
                                    ? plan_of(layout, point)
                                    : uniform(layout, Path::all_reduce, 1.0, ValueKind::f32);
        host.set(plan);
        const bool changes = number % 2 == 0;
        if (changes) {
          ASSERT_TRUE(host.averager->change_owners(duties).ok());
        }
        const auto report = host.step(number, static_cast<uint64_t>(number));
        ASSERT_TRUE(report.ok()) << report.error().to_string();
        EXPECT_EQ(report.value().changed_buffers, changes ? plan.buffers.size() : 0u);
        if (point == kAlone && number < kSteps) expect_products(host, 1.0f);
        collected.add(communicator.rank(), host.arena);
        for (size_t i = 0; i < applied.size(); ++i) applied[i] += host.arena[i];
      }
      for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
        for (uint64_t i = 0; i < kShapes[tensor].elements(); ++i) {
          double wanted = 0;
          for (int n = 1; n <= kSteps; ++n) wanted += exact_average(n, kRanks, tensor, i);
          ASSERT_NEAR(applied[layout.tensors()[tensor].offset + i], wanted, 4e-6 * (1.0 + tensor))
              << "tensor " << tensor << ", element " << i;
        }
      }
    });
    collected.expect_alike();
  }
}

// A rank that is lost when it would begin its first operation of one leg.
class LostIn final : public Exchange {
 public:
  LostIn(std::unique_ptr<Exchange> with, Communicator& communicator, Leg leg)
      : with_(std::move(with)), communicator_(communicator), leg_(leg) {}
  [[nodiscard]] Time now() const override { return with_->now(); }
  [[nodiscard]] Members members() const override { return with_->members(); }
  void submit(const Members& among, Operation operation, Done done) override {
    if (armed && operation.lane.leg == leg_) communicator_.abort("the test wants it");
    with_->submit(among, std::move(operation), std::move(done));
  }
  void cancel(const Members& among, Lane lane) override { with_->cancel(among, lane); }

  std::atomic<bool> armed{false};  // by the user's thread, before a step

 private:
  const std::unique_ptr<Exchange> with_;
  Communicator& communicator_;
  const Leg leg_;
};

constexpr Rank kVictim = 1;

Result<StepReport> step_of(Averager& averager, const Layout& layout, std::span<float> arena,
                           Rank rank, int number) {
  for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
    const TensorLayout& known = layout.tensors()[tensor];
    for (uint64_t i = 0; i < known.shape.elements(); ++i) {
      arena[known.offset + i] = gradient_at(number, rank, tensor, i);
    }
    if (Result<void> told = averager.ready(tensor); !told) return told.error();
  }
  if (Result<void> told = averager.finish(); !told) return told.error();
  auto outcome = averager.wait(60s);
  if (!outcome) return Error{.code = ErrorCode::timeout, .message = "the step did not end"};
  return *std::move(outcome);
}

void be_lost(Communicator& communicator, Leg leg) {
  const Layout layout = layout_for(kRanks);
  std::vector<float> arena(layout.arena_elements());
  auto real = CommunicatorExchange::create(communicator, {}).value();
  Members members = real->members();
  auto exchange = std::make_unique<LostIn>(std::move(real), communicator, leg);
  std::atomic<bool>& armed = exchange->armed;
  auto made = Averager::create(std::move(exchange), std::move(members), layout, arena, {});
  ASSERT_TRUE(made.ok()) << made.error().to_string();
  ASSERT_TRUE(made.value()->set_plan(plan_of(layout, kWithRest)).ok());
  for (const int number : {1, 2}) {
    ASSERT_TRUE(step_of(*made.value(), layout, arena, kVictim, number).ok());
  }
  armed = true;
  ASSERT_FALSE(step_of(*made.value(), layout, arena, kVictim, 3).ok());
}

void outlive(Communicator& communicator, Collected& collected) {
  Host host(communicator, layout_for(kRanks));
  host.set(plan_of(host.layout, kWithRest));
  for (const int number : {1, 2}) ASSERT_TRUE(host.step(number, 1).ok());
  const Result<StepReport> third = host.step(3, 1);
  ASSERT_FALSE(third.ok());
  EXPECT_EQ(third.error().code, ErrorCode::peer_lost) << third.error().to_string();
  EXPECT_EQ(third.error().peer, kVictim);
  ASSERT_TRUE(communicator.shrink(30s).ok());
  const Result<Members> two = host.averager->continue_on(communicator);
  ASSERT_TRUE(two.ok()) << two.error().to_string();
  for (const int number : {4, 5}) {
    const Result<StepReport> report = host.step(number, 1);
    ASSERT_TRUE(report.ok()) << report.error().to_string();
    collected.add(communicator.rank(), host.arena);
  }
}

TEST(AveragerFactors, ALostRankEndsEachPhaseAndTheOthersGoOn) {
  for (const Leg leg : {Leg::basis_first, Leg::basis_second, Leg::first, Leg::second}) {
    SCOPED_TRACE(::testing::Message() << "leg " << static_cast<int>(leg));
    Collected collected;
    collective::on_ranks(kRanks, [&](Communicator& communicator) {
      if (communicator.rank() == kVictim) return be_lost(communicator, leg);
      outlive(communicator, collected);
    });
    collected.expect_alike();
  }
}

}  // namespace
}  // namespace scant::gradient
