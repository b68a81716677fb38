// Agreements over simulated links, in virtual time and by seed: soundings, measurements and
// decisions go through engines on the network; steps take what the world of tuner_world.h says.
#include <algorithm>
#include <functional>
#include <gtest/gtest.h>

#include "base/rng.h"
#include "gradient/simulated_exchange.h"
#include "plan/testing/agreeing_members.h"

namespace scant::plan {
namespace {

using namespace std::chrono_literals;
using State = Agreement::State;

const std::vector<uint64_t> kSizes = {800'000, 800'000, 3'000, 800'000, 800'000};
constexpr double kFast = 2e9;
constexpr double kSlow = 4e6;

class SimulatedTraining {
 public:
  // bytes_per_s: of a link, of which each pair of members has two.
  SimulatedTraining(int members, double bytes_per_s, uint64_t seed)
      : network({.size = members, .seed = seed, .link = {}}),
        rng_(seed, 14),
        layout_(World(kSizes, members).layout()) {
    for (Rank station = 0; station < members; ++station) {
      exchanges_.push_back(std::make_unique<gradient::SimulatedExchange>(
          network, station, gradient::SimulatedExchangeOptions{}));
      members_.push_back(std::make_unique<AgreeingMember>(*exchanges_.back(), layout_,
                                                          AgreementOptions{}, rates()));
    }
    set_link(bytes_per_s);
    for (const Rank station : alive()) at(station).begin(exchange(station).members());
  }

  void set_link(double bytes_per_s) {
    network.set_all_links({.rate_bytes_per_second = static_cast<uint64_t>(bytes_per_s),
                           .latency = 100us,
                           .jitter = 20us});
    bytes_per_s_ = bytes_per_s;
    make_world();
  }
  // From now on compressed steps take so many times what any model says.
  void set_hidden(double factor) {
    hidden_ = factor;
    make_world();
  }
  // Steps and agreements, until this is so. False where nothing happens any more.
  [[nodiscard]] bool run(const std::function<bool()>& over) {
    const Time limit = network.now() + 10'000s;
    while (!over()) {
      if (in_step_ == 0 && all_are(State::running)) begin_step();
      if (!network.advance(limit)) return nothing_happens();
      for (const Rank station : network.take_runnable()) exchange(station).pump();
    }
    return true;
  }
  // So many periods and their agreements, or the first soundings where there was none before.
  [[nodiscard]] bool agree(int times) {
    for (int i = 0; i < times; ++i) {
      if (!run([&] { return !all_are(State::running); })) return false;
      if (!run([&] { return in_step_ == 0 && all_are(State::running); })) return false;
      for (const Rank station : alive())
        EXPECT_EQ(at(station).agreement().decision(), first().agreement().decision());
    }
    return true;
  }
  // Until somebody knows of a loss, and nobody's memory is an exchange's. Those who have followed
  // a decision already would find out in their next step.
  [[nodiscard]] bool run_until_lost() {
    return run([&] {
      bool lost = false;
      for (const Rank station : alive()) {
        if (at(station).agreement().under_way()) return false;
        lost = lost || at(station).agreement().state() == State::failed;
      }
      return lost && in_step_ == 0;
    });
  }
  // Those who are left agree on who they are, and begin anew.
  void shrink() {
    for (const Rank station : alive()) {
      exchange(station).shrink(60s, [this, station](const Result<gradient::Members>& members) {
        ASSERT_TRUE(members.ok()) << members.error().to_string();
        at(station).begin(members.value());
      });
    }
    make_world();
  }

  [[nodiscard]] bool all_are(State state) const {
    return std::ranges::all_of(alive(), [&](Rank s) { return at(s).agreement().state() == state; });
  }
  [[nodiscard]] std::vector<Rank> alive() const {
    std::vector<Rank> stations;
    for (Rank station = 0; station < network.size(); ++station)
      if (network.alive(station)) stations.push_back(station);
    return stations;
  }
  [[nodiscard]] AgreeingMember& at(Rank station) const {
    return *members_[static_cast<size_t>(station)];
  }
  [[nodiscard]] AgreeingMember& first() const { return at(alive().front()); }
  [[nodiscard]] bool plain() const { return is_plain(first().agreement().decision().plan); }

  net::SimulatedNetwork network;

 private:
  [[nodiscard]] gradient::SimulatedExchange& exchange(Rank station) const {
    return *exchanges_[static_cast<size_t>(station)];
  }
  [[nodiscard]] bool nothing_happens() const {
    for (const Rank station : alive()) {
      const std::optional<Error>& error = at(station).agreement().error();
      ADD_FAILURE() << "station " << station
                    << " waits: " << (error ? error->to_string() : "no error") << ", state "
                    << static_cast<int>(at(station).agreement().state());
    }
    return false;
  }
  // An exchange uses all of a member's links at once, a ring one of them.
  void make_world() {
    const auto count = static_cast<int>(alive().size());
    world_.emplace(kSizes, count);
    world_->hidden = hidden_;
    world_->truth.link = {2e-4, bytes_per_s_ * std::max(count - 1, 1), bytes_per_s_};
  }
  // Members end it within a millisecond.
  void begin_step() {
    const Time end = network.now() + duration_of(first().step_s(*world_));
    for (const Rank station : alive()) {
      ++in_step_;
      network.at(end + duration_of(1e-3 * rng_.uniform()), [this, station] {
        --in_step_;
        if (network.alive(station)) at(station).step(*world_);
        network.make_runnable(alive().front());  // so that time stands here: run() looks again
      });
    }
  }

  base::Rng rng_;
  const gradient::Layout layout_;
  double bytes_per_s_ = 0;
  double hidden_ = 1;
  std::optional<World> world_;
  int in_step_ = 0;  // members whose step has not ended
  std::vector<std::unique_ptr<gradient::SimulatedExchange>> exchanges_;
  std::vector<std::unique_ptr<AgreeingMember>> members_;
};

int members_of(uint64_t seed) { return 2 + static_cast<int>(seed % 4); }

TEST(SimulatedAgreements, PlainOnAFastLinkCompressedOnASlowOne) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    for (const bool fast : {true, false}) {
      SimulatedTraining training(members_of(seed), fast ? kFast : kSlow, seed);
      ASSERT_TRUE(training.agree(6));
      EXPECT_EQ(training.plain(), fast);
    }
  }
}

TEST(SimulatedAgreements, LeaveCompressionWhenTheLinkRisesAndComeBackWhenItFalls) {
  for (uint64_t seed = 11; seed <= 13; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SimulatedTraining training(members_of(seed), kSlow, seed);
    ASSERT_TRUE(training.agree(5));
    ASSERT_FALSE(training.plain());
    training.set_link(kFast);
    ASSERT_TRUE(training.agree(5));
    EXPECT_TRUE(training.plain());
    training.set_link(kSlow);
    ASSERT_TRUE(training.agree(5));
    EXPECT_FALSE(training.plain());
  }
}

// What no model knows makes compressed steps so slow that plain makes more progress.
TEST(SimulatedAgreements, TheGuardGoesBackToPlain) {
  for (uint64_t seed = 41; seed <= 44; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SimulatedTraining training(members_of(seed), kSlow, seed);
    ASSERT_TRUE(training.agree(5));
    ASSERT_FALSE(training.plain());
    training.set_hidden(40);
    std::string guard;
    for (int i = 0; guard.empty() && i < 4; ++i) {
      ASSERT_TRUE(training.agree(1));
      guard = training.at(0).agreement().findings()->guard;
    }
    EXPECT_NE(guard.find("plain makes more progress"), std::string::npos) << guard;
    ASSERT_TRUE(training.agree(3));
    EXPECT_TRUE(training.plain());
  }
}

TEST(SimulatedAgreements, TheSameSeedGivesTheSameRun) {
  const auto run = [] {
    SimulatedTraining training(3, kSlow, 21);
    EXPECT_TRUE(training.agree(4));
    const gradient::FusionPlan& plan = training.first().agreement().decision().plan;
    return std::pair(training.network.now(), plan);
  };
  EXPECT_EQ(run(), run());
}

// At a moment that the seed draws, in soundings, steps or an agreement.
TEST(SimulatedAgreements, GoOnAmongThoseWhoAreLeft) {
  for (uint64_t seed = 31; seed <= 38; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Rng rng(seed, 1);
    SimulatedTraining training(4, kSlow, seed);
    const Time moment = training.network.now() + duration_of(12 * rng.uniform());
    ASSERT_TRUE(training.run([&] { return training.network.now() >= moment; }));
    training.network.kill(static_cast<Rank>(rng.below(4)));
    ASSERT_TRUE(training.run_until_lost());
    training.shrink();
    ASSERT_TRUE(training.agree(6));
    EXPECT_EQ(training.first().agreement().members().size(), 3);
    EXPECT_FALSE(training.plain());
  }
}

}  // namespace
}  // namespace scant::plan
