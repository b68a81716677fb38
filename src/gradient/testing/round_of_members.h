// Test support: the steps of several members on a fake exchange, driven in an order that a seed
// draws; what they applied and what they kept, added up.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "base/rng.h"
#include "gradient/gradient_step.h"
#include "gradient/testing/averagers.h"
#include "gradient/testing/fake_exchange.h"

namespace scant::gradient::testing {

inline const std::vector<codec::Shape> kSmallShapes = {{1, 10}, {20, 40}, {3, 64}, {64, 80}};

inline Layout small_layout(int ranks) {
  return Layout::create(kSmallShapes, ranks, {.slice_elements_min = 64}).value();
}

// One station's step, and what happened to it.
struct Member {
  Rank station = 0;
  std::unique_ptr<GradientStep> step;
  std::vector<float> arena;
  std::vector<float> gradient;    // what the arena held when all was ready
  std::vector<uint32_t> to_come;  // tensors, from the back
  bool to_finish = false;
  size_t changes_to_come = 0;  // of owners, before it finishes
  bool verdict_sent = false;
  std::optional<Result<StepReport>> outcome;
  std::optional<GradientStep::Job> working;
  std::vector<Effort> efforts;  // of all jobs, in order
  bool gone = false;            // nobody drives it any more

  [[nodiscard]] std::vector<double> kept(bool of_owner) const {
    std::vector<double> all(arena.size(), 0.0);
    const Layout& layout = step->layout();
    for (uint32_t slice = 0; slice < layout.slices().size(); ++slice) {
      const codec::TensorEncoder* encoder = of_owner ? step->residuals().owner_if_made(slice)
                                                     : step->residuals().worker_if_made(slice);
      if (encoder == nullptr) continue;
      const SliceLayout& known = layout.slices()[slice];
      std::vector<float> residual(known.range.elements);
      EXPECT_TRUE(encoder->read_residual(residual).ok());
      const uint64_t at = layout.arena_offset(layout.parts()[known.part].tensor, known.range);
      std::copy(residual.begin(), residual.end(), all.begin() + static_cast<std::ptrdiff_t>(at));
    }
    return all;
  }
};

class RoundOfMembers {
 public:
  // Wraps each call into a member's step; a test may make allocations fail within.
  using Around = std::function<void(Rank station, const std::function<void()>& call)>;

  RoundOfMembers(FakeNetwork& network, const Layout& layout, int stations,
                 const StepOptions& options = {}, uint32_t slot = 0)
      : RoundOfMembers(network, layout,
                       std::vector<StepOptions>(static_cast<size_t>(stations), options), slot) {}
  RoundOfMembers(FakeNetwork& network, const Layout& layout,
                 const std::vector<StepOptions>& by_station, uint32_t slot = 0)
      : network_(network) {
    const auto stations = static_cast<int>(by_station.size());
    for (Rank station = 0; station < stations; ++station) {
      Member& member = members_.emplace_back();
      member.station = station;
      auto made = GradientStep::create(layout, by_station[static_cast<size_t>(station)],
                                       everyone(stations, station), slot);
      EXPECT_TRUE(made.ok()) << made.error().to_string();
      member.step = std::move(made).value();
      member.arena.assign(layout.arena_elements(), 0.0f);
    }
  }
  [[nodiscard]] std::vector<Member>& all() { return members_; }
  [[nodiscard]] Member& at(Rank station) { return members_[static_cast<size_t>(station)]; }
  void set_plan(const FusionPlan& plan) {
    for (Member& member : members_) {
      const Result<void> set = member.step->set_plan(plan);
      ASSERT_TRUE(set.ok()) << set.error().to_string();
    }
  }

  // Begins a round of these stations; `absent` tensors are ready nowhere.
  void begin(uint64_t round, const std::vector<Rank>& stations, uint64_t epoch, uint64_t seed,
             const std::vector<uint32_t>& absent = {}) {
    for (size_t place = 0; place < stations.size(); ++place) {
      Member& member = at(stations[place]);
      fill(member, round, absent);
      member.outcome.reset();
      RoundSpec spec{.round = round,
                     .arena = member.arena,
                     .members = {epoch, stations, static_cast<Rank>(place)},
                     .duties = duties};
      if (change) change(member, spec);
      Result<void> begun;
      around(member.station, [&] { begun = member.step->begin(spec, now()); });
      if (!begun) {
        member.outcome = Result<StepReport>(begun.error());
        for (const Leg leg : {Leg::first, Leg::second, Leg::verdict, Leg::owners, Leg::basis_first,
                              Leg::basis_second}) {
          network_.at(member.station).cancel(spec.members, {0, leg});
        }
        continue;
      }
      member.to_finish = true;
      member.changes_to_come = owner_changes.size();
      member.verdict_sent = false;
      shuffle(member, seed, absent);
    }
  }
  void drive(uint64_t seed) {
    drive_all(network_, {this}, seed, [](uint64_t) {});
  }
  // Whatever can happen in these rounds does, in an order of the seed's, until nothing can.
  // `before` is called before the n-th thing.
  static void drive_all(FakeNetwork& network, const std::vector<RoundOfMembers*>& rounds,
                        uint64_t seed, const std::function<void(uint64_t)>& before) {
    base::Rng rng(seed, 99);
    for (uint64_t number = 0;; ++number) {
      before(number);
      for (RoundOfMembers* round : rounds) {
        for (Member& member : round->members_) round->pump(member);
      }
      std::vector<std::function<void()>> possible;
      for (size_t i = 0; i < network.told_next(); ++i) {
        possible.emplace_back([&network, i] { network.tell(i); });
      }
      for (RoundOfMembers* round : rounds) round->add_possibilities(possible);
      if (possible.empty()) return;
      possible[rng.below(possible.size())]();
      network.elapsed += std::chrono::microseconds(1);
    }
  }
  void run(uint64_t round, const std::vector<Rank>& stations, uint64_t epoch, uint64_t seed,
           const std::vector<uint32_t>& absent = {}) {
    begin(round, stations, epoch, seed, absent);
    drive(seed);
  }
  // What follows from what has happened to a member.
  void pump(Member& member) {
    if (member.gone) return;
    GradientStep& step = *member.step;
    for (;;) {
      std::optional<Transmit> next;
      around(member.station, [&] { next = step.poll_transmit(now()); });
      if (!next) break;
      const Ticket ticket = next->ticket;
      member.verdict_sent |= ticket.leg == Leg::verdict && !ticket.opening;
      network_.at(member.station)
          .submit(step.seat().members, std::move(next->operation),
                  [this, &member, ticket](const Outcome& outcome) {
                    around(member.station, [&] { member.step->on_done(ticket, outcome, now()); });
                  });
    }
    while (const auto lane = step.next_cancelled()) {
      network_.at(member.station).cancel(step.seat().members, *lane);
    }
    std::optional<Result<StepReport>> outcome;
    around(member.station, [&] { outcome = step.take_outcome(now()); });
    if (outcome) member.outcome = std::move(outcome);
  }
  [[nodiscard]] Time now() const { return Time(network_.elapsed); }

  Around wrap;
  std::function<void(Member&, RoundSpec&)> change;  // of a round that is about to begin
  // What else can happen, as when a device goes on.
  std::function<void(std::vector<std::function<void()>>&)> elsewhere;
  std::vector<SliceDuty> duties;  // of the next rounds; empty: the usual ones
  // In the next rounds each member makes them at some time before it finishes.
  std::vector<std::vector<SliceDuty>> owner_changes;
  std::function<float(int, Rank, uint32_t, uint64_t)> gradient = gradient_at;

 private:
  void around(Rank station, const std::function<void()>& call) {
    if (wrap) return wrap(station, call);
    call();
  }
  void fill(Member& member, uint64_t round, const std::vector<uint32_t>& absent) {
    const Layout& layout = member.step->layout();
    std::ranges::fill(member.arena, 0.0f);
    for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
      if (std::ranges::find(absent, tensor) != absent.end()) continue;
      const TensorLayout& known = layout.tensors()[tensor];
      for (uint64_t i = 0; i < known.shape.elements(); ++i) {
        member.arena[known.offset + i] =
            gradient(static_cast<int>(round), member.station, tensor, i);
      }
    }
    member.gradient = member.arena;
  }
  void shuffle(Member& member, uint64_t seed, const std::vector<uint32_t>& absent) {
    base::Rng rng(seed, static_cast<uint64_t>(member.station));
    std::vector<uint32_t>& order = member.to_come;
    order.resize(member.step->layout().tensors().size());
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i)]);
    std::erase_if(
        order, [&](uint32_t tensor) { return std::ranges::find(absent, tensor) != absent.end(); });
  }
  void add_possibilities(std::vector<std::function<void()>>& all) {
    if (elsewhere) elsewhere(all);
    for (Member& member : members_) {
      if (member.gone) continue;
      if (!member.to_come.empty() || member.to_finish) all.emplace_back([&] { go_on(member); });
      if (member.changes_to_come > 0) all.emplace_back([&] { change_owners(member); });
      if (!member.working) begin_job(member);
      if (member.working) all.emplace_back([&] { end_job(member); });
    }
  }
  void begin_job(Member& member) {
    around(member.station, [&] { member.working = member.step->next(); });
    if (!member.working) return;
    Effort effort;
    around(member.station, [&] { effort = member.step->run(*member.working); });
    member.efforts.push_back(effort);
  }
  void end_job(Member& member) {
    const GradientStep::Job job = *std::exchange(member.working, std::nullopt);
    around(member.station, [&] { member.step->finished(job, now(), now()); });
  }
  void change_owners(Member& member) {
    auto duties_now = owner_changes[owner_changes.size() - member.changes_to_come--];
    Result<void> changed;
    around(member.station, [&] { changed = member.step->change_owners(std::move(duties_now)); });
    EXPECT_TRUE(changed.ok()) << changed.error().to_string();
  }
  // Backward goes on.
  void go_on(Member& member) {
    if (member.to_come.empty()) {
      if (member.changes_to_come > 0) return change_owners(member);
      member.to_finish = false;
      around(member.station, [&] { member.step->finish(0, 32, now()); });
      return;
    }
    const uint32_t tensor = member.to_come.back();
    member.to_come.pop_back();
    around(member.station, [&] { member.step->ready(tensor, now()); });
  }

  FakeNetwork& network_;
  std::vector<Member> members_;
};

// What these stations keep, counted as a sum of gradients: an owner's counts once in an average.
inline std::vector<double> kept_by(RoundOfMembers& rounds, const std::vector<Rank>& stations) {
  std::vector<double> sum;
  for (const Rank station : stations) {
    for (const bool of_owner : {false, true}) {
      const std::vector<double> kept = rounds.at(station).kept(of_owner);
      sum.resize(kept.size(), 0.0);
      const double times = of_owner ? static_cast<double>(stations.size()) : 1.0;
      for (size_t i = 0; i < kept.size(); ++i) sum[i] += times * kept[i];
    }
  }
  return sum;
}

inline std::vector<Rank> first_stations(int count) { return everyone(count, 0).stations; }

// Rounds that ended well on these stations, with the same bits.
inline void expect_alike_and_well(RoundOfMembers& rounds, const std::vector<Rank>& stations) {
  for (const Rank station : stations) {
    const Member& member = rounds.at(station);
    ASSERT_TRUE(member.outcome) << "station " << station << " waits for ever";
    ASSERT_TRUE(member.outcome->ok()) << member.outcome->error().to_string();
    ASSERT_EQ(std::memcmp(member.arena.data(), rounds.at(stations[0]).arena.data(),
                          member.arena.size() * sizeof(float)),
              0)
        << "station " << station;
  }
}

// All that was there before and all gradients: applied, or kept.
inline void expect_mass(RoundOfMembers& rounds, const std::vector<Rank>& stations,
                        const std::vector<double>& before, double tolerance) {
  const std::vector<double> after = kept_by(rounds, stations);
  for (size_t i = 0; i < after.size(); ++i) {
    double wanted = before[i];
    for (const Rank station : stations) wanted += rounds.at(station).gradient[i];
    const double got =
        after[i] + static_cast<double>(stations.size()) * rounds.at(stations[0]).arena[i];
    ASSERT_NEAR(got, wanted, tolerance) << "element " << i;
  }
}

}  // namespace scant::gradient::testing
