// Owners that change within a step, over real sockets: nothing is lost, and nobody waits for ever.
#include <atomic>
#include <gtest/gtest.h>
#include <string>
#include <utility>
#include <vector>

#include "collective/testing/threads_as_ranks.h"
#include "gradient/testing/averagers.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

// Every second step has other owners, from its first buffer on: no rank has begun any of them when
// it learns of the change.
TEST(AveragerOwners, OwnersChangeWithinAStepAndNothingIsLost) {
  for (const int ranks : {2, 3}) {
    constexpr int kSteps = 5;
    Collected collected;
    collective::on_ranks(ranks, [&](Communicator& communicator) {
      const Layout layout = layout_for(ranks);
      Host host(communicator, layout);
      std::vector<SliceDuty> duties = duties_for(layout, ranks);
      for (SliceDuty& duty : duties) duty.owner = (duty.owner + 1) % ranks;
      std::vector<double> applied(layout.arena_elements(), 0.0);
      for (int number = 1; number <= kSteps; ++number) {
        const bool last = number == kSteps;
        const FusionPlan plan = uniform(layout, last ? Path::all_reduce : Path::split,
                                        last ? 1.0 : 0.3, codec::ValueKind::q4);
        host.set(plan);
        const bool changes = number % 2 == 0;
        if (changes) {
          const Result<void> changed = host.averager->change_owners(duties);
          ASSERT_TRUE(changed.ok()) << changed.error().to_string();
        }
        const auto report = host.step(number, static_cast<uint64_t>(number));
        ASSERT_TRUE(report.ok()) << report.error().to_string();
        EXPECT_EQ(report.value().changed_buffers, changes ? plan.buffers.size() : 0u);
        collected.add(communicator.rank(), host.arena);
        for (size_t i = 0; i < applied.size(); ++i) applied[i] += host.arena[i];
      }
      for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
        for (uint64_t i = 0; i < kShapes[tensor].elements(); ++i) {
          double wanted = 0;
          for (int n = 1; n <= kSteps; ++n) wanted += exact_average(n, ranks, tensor, i);
          ASSERT_NEAR(applied[layout.tensors()[tensor].offset + i], wanted, 3e-6 * (1.0 + tensor))
              << "tensor " << tensor << ", element " << i;
        }
      }
    });
    collected.expect_alike();
  }
}

// Two averagers may have one key, as those of two models on the same ranks do. Whose change of
// owners is first on a rank is that rank's own affair.
TEST(AveragerOwners, ChangesOfOwnersOfAveragersWithOneKeyDoNotMeet) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    Host one(communicator, layout, {.timeout = 20s});
    Host other(communicator, layout, {.timeout = 20s});
    one.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q4));
    other.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q8));
    std::vector<SliceDuty> duties = duties_for(layout, 2);
    for (SliceDuty& duty : duties) duty.owner = 1 - duty.owner;
    std::vector<Host*> hosts = {&one, &other};
    if (communicator.rank() == 1) std::swap(hosts[0], hosts[1]);
    for (const Host* host : hosts) {
      ASSERT_TRUE(host->averager->change_owners(duties).ok());
      EXPECT_TRUE(host->averager->save().ok()) << "the change has begun when this is over";
    }
    for (Host* host : {&one, &other}) {
      const auto report = host->step(1, 1);
      ASSERT_TRUE(report.ok()) << report.error().to_string();
      EXPECT_EQ(report.value().changed_buffers, host->averager->averaged().size());
    }
  });
}

// The others cannot know that it never will.
TEST(AveragerOwners, AChangeOfOwnersThatARankNeverMakesEndsInItsTime) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    Host host(communicator, layout, {.timeout = 1s});
    host.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q4));
    if (communicator.rank() == 0) {
      ASSERT_TRUE(host.averager->change_owners(duties_for(layout, 2)).ok());
    }
    const auto outcome = host.step(1, 1);
    ASSERT_FALSE(outcome.ok());
    const Error& error = outcome.error();
    EXPECT_TRUE(error.code == ErrorCode::timeout || error.code == ErrorCode::closed)
        << error.to_string();
    const std::string other = "rank " + std::to_string(1 - communicator.rank());
    EXPECT_NE(error.message.find(other), std::string::npos) << error.to_string();
  });
}

// A rank that never comes to the change leaves its lanes, so the others do not wait for it.
TEST(AveragerOwners, AChangeOfOwnersEndsWithTheStepOfARankThatGoes) {
  std::atomic<bool> changing{false};
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    Host host(communicator, layout);
    host.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q4));
    std::vector<SliceDuty> duties = duties_for(layout, 2);
    EXPECT_EQ(host.averager->change_owners({}).error().code, ErrorCode::invalid_argument);
    if (communicator.rank() == 1) {
      while (!changing) std::this_thread::yield();
      host.averager.reset();
      return;
    }
    ASSERT_TRUE(host.averager->change_owners(duties).ok());
    ASSERT_TRUE(host.averager->finish().ok());
    const Result<void> late = host.averager->change_owners(duties);
    EXPECT_NE(late.error().message.find("before finish()"), std::string::npos);
    changing = true;
    const auto outcome = host.averager->wait(90s);
    ASSERT_TRUE(outcome.has_value() && !outcome->ok());
    EXPECT_TRUE(outcome->error().code == ErrorCode::closed ||
                outcome->error().code == ErrorCode::peer_lost)
        << outcome->error().to_string();
  });
}

}  // namespace
}  // namespace scant::gradient
