// Averagers of several ranks over real sockets: results, conservation, bits that are alike, errors.
#include "gradient/averager.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <new>

#include "base/rng.h"
#include "collective/testing/threads_as_ranks.h"
#include "gradient/communicator_exchange.h"
#include "gradient/testing/averagers.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

// Finds no memory for the operations of one leg.
class WithoutMemory final : public Exchange {
 public:
  WithoutMemory(std::unique_ptr<Exchange> with, Leg leg) : with_(std::move(with)), leg_(leg) {}
  [[nodiscard]] Time now() const override { return with_->now(); }
  [[nodiscard]] Members members() const override { return with_->members(); }
  void submit(const Members& among, Operation operation, Done done) override {
    if (operation.lane.leg == leg_) throw std::bad_alloc();
    with_->submit(among, std::move(operation), std::move(done));
  }
  void cancel(const Members& among, Lane lane) override { with_->cancel(among, lane); }

 private:
  const std::unique_ptr<Exchange> with_;
  const Leg leg_;
};

// Nobody waits for a rank whose step failed alone, until the operation's timeout of a minute.
TEST(Averager, ARankThatFailsAloneLeavesItsLanes) {
  const std::vector<std::pair<Leg, bool>> cases = {
      {Leg::first, false},      {Leg::second, false},      {Leg::verdict, false},
      {Leg::basis_first, true}, {Leg::basis_second, true}, {Leg::verdict, true}};  // with factors
  for (const auto& [failing, factors] : cases) {
    const Leg leg = failing;
    const auto rank = static_cast<uint16_t>(factors ? 4 : 0);
    SCOPED_TRACE(::testing::Message() << "leg " << static_cast<int>(leg));
    const auto begun = std::chrono::steady_clock::now();
    std::atomic<int> over{0};
    collective::on_ranks(2, [&](Communicator& communicator) {
      const Layout layout = layout_for(2);
      std::vector<float> arena(layout.arena_elements());
      auto real = CommunicatorExchange::create(communicator, {}).value();
      Members members = real->members();
      std::unique_ptr<Exchange> exchange = std::move(real);
      if (communicator.rank() == 0) {
        exchange = std::make_unique<WithoutMemory>(std::move(exchange), leg);
      }
      auto averager = Averager::create(std::move(exchange), std::move(members), layout, arena, {});
      ASSERT_TRUE(averager.ok());
      const FusionPlan plan = uniform_plan({.path = Path::split,
                                            .point = {1.0, codec::ValueKind::q4, false, rank},
                                            .buffer_bytes = 300'000,
                                            .first_buffer_bytes = 10'000,
                                            .small_elements = 100},
                                           layout);
      ASSERT_TRUE(averager.value()->set_plan(plan).ok());
      for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
        ASSERT_TRUE(averager.value()->ready(tensor).ok());
      }
      ASSERT_TRUE(averager.value()->finish().ok());
      const auto outcome = averager.value()->wait(90s);
      ++over;
      while (over < 2) std::this_thread::yield();  // whose averager goes lets the other one go
      ASSERT_TRUE(outcome.has_value() && !outcome->ok());
      const ErrorCode code = outcome->error().code;
      EXPECT_TRUE(code == ErrorCode::resource ||
                  (communicator.rank() == 1 && code == ErrorCode::closed))
          << outcome->error().to_string();
    });
    EXPECT_LT(std::chrono::steady_clock::now() - begun, 30s);
  }
}

TEST(Averager, PlainAndExactPathsGiveTheMean) {
  for (const int ranks : {1, 2, 3, 4}) {
    Collected collected;
    collective::on_ranks(ranks, [&](Communicator& communicator) {
      const Layout layout = layout_for(ranks);
      Host host(communicator, layout);
      int number = 0;
      for (const Path path : {Path::all_reduce, Path::split, Path::gather}) {
        host.set(uniform(layout, path, 1.0, codec::ValueKind::f32));
        const auto report = host.step(++number, 5);
        ASSERT_TRUE(report.ok()) << report.error().to_string();
        EXPECT_EQ(report.value().step, static_cast<uint64_t>(number));
        collected.add(communicator.rank(), host.arena);
        for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
          for (uint64_t i = 0; i < kShapes[tensor].elements(); ++i) {
            const double wanted = exact_average(number, ranks, tensor, i);
            ASSERT_NEAR(host.of(tensor)[i], wanted, 1e-6 * (1.0 + tensor));
          }
        }
      }
    });
    collected.expect_alike();
  }
}

// Whatever the plans are, and however they change: what was applied and what is still kept add up
// to all gradients, and the ranks have the same bits.
TEST(Averager, NothingIsLostWhateverThePlansAre) {
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const int ranks = 2 + static_cast<int>(seed % 3);
    constexpr int kSteps = 6;
    Collected collected;
    collective::on_ranks(ranks, [&](Communicator& communicator) {
      const Layout layout = layout_for(ranks);
      Host host(communicator, layout);
      std::vector<double> applied;
      ASSERT_NO_FATAL_FAILURE(step_by_random_plans(host, seed, kSteps, collected, applied));
      for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
        const uint64_t offset = layout.tensors()[tensor].offset;
        for (uint64_t i = 0; i < kShapes[tensor].elements(); ++i) {
          double wanted = 0;
          for (int n = 1; n <= kSteps; ++n) wanted += exact_average(n, ranks, tensor, i);
          ASSERT_NEAR(applied[offset + i], wanted, 3e-6 * (1.0 + tensor))
              << "tensor " << tensor << ", element " << i;
        }
      }
    });
    collected.expect_alike();
  }
}

// What owners kept in plans of two legs goes along in the first that has one.
TEST(Averager, AGatherBringsWhatOwnersKept) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    Host host(communicator, layout);
    std::vector<double> sum(layout.arena_elements(), 0.0);
    const auto run = [&](int step, Path path, codec::ValueKind values) {
      host.set(uniform(layout, path, 1.0, values));
      ASSERT_TRUE(host.step(step, 1).ok());
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += host.arena[i];
    };
    for (int step = 1; step <= 3; ++step) run(step, Path::split, codec::ValueKind::q2);
    run(4, Path::gather, codec::ValueKind::f32);
    for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
      for (uint64_t i = 0; i < kShapes[tensor].elements(); ++i) {
        double wanted = 0;
        for (int step = 1; step <= 4; ++step) wanted += exact_average(step, 2, tensor, i);
        ASSERT_NEAR(sum[layout.tensors()[tensor].offset + i], wanted, 1e-5) << tensor << ", " << i;
      }
    }
  });
}

TEST(Averager, TheSameBitsForAnyNumberOfWorkers) {
  Collected collected;
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    std::vector<float> reference;
    for (const size_t workers : {size_t{1}, size_t{3}}) {
      AveragerOptions options;
      options.workers = workers;
      options.key = std::to_string(workers);
      Host host(communicator, layout, options);
      host.set(uniform(layout, Path::split, 0.05, codec::ValueKind::q4));
      for (int number = 1; number <= 3; ++number) ASSERT_TRUE(host.step(number, 9).ok());
      if (reference.empty()) reference = host.arena;
      EXPECT_EQ(reference, host.arena) << workers << " workers";
      EXPECT_GT(std::ranges::count_if(host.arena, [](float value) { return value != 0; }), 0);
    }
    collected.add(communicator.rank(), reference);
  });
  collected.expect_alike();
}

TEST(Averager, ATensorThatNobodyHasKeepsItsResidual) {
  Collected collected;
  collective::on_ranks(3, [&](Communicator& communicator) {
    const Layout layout = layout_for(3);
    Host host(communicator, layout);
    host.set(uniform(layout, Path::split, 0.05, codec::ValueKind::q4));
    ASSERT_TRUE(host.step(1, 1).ok());
    const auto report = host.step(2, 2, {3});
    ASSERT_TRUE(report.ok()) << report.error().to_string();
    EXPECT_FALSE(report.value().present[3]);
    EXPECT_TRUE(report.value().present[1]);
    for (const float value : host.of(3)) ASSERT_EQ(value, 0.0f);
    // What was kept of step 1 goes with the next plain step.
    host.set(uniform(layout, Path::all_reduce, 1.0, codec::ValueKind::f32));
    ASSERT_TRUE(host.step(3, 3).ok());
    EXPECT_EQ(host.averager->residual_energy(), 0.0);
    collected.add(communicator.rank(), host.arena);
  });
  collected.expect_alike();
}

TEST(Averager, ATensorThatSomeLackIsAnErrorOnEveryRankOrCountsAsZeros) {
  for (const bool zeros : {false, true}) {
    for (const Path path : {Path::all_reduce, Path::split, Path::gather}) {
      collective::on_ranks(3, [&](Communicator& communicator) {
        const Layout layout = layout_for(3);
        AveragerOptions options;
        options.missing_as_zeros = zeros;
        options.names = {"a", "b", "c", "d", "e", "f", "g"};
        Host host(communicator, layout, options);
        host.set(uniform(layout, path, 1.0, codec::ValueKind::f32));
        const bool lacks = communicator.rank() == 2;
        const auto report =
            host.step(1, 1, lacks ? std::vector<uint32_t>{1} : std::vector<uint32_t>{});
        if (zeros) {
          ASSERT_TRUE(report.ok()) << report.error().to_string();
          const double wanted = (gradient_at(1, 0, 1, 77) + gradient_at(1, 1, 1, 77)) / 3.0;
          EXPECT_NEAR(host.of(1)[77], wanted, 1e-6);
        } else {
          ASSERT_FALSE(report.ok());
          EXPECT_EQ(report.error().code, ErrorCode::mismatch);
          EXPECT_EQ(report.error().peer, 2);
          EXPECT_NE(report.error().message.find("'b' got no gradient on rank 2"),
                    std::string::npos);
          EXPECT_FALSE(host.averager->ready(0).ok());
        }
      });
    }
  }
}

TEST(Averager, NotFiniteValuesArriveOnAllRanksAndAreCounted) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    for (const Path path : {Path::all_reduce, Path::split, Path::gather}) {
      AveragerOptions options;
      options.key = name(path);
      Host host(communicator, layout, options);
      host.set(uniform(layout, path, path == Path::all_reduce ? 1.0 : 0.05, codec::ValueKind::q4));
      for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
        host.fill(1, tensor);
        if (tensor == 1 && communicator.rank() == 1) {
          host.of(1)[5] = std::numeric_limits<float>::quiet_NaN();
          host.of(1)[6] = std::numeric_limits<float>::infinity();
        }
        ASSERT_TRUE(host.averager->ready(tensor).ok());
      }
      const auto report = host.end();
      ASSERT_TRUE(report.ok()) << report.error().to_string();
      EXPECT_TRUE(std::isnan(host.of(1)[5]));
      EXPECT_TRUE(std::isinf(host.of(1)[6]));
      EXPECT_EQ(report.value().nonfinite, 2u);
      ASSERT_EQ(report.value().not_finite.size(), 1u);
      EXPECT_EQ(report.value().not_finite[0].tensor, 1u);
      EXPECT_EQ(report.value().not_finite[0].ranks, std::vector<Rank>{1});
      EXPECT_TRUE(std::isfinite(host.averager->residual_energy()));
      const auto next = host.step(2, 2);
      ASSERT_TRUE(next.ok()) << next.error().to_string();
      EXPECT_TRUE(next.value().not_finite.empty());
      EXPECT_TRUE(std::ranges::all_of(host.arena, [](float v) { return std::isfinite(v); }));
    }
  });
}

TEST(Averager, DifferentPlansAndParametersAreNamed) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    Host host(communicator, layout);
    host.set(uniform(layout, Path::all_reduce, 1.0, codec::ValueKind::f32));
    for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
      ASSERT_TRUE(host.averager->ready(tensor).ok());
    }
    const auto report = host.end(communicator.rank() == 0 ? 11 : 12);
    ASSERT_FALSE(report.ok());
    EXPECT_NE(report.error().message.find("the parameters of rank 1 differ"), std::string::npos);
  });
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    Host host(communicator, layout);
    // The same legs, other values: nothing but the verdict can tell.
    host.set(uniform(layout, Path::split, 1.0,
                     communicator.rank() == 0 ? codec::ValueKind::q4 : codec::ValueKind::q3));
    const auto report = host.step(1, 1);
    ASSERT_FALSE(report.ok());
    EXPECT_NE(report.error().message.find("different plans"), std::string::npos);
  });
}

TEST(Averager, WrongCallsAreRefusedAndNamed) {
  collective::on_ranks(1, [&](Communicator& communicator) {
    const Layout layout = layout_for(1);
    Host host(communicator, layout, {.names = {"first"}});
    EXPECT_NE(host.averager->ready(0).error().message.find("no plan"), std::string::npos);
    host.set(uniform(layout, Path::all_reduce, 1.0, codec::ValueKind::f32));
    EXPECT_NE(host.averager->ready(99).error().message.find("no tensor 99"), std::string::npos);
    ASSERT_TRUE(host.averager->ready(0).ok());
    EXPECT_NE(host.averager->ready(0).error().message.find("'first' got a second gradient"),
              std::string::npos);
    EXPECT_FALSE(
        host.averager->set_plan(uniform(layout, Path::gather, 1.0, codec::ValueKind::f32)).ok());
    ASSERT_TRUE(host.end().ok());
    std::vector<float> small(3);
    EXPECT_FALSE(Averager::create(communicator, layout, small, {}).ok());
    EXPECT_FALSE(Averager::create(communicator, layout_for(2), host.arena, {}).ok());
  });
}

// Saved by three ranks, carried on by two: what the two had kept is not lost.
TEST(Averager, SavedResidualsGoOnExactlyAndUnderAnotherNumberOfRanks) {
  std::vector<std::vector<std::byte>> saved(3);
  std::vector<double> energy(3);
  std::vector<std::vector<float>> next(3);
  collective::on_ranks(3, [&](Communicator& communicator) {
    const auto rank = static_cast<size_t>(communicator.rank());
    const Layout layout = layout_for(3);
    Host host(communicator, layout);
    const FusionPlan plan = uniform(layout, Path::split, 0.05, codec::ValueKind::q4);
    host.set(plan);
    for (int number = 1; number <= 4; ++number) ASSERT_TRUE(host.step(number, 3).ok());
    saved[rank] = host.averager->save().value();
    energy[rank] = host.averager->residual_energy();
    ASSERT_TRUE(host.step(5, 3).ok());
    next[rank] = host.arena;
    Host again(communicator, layout, {.key = "again"});
    again.set(plan);
    ASSERT_TRUE(again.averager->restore(saved[rank]).ok());
    EXPECT_EQ(again.averager->residual_energy(), energy[rank]);
    ASSERT_TRUE(again.step(5, 3).ok());
    EXPECT_EQ(again.arena, next[rank]);
  });
  collective::on_ranks(2, [&](Communicator& communicator) {
    const auto rank = static_cast<size_t>(communicator.rank());
    const Layout layout = layout_for(2);
    Host host(communicator, layout);
    host.set(uniform(layout, Path::all_reduce, 1.0, codec::ValueKind::f32));
    const Result<void> restored = host.averager->restore(saved[rank]);
    ASSERT_TRUE(restored.ok()) << restored.error().to_string();
    EXPECT_GT(host.averager->residual_energy(), 0.5 * energy[rank]);
    ASSERT_TRUE(host.step(5, 3).ok());
    EXPECT_EQ(host.averager->residual_energy(), 0.0);
    for (size_t at = 0; at < saved[rank].size(); at += 977) {
      std::vector<std::byte> damaged = saved[rank];
      damaged[at] ^= std::byte{4};
      EXPECT_FALSE(host.averager->restore(damaged).ok());
      EXPECT_FALSE(host.averager->restore(std::span(saved[rank]).first(at)).ok());
    }
    saved[rank][4] = std::byte{9};
    const Result<void> newer = host.averager->restore(saved[rank]);
    ASSERT_FALSE(newer.ok());
    EXPECT_EQ(newer.error().code, ErrorCode::unsupported);
    EXPECT_EQ(newer.error().message,
              "what was saved of the residuals is of version 9; this scant reads up to 2: upgrade "
              "scant");
  });
}

TEST(Averager, ALostRankEndsTheStepOfTheOthersAndIsNamed) {
  collective::on_ranks(3, [&](Communicator& communicator) {
    const Layout layout = layout_for(3);
    Host host(communicator, layout);
    host.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q4));
    ASSERT_TRUE(host.step(1, 1).ok());
    host.fill(2, 0);
    ASSERT_TRUE(host.averager->ready(0).ok());
    if (communicator.rank() == 1) {
      communicator.abort("the test wants it");
      EXPECT_FALSE(host.end().ok());
      return;
    }
    for (uint32_t tensor = 1; tensor < kShapes.size(); ++tensor) {
      ASSERT_TRUE(host.averager->ready(tensor).ok());
    }
    const auto report = host.end();
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().code, ErrorCode::peer_lost) << report.error().to_string();
    EXPECT_EQ(report.error().peer, 1);
  });
}

TEST(Averager, MayBeDestroyedInTheMiddleOfAStep) {
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2);
    {
      Host host(communicator, layout);
      host.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q4));
      for (uint32_t tensor = 0; tensor <= 3 + static_cast<uint32_t>(communicator.rank());
           ++tensor) {
        host.fill(1, tensor);
        ASSERT_TRUE(host.averager->ready(tensor).ok());
      }
    }
    EXPECT_TRUE(communicator.barrier().wait().ok());
  });
}

TEST(Averager, CountsTheBytesItSends) {
  collective::on_ranks(3, [&](Communicator& communicator) {
    const Layout layout = layout_for(3);
    Host host(communicator, layout);
    for (const Path path : {Path::split, Path::gather}) {
      const FusionPlan plan = uniform(layout, path, 1.0, codec::ValueKind::q4);
      host.set(plan);
      const auto report = host.step(1, 1);
      ASSERT_TRUE(report.ok());
      // Ranks own slightly different shares.
      EXPECT_NEAR(static_cast<double>(report.value().sent_bytes), sent_bytes(plan, layout),
                  0.02 * sent_bytes(plan, layout));
    }
  });
}

}  // namespace
}  // namespace scant::gradient
