// The agreement's core by its table of states, each event in each of them; and what a sounding
// asks.
#include "plan/agreement.h"

#include <cstring>
#include <functional>
#include <gtest/gtest.h>

#include "plan/testing/agreeing_members.h"

namespace scant::plan {
namespace {

using gradient::Operation;
using Kind = Operation::Kind;
using State = Agreement::State;

const std::vector<uint64_t> kSizes = {800'000, 800'000, 3'000, 800'000, 800'000};

Error lost() { return {.code = ErrorCode::peer_lost, .message = "rank 0 is gone"}; }

// Member 0 of two, whose other member says what it says itself.
class Alone {
 public:
  explicit Alone(uint32_t first_sounding_ms) : sounding_ms_(first_sounding_ms) {}

  void begin(int members = 2) {
    take(core.begin(
        {.epoch = 1, .stations = std::vector<Rank>(static_cast<size_t>(members)), .self = 0},
        rates(), at()));
  }
  void step() {
    const Measurement measured = world.measure(core.decision()).front();
    const auto report = report_of(measured, world.layout(), core.curves_wanted());
    now_ += duration_of(measured.step_s);
    static_cast<void>(core.step_done(report, at().now));
  }
  void steps() {
    while (core.state() == State::running) step();
  }
  void agree() { take(core.agree(at())); }
  void done() {
    if (operation->kind == Kind::gather) {
      for (const MutableBytes room : operation->room)
        std::memcpy(room.data(), operation->sent.front().data(), room.size());
    }
    now_ += std::chrono::milliseconds(sounding_ms_);
    take(core.done({}, at()));
  }
  void fail() { take(core.done(lost(), at())); }
  void until(State state) {
    for (int i = 0; core.state() != state && i < 1000; ++i) done();
    ASSERT_EQ(core.state(), state);
  }

  World world{kSizes, 2};
  Agreement core{world.layout(), {.lane = {.slot = 5, .leg = gradient::Leg::agreement}}};
  std::optional<Operation> operation;

 private:
  [[nodiscard]] Moment at() const { return {now_, 0}; }
  void take(std::optional<Operation> next) {
    operation = std::move(next);
    EXPECT_EQ(operation.has_value(), core.under_way());
    if (!operation) return;
    EXPECT_EQ(operation->lane, core.lane());
    EXPECT_TRUE(operation->delivery.exact);
  }

  const uint32_t sounding_ms_;
  Time now_{};
};

// By events alone, from the beginning.
void reach(State state, Alone& alone) {
  if (state == State::idle) return;
  alone.begin();
  if (state == State::first_sounding) return;
  if (state == State::failed) return alone.fail();
  if (state == State::slowest) return alone.until(State::slowest);
  alone.until(State::running);
  if (state == State::running) return;
  alone.steps();
  if (state == State::due) return;
  alone.agree();
  alone.until(state);
}

constexpr State kStates[] = {State::idle,  State::first_sounding, State::slowest,   State::running,
                             State::due,   State::sounding,       State::gathering, State::telling,
                             State::failed};
constexpr uint32_t kLongMs = 9;   // a first sounding of these tells the rate
constexpr uint32_t kShortMs = 1;  // of these none does, so it grows

struct Row {
  const char* name;
  State from;
  std::function<void(Alone&)> event;
  State to;
  std::optional<Kind> submits = std::nullopt;
  uint32_t ms = kLongMs;  // each operation
};

std::vector<Row> rows() {
  const auto begin = [](Alone& a) { a.begin(); };
  const auto begin_one = [](Alone& a) { a.begin(1); };
  const auto step = [](Alone& a) { a.step(); };
  const auto agree = [](Alone& a) { a.agree(); };
  const auto done = [](Alone& a) { a.done(); };
  const auto last = [](Alone& a) {
    while (a.core.state() == State::first_sounding || a.core.state() == State::sounding) a.done();
  };
  const auto steps = [](Alone& a) { a.steps(); };
  std::vector<Row> all = {
      {"begin, others", State::idle, begin, State::first_sounding, Kind::swap},
      {"begin, one member", State::idle, begin_one, State::running},
      {"sounding goes on", State::first_sounding, done, State::first_sounding, Kind::swap},
      {"sounding is over", State::first_sounding, last, State::slowest, Kind::all_reduce},
      {"long enough", State::slowest, done, State::running},
      {"too short", State::slowest, done, State::first_sounding, Kind::swap, kShortMs},
      {"a step", State::running, step, State::running},
      {"the last step", State::running, steps, State::due},
      {"others, running", State::running, begin, State::first_sounding, Kind::swap},
      {"agree, with sounding", State::due, agree, State::sounding, Kind::swap},
      {"others, due", State::due, begin, State::first_sounding, Kind::swap},
      {"sounding goes on", State::sounding, done, State::sounding, Kind::swap},
      {"sounding is over", State::sounding, last, State::gathering, Kind::gather},
      {"all measured", State::gathering, done, State::telling, Kind::broadcast},
      {"all know", State::telling, done, State::running},
      {"agree after an error", State::failed, agree, State::failed},
      {"step after an error", State::failed, step, State::failed},
      {"others after an error", State::failed, begin, State::first_sounding, Kind::swap},
      {"alone after an error", State::failed, begin_one, State::running}};
  for (const State state : kStates) {
    Alone probe(kLongMs);
    reach(state, probe);
    if (!probe.core.under_way()) continue;
    all.push_back({"an error", state, [](Alone& a) { a.fail(); }, State::failed});
  }
  return all;
}

TEST(Agreement, GoesFromStateToStateByItsTable) {
  std::vector<Row> all = rows();
  EXPECT_EQ(all.size(), 24u);
  for (const Row& row : all) {
    SCOPED_TRACE(row.name);
    Alone alone(row.ms);
    ASSERT_NO_FATAL_FAILURE(reach(row.from, alone));
    ASSERT_EQ(alone.core.state(), row.from);
    row.event(alone);
    EXPECT_EQ(alone.core.state(), row.to);
    ASSERT_EQ(alone.operation.has_value(), row.submits.has_value());
    if (row.submits) {
      EXPECT_EQ(alone.operation->kind, *row.submits);
    }
    ASSERT_EQ(alone.core.error().has_value(), row.to == State::failed);
    if (row.to == State::failed) {
      EXPECT_EQ(alone.core.error()->message, lost().message);
    }
  }
}

TEST(AgreementDeathTest, EventsOutOfTurnAreProgrammersErrors) {
  for (const State state : kStates) {
    SCOPED_TRACE(static_cast<int>(state));
    Alone alone(kLongMs);
    ASSERT_NO_FATAL_FAILURE(reach(state, alone));
    const bool failed = state == State::failed;
    if (state != State::running && !failed) {
      EXPECT_DEATH(static_cast<void>(alone.core.step_done({}, Time{})), "before the next step");
    }
    if (state != State::due && !failed) {
      EXPECT_DEATH(alone.agree(), "ends after its last step");
    }
    if (alone.core.under_way()) {
      EXPECT_DEATH(alone.begin(), "until the outcome is there");
    } else {
      EXPECT_DEATH(alone.fail(), "belongs to an operation");
    }
  }
}

TEST(Agreement, AsksForCurvesBeforeTheLastStepOfAPeriodThatHasThem) {
  Alone alone(kLongMs);
  reach(State::running, alone);
  ASSERT_TRUE(alone.core.decision().curves);
  const uint32_t steps = alone.core.decision().steps;
  for (uint32_t done = 0; done < steps; ++done, alone.step()) {
    EXPECT_EQ(alone.core.curves_wanted(), done + 1 == steps) << done;
  }
  EXPECT_EQ(alone.core.state(), State::due);
}

TEST(Sounding, KeepsTheFasterOfTwoOfEachKind) {
  Sounding sounding(3, 1);
  Moment at{};
  std::optional<Operation> operation = sounding.begin(60'000, at);
  const double took_ms[] = {3, 20, 40, 2, 30, 35};
  for (size_t turn = 0; turn < std::size(took_ms); ++turn) {
    ASSERT_TRUE(operation.has_value());
    if (turn % 3 == 2) {
      EXPECT_EQ(operation->kind, Kind::all_reduce);
      EXPECT_EQ(operation->span.size(), 45'000u);
    } else {
      const size_t each = turn % 3 == 0 ? 64 : 30'000;
      ASSERT_EQ(operation->kind, Kind::swap);
      ASSERT_EQ(operation->sent.size(), 3u);
      for (size_t place = 0; place < 3; ++place) {
        EXPECT_EQ(operation->sent[place].size(), place == 1 ? 0 : each);
        EXPECT_EQ(operation->room[place].size(), place == 1 ? 0 : each);
      }
    }
    at.now += duration_of(took_ms[turn] / 1000);
    at.cpu_s += took_ms[turn] / 4000;
    operation = sounding.done(at);
  }
  EXPECT_FALSE(operation.has_value());
  const SoundingTimes& times = sounding.times();
  EXPECT_NEAR(times.small_s, 0.002, 1e-9);
  EXPECT_NEAR(times.exchange_s, 0.020, 1e-9);
  EXPECT_NEAR(times.reduce_s, 0.035, 1e-9);
  EXPECT_NEAR(times.small_cpu_s, 0.0005, 1e-9);
  EXPECT_NEAR(times.exchange_cpu_s, 0.005, 1e-9);
  EXPECT_EQ(times.exchange_bytes, 60'000);
  EXPECT_EQ(times.reduce_bytes, 60'000);
}

}  // namespace
}  // namespace scant::plan
