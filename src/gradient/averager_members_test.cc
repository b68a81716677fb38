// Members that leave and join over real sockets: a training goes on, nothing that a survivor kept
// is lost, and the bits are those of the same training on simulated exchanges.
#include <deque>
#include <gtest/gtest.h>
#include <latch>
#include <map>
#include <mutex>
#include <thread>

#include "collective/testing/threads_as_ranks.h"
#include "gradient/averager.h"
#include "gradient/simulated_exchange.h"
#include "gradient/testing/averagers.h"
#include "net/simulated/simulated_network.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

// Steps 1 to 3 on stations 0, 1 and 2. Station 2 is lost in step 4, when all averages have come and
// its verdict is not there. Steps 5 and 6 on 0 and 1; steps 7 to 9 with two newcomers.
constexpr int kFirstRanks = 3;
constexpr int kLostIn = 4;
constexpr Rank kVictim = 2;
constexpr int kJoinedIn = 7;
constexpr int kLast = 9;
const std::vector<Rank> kSurvivors = {0, 1};
const std::vector<Rank> kJoined = {3, 0, 1, 4};  // by rank of their communicator

// What the two runs must have alike: averages of each step, and residuals whenever members change.
class Diary {
 public:
  void averages(int step, Rank station, const std::vector<float>& arena) {
    const std::lock_guard lock(mutex_);
    averages_[{step, station}] = arena;
  }
  void residuals(int before, Rank station, std::vector<std::byte> saved) {
    const std::lock_guard lock(mutex_);
    residuals_[{before, station}] = std::move(saved);
  }
  static void expect_alike(const Diary& one, const Diary& other) {
    EXPECT_EQ(one.averages_.size(), 3u * 3 + 2 * 2 + 3 * 4);
    EXPECT_EQ(one.residuals_.size(), 3u + 2 + 4);
    ASSERT_EQ(one.averages_.size(), other.averages_.size());
    for (const auto& [key, arena] : one.averages_) {
      ASSERT_TRUE(other.averages_.contains(key));
      EXPECT_EQ(arena, other.averages_.at(key)) << "step " << key.first << ", " << key.second;
      const auto same_step = one.averages_.lower_bound({key.first, -1});
      EXPECT_EQ(arena, same_step->second) << "step " << key.first << ", " << key.second;
    }
    ASSERT_EQ(one.residuals_.size(), other.residuals_.size());
    for (const auto& [key, saved] : one.residuals_) {
      EXPECT_EQ(saved, other.residuals_.at(key)) << "before " << key.first << ", " << key.second;
    }
  }

 private:
  using Key = std::pair<int, Rank>;  // step, station
  std::mutex mutex_;
  std::map<Key, std::vector<float>> averages_;
  std::map<Key, std::vector<std::byte>> residuals_;
};

// Paths that add in the order of ranks, whatever carries them.
FusionPlan plan_for(const Layout& layout) {
  FusionPlan plan = uniform(layout, Path::split, 0.1, codec::ValueKind::q4);
  BufferPlan& last = plan.buffers.back();
  last.path = Path::gather;
  for (PartPlan& point : last.points) {
    point = {{0.3, codec::ValueKind::q8}, {}};
  }
  return plan;
}

void fill(const Layout& layout, int step, Rank station, std::span<float> arena) {
  for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
    const TensorLayout& known = layout.tensors()[tensor];
    for (uint64_t i = 0; i < known.shape.elements(); ++i) {
      arena[known.offset + i] = gradient_at(step, station, tensor, i);
    }
  }
}

// -- over sockets -------------------------------------------------------------------------------

// One station on a thread of its own.
struct OnSockets {
  explicit OnSockets(Diary& given) : diary(given) {}

  void start(Communicator& communicator, bool joins) {
    auto made = Averager::create(communicator, layout, arena, {.joins = joins});
    ASSERT_TRUE(made.ok()) << made.error().to_string();
    averager = std::move(made).value();
    ASSERT_TRUE(averager->set_plan(plan_for(layout)).ok());
  }
  void ready(int step) {
    fill(layout, step, station, arena);
    for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
      ASSERT_TRUE(averager->ready(tensor).ok());
    }
  }
  void steps(int first, int last) {
    for (int step = first; step <= last; ++step) {
      ASSERT_NO_FATAL_FAILURE(ready(step));
      ASSERT_TRUE(averager->finish().ok());
      const auto outcome = averager->wait(60s);
      ASSERT_TRUE(outcome.has_value() && outcome->ok()) << outcome->error().to_string();
      EXPECT_EQ(outcome->value().step, static_cast<uint64_t>(step));
      diary.averages(step, station, arena);
    }
  }
  void step_in_which_one_is_lost(std::latch& arrived) {
    ASSERT_NO_FATAL_FAILURE(ready(kLostIn));
    ASSERT_TRUE(averager->finish().ok());
    std::vector<uint32_t> all(layout.tensors().size());
    std::iota(all.begin(), all.end(), 0u);
    const auto there = averager->wait_for(all, 60s);
    ASSERT_TRUE(there.has_value() && there->ok() && there->value());
    arrived.count_down();
    const auto outcome = averager->wait(60s);
    ASSERT_TRUE(outcome.has_value() && !outcome->ok());
    EXPECT_EQ(outcome->error().code, ErrorCode::peer_lost) << outcome->error().to_string();
    EXPECT_EQ(outcome->error().peer, kVictim);
  }

  Diary& diary;
  const Layout layout = layout_for(kFirstRanks);
  Rank station = kNoRank;
  std::vector<float> arena = std::vector<float>(layout.arena_elements());
  std::unique_ptr<Averager> averager;
};

void be_one_of_the_first(Rank rank, const std::string& first, const std::string& second,
                         std::latch& arrived, Diary& diary) {
  const auto communicator = collective::connect(first, rank, kFirstRanks);
  ASSERT_NE(communicator, nullptr);
  OnSockets host(diary);
  host.station = rank;
  ASSERT_NO_FATAL_FAILURE(host.start(*communicator, false));
  ASSERT_NO_FATAL_FAILURE(host.steps(1, kLostIn - 1));
  diary.residuals(kLostIn, rank, host.averager->save().value());
  if (rank == kVictim) {
    ASSERT_NO_FATAL_FAILURE(host.ready(kLostIn));
    arrived.wait();
    return communicator->abort("the test wants it");
  }
  ASSERT_NO_FATAL_FAILURE(host.step_in_which_one_is_lost(arrived));
  const Result<void> early = host.averager->ready(0);
  ASSERT_FALSE(early.ok()) << "the members are still those of before";
  EXPECT_NE(early.error().message.find("continue_on()"), std::string::npos);
  ASSERT_TRUE(communicator->shrink(30s).ok());
  const auto two = host.averager->continue_on(*communicator);
  ASSERT_TRUE(two.ok()) << two.error().to_string();
  EXPECT_EQ(two.value(), (Members{2, kSurvivors, rank}));
  diary.residuals(kLostIn + 1, rank, host.averager->save().value());
  ASSERT_NO_FATAL_FAILURE(host.steps(kLostIn + 1, kJoinedIn - 1));

  const auto place = static_cast<Rank>(std::ranges::find(kJoined, rank) - kJoined.begin());
  const auto next = collective::connect(second, place, static_cast<int>(kJoined.size()));
  ASSERT_NE(next, nullptr);
  const auto four = host.averager->continue_on(*next);
  ASSERT_TRUE(four.ok()) << four.error().to_string();
  EXPECT_EQ(four.value(), (Members{3, kJoined, place}));
  EXPECT_TRUE(communicator->shutdown().ok()) << "nobody needs it any more";
  ASSERT_NO_FATAL_FAILURE(host.steps(kJoinedIn, kLast));
  diary.residuals(kLast + 1, rank, host.averager->save().value());
  host.averager.reset();
}

void be_a_newcomer(Rank station, const std::string& second, Diary& diary) {
  const auto place = static_cast<Rank>(std::ranges::find(kJoined, station) - kJoined.begin());
  const auto communicator = collective::connect(second, place, static_cast<int>(kJoined.size()));
  ASSERT_NE(communicator, nullptr);
  OnSockets host(diary);
  host.station = station;
  ASSERT_NO_FATAL_FAILURE(host.start(*communicator, true));
  ASSERT_NO_FATAL_FAILURE(host.steps(kJoinedIn, kLast));
  diary.residuals(kLast + 1, station, host.averager->save().value());
  host.averager.reset();
}

void train_on_sockets(Diary& diary) {
  const collective::TemporaryDirectory first;
  const collective::TemporaryDirectory second;
  std::latch arrived(static_cast<std::ptrdiff_t>(kSurvivors.size()));
  std::vector<std::thread> threads;
  for (Rank rank = 0; rank < kFirstRanks; ++rank) {
    threads.emplace_back(
        [&, rank] { be_one_of_the_first(rank, first.path(), second.path(), arrived, diary); });
  }
  for (const Rank station : {3, 4}) {
    threads.emplace_back([&, station] { be_a_newcomer(station, second.path(), diary); });
  }
  for (std::thread& thread : threads) thread.join();
}

// -- in virtual time ----------------------------------------------------------------------------

// All five stations in one thread; newcomers take part later.
class Simulated {
 public:
  explicit Simulated(Diary& diary) : diary_(diary) {
    for (Rank station = 0; station < network_.size(); ++station) {
      hosts_.push_back(std::make_unique<Host>(network_, station, layout_));
    }
  }
  ~Simulated() {
    for (auto& host : hosts_) host->exchange.abandon();
  }

  void train() {
    const std::vector<Rank> first = {0, 1, 2};
    for (int step = 1; step < kLostIn; ++step) ASSERT_NO_FATAL_FAILURE(run(step, 1, first));
    save(kLostIn, first);
    ASSERT_NO_FATAL_FAILURE(lose_one(first));
    ASSERT_NO_FATAL_FAILURE(change({2, kSurvivors}));
    save(kLostIn + 1, kSurvivors);
    for (int step = kLostIn + 1; step < kJoinedIn; ++step) {
      ASSERT_NO_FATAL_FAILURE(run(step, 2, kSurvivors));
    }
    ASSERT_NO_FATAL_FAILURE(change({3, kJoined}));
    for (int step = kJoinedIn; step <= kLast; ++step) {
      ASSERT_NO_FATAL_FAILURE(run(step, 3, kJoined));
    }
    save(kLast + 1, kJoined);
  }

 private:
  struct Host {
    Host(net::SimulatedNetwork& network, Rank given, const Layout& layout)
        : station(given),
          exchange(network, given, {.engine = {.operation_timeout = 1h}}),
          arena(layout.arena_elements()) {}
    Rank station;
    SimulatedExchange exchange;
    std::vector<float> arena;
    std::unique_ptr<GradientStep> step;
    std::deque<std::pair<Ticket, Outcome>> done;
    std::optional<Result<StepReport>> outcome;
    size_t arrived = 0;  // buffers
  };
  Host& at(Rank station) { return *hosts_[static_cast<size_t>(station)]; }

  void begin(int step, uint64_t epoch, const std::vector<Rank>& stations) {
    for (size_t place = 0; place < stations.size(); ++place) {
      Host& host = at(stations[place]);
      const Members members{epoch, stations, static_cast<Rank>(place)};
      if (host.step == nullptr) {
        host.step = GradientStep::create(layout_, {}, members).value();
        ASSERT_TRUE(host.step->set_plan(plan_for(layout_)).ok());
      }
      fill(layout_, step, host.station, host.arena);
      host.outcome.reset();
      host.arrived = 0;
      const RoundSpec spec{
          .round = static_cast<uint64_t>(step), .arena = host.arena, .members = members};
      const Result<void> begun = host.step->begin(spec, network_.now());
      ASSERT_TRUE(begun.ok()) << begun.error().to_string();
      for (uint32_t tensor = 0; tensor < layout_.tensors().size(); ++tensor) {
        host.step->ready(tensor, network_.now());
      }
    }
  }
  void run(int step, uint64_t epoch, const std::vector<Rank>& stations) {
    std::vector<double> before = kept(stations, stations.size());
    ASSERT_NO_FATAL_FAILURE(begin(step, epoch, stations));
    for (const Rank station : stations) {
      for (size_t i = 0; i < before.size(); ++i) before[i] += at(station).arena[i];
      at(station).step->finish(0, 0, network_.now());
    }
    const auto over = [&] {
      return std::ranges::all_of(stations, [&](Rank one) { return at(one).outcome.has_value(); });
    };
    ASSERT_TRUE(run_until(over));
    std::vector<double> after = kept(stations, stations.size());
    const auto members = static_cast<double>(stations.size());
    for (const Rank station : stations) {
      const auto& outcome = at(station).outcome;
      ASSERT_TRUE(outcome->ok()) << outcome->error().to_string();
      diary_.averages(step, station, at(station).arena);
    }
    for (size_t i = 0; i < after.size(); ++i) after[i] += members * at(stations[0]).arena[i];
    expect_near(before, after);
  }
  // The survivors' good verdicts are on their way: what they sent stays sent, the rest with them.
  void lose_one(const std::vector<Rank>& first) {
    std::vector<double> before = kept(first, first.size());
    ASSERT_NO_FATAL_FAILURE(begin(kLostIn, 1, first));
    for (const Rank station : first) {
      for (size_t i = 0; i < before.size(); ++i) before[i] += at(station).arena[i];
      if (station != kVictim) at(station).step->finish(0, 0, network_.now());
    }
    const size_t buffers = plan_for(layout_).buffers.size();
    ASSERT_TRUE(run_until([&] {
      return std::ranges::all_of(first, [&](Rank one) { return at(one).arrived == buffers; });
    }));
    std::vector<double> after = kept(first, first.size());
    for (size_t i = 0; i < after.size(); ++i) after[i] += 3.0 * at(kSurvivors[0]).arena[i];
    expect_near(before, after);
    std::map<Rank, std::vector<double>> own;
    for (const Rank station : kSurvivors) own[station] = kept({station}, first.size());
    network_.kill(kVictim);
    ASSERT_TRUE(run_until([&] {
      return std::ranges::all_of(kSurvivors, [&](Rank one) { return at(one).outcome.has_value(); });
    }));
    for (const Rank station : kSurvivors) {
      ASSERT_FALSE(at(station).outcome->ok());
      EXPECT_EQ(at(station).outcome->error().code, ErrorCode::peer_lost);
      EXPECT_EQ(own[station], kept({station}, first.size())) << "station " << station;
    }
    size_t agreed = 0;
    for (auto& host : hosts_) {
      if (host->station == kVictim) continue;
      host->exchange.shrink(30s, [&](const Result<Members>& there) { agreed += there.ok(); });
    }
    ASSERT_TRUE(run_until([&] { return agreed == hosts_.size() - 1; }));
    at(kVictim).exchange.abandon();
    at(kVictim).step->abort({.code = ErrorCode::closed, .message = "lost"});
    drive(at(kVictim));
  }
  void change(const Members& to) {
    for (size_t place = 0; place < to.stations.size(); ++place) {
      const Rank station = to.stations[place];
      if (at(station).step == nullptr) continue;
      Members own = to;
      own.self = static_cast<Rank>(place);
      const std::vector<double> before = kept({station}, to.stations.size());
      ASSERT_TRUE(at(station).step->set_members(own).ok());
      expect_near(before, kept({station}, to.stations.size()));
    }
  }
  void save(int before, const std::vector<Rank>& stations) {
    for (const Rank station : stations) {
      diary_.residuals(before, station, at(station).step->save().value());
    }
  }

  bool run_until(const std::function<bool()>& over) {
    const Time limit = network_.now() + 1000s;
    for (;;) {
      for (auto& host : hosts_) drive(*host);
      if (over()) return true;
      if (!network_.advance(limit)) return false;
      for (const Rank station : network_.take_runnable()) at(station).exchange.pump();
    }
  }
  void drive(Host& host) {
    if (host.step == nullptr) return;
    GradientStep& step = *host.step;
    const Time now = network_.now();
    for (bool more = true; more;) {
      more = false;
      while (auto next = step.poll_transmit(now)) {
        const Ticket ticket = next->ticket;
        host.exchange.submit(
            step.seat().members, std::move(next->operation),
            [&host, ticket](const Outcome& outcome) { host.done.emplace_back(ticket, outcome); });
        more = true;
      }
      while (const auto job = step.next()) {
        static_cast<void>(step.run(*job));
        step.finished(*job, now, now);
        more = true;
      }
      while (const auto lane = step.next_cancelled()) {
        host.exchange.cancel(step.seat().members, *lane);
      }
      while (step.next_arrived()) ++host.arrived;
      for (; !host.done.empty(); more = true) {
        const auto [ticket, outcome] = std::move(host.done.front());
        host.done.pop_front();
        step.on_done(ticket, outcome, now);
      }
      if (auto outcome = step.take_outcome(now)) host.outcome = std::move(outcome);
    }
  }

  // By element, as a sum of gradients: an owner's counts once in an average of so many.
  std::vector<double> kept(const std::vector<Rank>& stations, size_t members) {
    std::vector<double> all(layout_.arena_elements(), 0.0);
    for (const Rank station : stations) {
      if (at(station).step == nullptr) continue;
      const Residuals& residuals = at(station).step->residuals();
      for (uint32_t slice = 0; slice < layout_.slices().size(); ++slice) {
        add(residuals.worker_if_made(slice), slice, 1.0, all);
        add(residuals.owner_if_made(slice), slice, static_cast<double>(members), all);
      }
    }
    return all;
  }
  void add(const codec::TensorEncoder* encoder, uint32_t slice, double times,
           std::vector<double>& to) {
    if (encoder == nullptr) return;
    const SliceLayout& known = layout_.slices()[slice];
    std::vector<float> residual(known.range.elements);
    ASSERT_TRUE(encoder->read_residual(residual));
    const uint64_t at = layout_.arena_offset(layout_.parts()[known.part].tensor, known.range);
    for (size_t i = 0; i < residual.size(); ++i) to[at + i] += times * residual[i];
  }
  static void expect_near(const std::vector<double>& before, const std::vector<double>& after) {
    ASSERT_EQ(before.size(), after.size());
    for (size_t i = 0; i < before.size(); ++i) {
      ASSERT_NEAR(before[i], after[i], 3e-5) << "element " << i;
    }
  }

  Diary& diary_;
  const Layout layout_ = layout_for(kFirstRanks);
  net::SimulatedNetwork network_{{.size = 5, .link = {}}};
  std::vector<std::unique_ptr<Host>> hosts_;
};

TEST(AveragerMembers, ALossAndNewcomersOverSocketsAreTheBitsOfTheSimulatedOnes) {
  Diary on_sockets;
  train_on_sockets(on_sockets);
  Diary simulated;
  Simulated(simulated).train();
  Diary::expect_alike(on_sockets, simulated);
}

}  // namespace
}  // namespace scant::gradient
