// Exchange on a network that delivers frames in random order: sizes at the edges of segments,
// random sizes, what is on the wire, refusals, losses, early frames, and the order in which a
// rank's operations send.
#include <array>
#include <functional>
#include <gtest/gtest.h>
#include <optional>
#include <utility>

#include "base/counters.h"
#include "collective/engine/credit.h"
#include "collective/testing/exercise_run.h"

namespace scant::collective {
namespace {

using namespace std::chrono_literals;

constexpr std::byte kUntouched{0xA5};
constexpr uint64_t kNotTold = UINT64_MAX;

EngineOptions plain(EngineOptions options = small_segments()) {
  options.agree_first = 0;
  return options;
}

std::byte value(Rank from, Rank to, uint64_t at) {
  return static_cast<std::byte>(
      base::random_at(static_cast<uint64_t>(from) << 8, at, static_cast<uint64_t>(to)) & 0xFF);
}

// One exchange of all ranks of a network; size(from, to) is drawn by the test.
class Exchange {
 public:
  using Size = std::function<uint64_t(Rank from, Rank to)>;

  Exchange(FakeNetwork& network, uint64_t capacity, Size size)
      : network_(network), size_(std::move(size)), ranks_(static_cast<size_t>(network.size())) {
    for (Rank rank = 0; rank < network.size(); ++rank) {
      PerRank& own = at(rank);
      own.received.assign(ranks_.size(), kNotTold);
      for (Rank other = 0; other < network.size(); ++other) {
        std::vector<std::byte>& part = own.inputs.emplace_back(size_(rank, other));
        for (uint64_t i = 0; i < part.size(); ++i) part[i] = value(rank, other, i);
        own.outputs.emplace_back(capacity, kUntouched);
      }
    }
  }

  void submit(Rank rank, Duration timeout = {}) {
    PerRank& own = at(rank);
    Call call;
    call.kind = OpKind::exchange;
    call.timeout = timeout;
    for (const auto& part : own.inputs) call.inputs.emplace_back(part);
    for (auto& part : own.outputs) call.outputs.emplace_back(part);
    call.received = own.received;
    network_.engine(rank).submit(network_.now(), std::move(call),
                                 [&own](const Result<void>& result, Rank) {
                                   EXPECT_FALSE(own.outcome.done);
                                   own.outcome.done = true;
                                   own.outcome.result = result;
                                 });
  }
  void submit_all() {
    for (Rank rank = 0; rank < network_.size(); ++rank) submit(rank);
  }

  [[nodiscard]] Outcome& outcome(Rank rank) { return at(rank).outcome; }
  [[nodiscard]] const std::vector<uint64_t>& received(Rank rank) { return at(rank).received; }

  void expect_right(Rank rank) {
    PerRank& own = at(rank);
    ASSERT_TRUE(own.outcome.done) << "rank " << rank;
    ASSERT_TRUE(own.outcome.result.ok()) << own.outcome.result.error().to_string();
    for (Rank from = 0; from < network_.size(); ++from) {
      const std::vector<std::byte>& part = own.outputs[static_cast<size_t>(from)];
      const uint64_t bytes = size_(from, rank);
      ASSERT_EQ(own.received[static_cast<size_t>(from)], bytes) << from << " to " << rank;
      for (uint64_t i = 0; i < part.size(); ++i) {
        ASSERT_EQ(part[i], i < bytes ? value(from, rank, i) : kUntouched)
            << "byte " << i << " of " << bytes << ", " << from << " to " << rank;
      }
    }
  }
  void expect_all_right() {
    for (Rank rank = 0; rank < network_.size(); ++rank) expect_right(rank);
  }

 private:
  struct PerRank {
    std::vector<std::vector<std::byte>> inputs;
    std::vector<std::vector<std::byte>> outputs;
    std::vector<uint64_t> received;
    Outcome outcome;
  };
  PerRank& at(Rank rank) { return ranks_[static_cast<size_t>(rank)]; }

  FakeNetwork& network_;
  Size size_;
  std::vector<PerRank> ranks_;
};

// The formula of docs/collectives.md.
struct Wire {
  uint64_t frames = 0;
  uint64_t bytes = 0;
};
Wire wire_of(int size, uint64_t segment, const Exchange::Size& bytes) {
  Wire wire;
  for (Rank from = 0; from < size; ++from) {
    for (Rank to = 0; to < size; ++to) {
      if (from == to) continue;
      wire.bytes += bytes(from, to);
      wire.frames += std::max<uint64_t>(1, (bytes(from, to) + segment - 1) / segment);
    }
  }
  return wire;
}

// Every size at an edge meets every other in both directions and in every order of arrival.
TEST(ExchangeSizes, AtTheEdgesOfSegmentsAndOfTheCapacity) {
  for (const uint64_t capacity : {3500U, 3000U}) {
    const uint64_t edges[] = {0, 1, 999, 1000, 1001, 2000, capacity - 1, capacity};
    for (uint64_t seed = 0; seed < 64; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " capacity " + std::to_string(capacity));
      const auto bytes = [&](Rank from, Rank to) {
        if (from == 0 && to == 1) return edges[seed % 8];
        if (from == 1 && to == 0) return edges[seed / 8];
        return edges[(static_cast<uint64_t>(from * 3 + to) + seed) % 8];
      };
      FakeNetwork network(seed, 3, plain());
      Exchange exchange(network, capacity, bytes);
      exchange.submit_all();
      network.settle();
      exchange.expect_all_right();
      const Wire wire = wire_of(3, 1000, bytes);
      EXPECT_EQ(network.frames(net::FrameType::data), wire.frames);
      EXPECT_EQ(network.data_bytes(), wire.bytes);
      expect_clean(network);
      if (HasFailure()) return;
    }
  }
}

// Several at once, their capacities too, each rank at its own time: frames come before the call is
// posted, windows fill, and all results are right.
TEST(ExchangeSizes, OfRandomPartsInAnyOrderOfArrival) {
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const int size = 1 + static_cast<int>(seed % 6);
    FakeNetwork network(seed, size, plain());
    std::deque<Exchange> exchanges;
    for (uint64_t i = 0; i < 8; ++i) {
      const uint64_t capacity = network.rng().chance(0.1) ? 0 : network.rng().below(6000);
      exchanges.emplace_back(network, capacity, [=](Rank from, Rank to) {
        const auto pair = static_cast<uint64_t>(from) * 64 + static_cast<uint64_t>(to);
        const uint64_t draw = base::random_at(seed * 100 + i, pair, 5);
        if (draw % 5 == 0) return draw % 2 == 0 ? 0 : capacity;
        return draw / 8 % (capacity + 1);
      });
    }
    std::vector<size_t> next(static_cast<size_t>(size), 0);
    for (size_t left = next.size() * exchanges.size(); left > 0;) {
      const uint64_t rank = network.rng().below(next.size());
      if (next[rank] < exchanges.size()) {
        exchanges[next[rank]++].submit(static_cast<Rank>(rank));
        --left;
      }
      for (uint64_t steps = network.rng().below(10); steps > 0; --steps) network.step();
    }
    network.settle();
    for (Exchange& exchange : exchanges) exchange.expect_all_right();
    expect_clean(network);
    if (HasFailure()) return;
  }
}

TEST(ExchangeSizes, SmallPartsCostNoControlFramesAndNoSchedule) {
  base::Counter& built =
      base::counter("scant_engine_schedules_built_total", "Schedules computed for new calls");
  FakeNetwork network(1, 4, plain());
  uint64_t after_first = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    Exchange exchange(network, 2000, [i](Rank from, Rank to) {
      return base::random_at(i, static_cast<uint64_t>(from) * 8 + static_cast<uint64_t>(to), 2) %
             2001;
    });
    exchange.submit_all();
    network.settle();
    exchange.expect_all_right();
    if (i == 0) after_first = built.value();
  }
  EXPECT_EQ(built.value(), after_first);
  EXPECT_EQ(network.frames(net::FrameType::ready), 0U);
  EXPECT_EQ(network.frames(net::FrameType::request), 0U);
}

TEST(ExchangeSizes, BeyondTheEagerBytesAskedForAtSubmission) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    FakeNetwork network(seed, 3, plain(EngineOptions{}));
    constexpr uint64_t kCapacity = 1 << 20;
    const auto bytes = [](Rank from, Rank to) {
      return from == 2 ? uint64_t{7} : kCapacity - static_cast<uint64_t>(from + to * 1000);
    };
    Exchange exchange(network, kCapacity, bytes);
    exchange.submit_all();
    network.settle();
    exchange.expect_all_right();
    EXPECT_EQ(network.frames(net::FrameType::ready), 6U);
    EXPECT_EQ(network.frames(net::FrameType::request), 0U);
    EXPECT_EQ(network.data_bytes(), wire_of(3, 256 * 1024, bytes).bytes);
    expect_clean(network);
  }
}

TEST(ExchangeSizes, FramesOfACallThatIsNotPostedAreKept) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    FakeNetwork network(seed, 3, plain());
    Exchange exchange(network, 5000, [](Rank from, Rank to) {
      return 1400 * static_cast<uint64_t>(from) + 300 * static_cast<uint64_t>(to);
    });
    exchange.submit(1);
    exchange.submit(2);
    network.run(network.now() + 1s);  // probes ask rank 0, who knows nothing yet
    EXPECT_GT(network.engine(0).early_operations(), 0U);
    EXPECT_FALSE(exchange.outcome(1).done);
    exchange.submit(0);
    network.settle();
    exchange.expect_all_right();
    expect_clean(network);
    if (testing::Test::HasFailure()) return;
  }
}

TEST(ExchangeRefusals, DifferentCapacitiesAreAMismatchThatNamesBoth) {
  for (uint64_t seed = 0; seed < 30; ++seed) {
    FakeNetwork network(seed, 3, plain());
    const auto bytes = [&](Rank, Rank) { return seed % 3 * 100; };
    Exchange most(network, 4000, bytes);
    Exchange last(network, 4096, bytes);
    most.submit(0);
    most.submit(1);
    last.submit(2);
    network.run(network.now() + 1s);
    Outcome* outcomes[] = {&most.outcome(0), &most.outcome(1), &last.outcome(2)};
    for (Outcome* outcome : outcomes) {
      ASSERT_TRUE(outcome->done && !outcome->result.ok()) << "seed " << seed;
      EXPECT_EQ(outcome->result.error().code, ErrorCode::mismatch);
      const std::string& text = outcome->result.error().message;
      EXPECT_NE(text.find("exchange of parts of up to 4,000 bytes"), std::string::npos) << text;
      EXPECT_NE(text.find("exchange of parts of up to 4,096 bytes"), std::string::npos) << text;
    }
    EXPECT_EQ(most.received(0), std::vector<uint64_t>(3, kNotTold));
    expect_clean(network);
  }
}

TEST(ExchangeRefusals, APartAboveTheCapacityEndsTheOperationOnAll) {
  FakeNetwork network(1, 3, plain());
  Exchange exchange(network, 100,
                    [](Rank from, Rank to) { return from == 1 && to == 2 ? 101U : 100U; });
  exchange.submit_all();
  network.settle();
  for (Rank rank = 0; rank < 3; ++rank) {
    ASSERT_TRUE(exchange.outcome(rank).done && !exchange.outcome(rank).result.ok());
    EXPECT_EQ(exchange.outcome(rank).result.error().code, ErrorCode::invalid_argument);
    EXPECT_EQ(exchange.outcome(rank).result.error().peer, 1);
    const std::string& text = exchange.outcome(rank).result.error().message;
    EXPECT_NE(text.find("input part 2 has 101 bytes, the capacity is 100"), std::string::npos);
  }
  expect_clean(network);
}

// Who dies after any number of events: the others end at once, name it, and tell no sizes unless
// they ended well.
TEST(ExchangeLoss, HalfwayEndsTheOperationOnEverySurvivor) {
  int well = 0;
  int failed = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, 4, plain());
    Exchange exchange(network, 5000, [](Rank from, Rank to) {
      return 1100 * static_cast<uint64_t>(from) + 400 * static_cast<uint64_t>(to);
    });
    exchange.submit_all();
    for (uint64_t steps = network.rng().below(200); steps > 0; --steps) network.step();
    network.kill(2);
    network.settle();
    for (const Rank rank : {0, 1, 3}) {
      ASSERT_TRUE(exchange.outcome(rank).done) << "rank " << rank;
      if (exchange.outcome(rank).result) {
        exchange.expect_right(rank);
        ++well;
        continue;
      }
      ++failed;
      EXPECT_EQ(exchange.outcome(rank).result.error().code, ErrorCode::peer_lost);
      EXPECT_EQ(exchange.outcome(rank).result.error().peer, 2);
      EXPECT_EQ(exchange.received(rank), std::vector<uint64_t>(4, kNotTold));
    }
    expect_clean(network);
    if (HasFailure()) return;
  }
  EXPECT_GT(well, 0);
  EXPECT_GT(failed, 0);
}

// An engine of two ranks whose frames the test takes itself.
class Sender {
 public:
  explicit Sender(EngineOptions options) {
    options.size = 2;
    options.agree_first = 0;
    engine_.emplace(options, CostModel{});
  }
  void submit(int priority) {
    Call call;
    call.kind = OpKind::exchange;
    call.priority = priority;
    call.inputs = {Bytes{}, part_};
    call.outputs = {MutableBytes{}, output_};
    call.received = received_;
    engine_->submit(Time{1s}, std::move(call), [](const Result<void>&, Rank) {});
  }
  // The type and operation of each frame that goes now.
  std::vector<std::pair<net::FrameType, uint32_t>> frames() {
    std::vector<std::pair<net::FrameType, uint32_t>> all;
    while (const std::optional<OutFrame> frame = engine_->poll_transmit(1)) {
      all.emplace_back(frame->header.type, frame->header.operation);
      tokens_.push_back(frame->token);
    }
    return all;
  }
  // The peer has consumed this much.
  void return_credit(uint32_t total) {
    net::FrameHeader header;
    header.type = net::FrameType::credit;
    header.epoch = engine_->epoch();
    header.credit = total;
    engine_->on_header(1, header);
    engine_->on_frame(1, header, {});
  }
  ~Sender() {
    for (const uint64_t token : tokens_) engine_->on_sent(token);
  }

 private:
  std::vector<std::byte> part_ = std::vector<std::byte>(100);
  std::vector<std::byte> output_ = std::vector<std::byte>(100);
  std::array<uint64_t, 2> received_{};
  std::vector<uint64_t> tokens_;
  std::optional<Engine> engine_;
};

using Frames = std::vector<std::pair<net::FrameType, uint32_t>>;

TEST(Priority, TheHighestSendsFirstThenTheOldest) {
  Sender sender(EngineOptions{});
  for (const int priority : {0, 5, 5, -1, 0}) sender.submit(priority);
  const auto data = net::FrameType::data;
  EXPECT_EQ(sender.frames(), (Frames{{data, 1}, {data, 2}, {data, 0}, {data, 4}, {data, 3}}));
}

// What the window stopped goes on in the same order, with what came meanwhile.
TEST(Priority, HoldsBehindAFullWindowToo) {
  EngineOptions options;
  options.eager_window_bytes = charge_of(100);
  Sender sender(options);
  for (const int priority : {-1, 0, 5}) sender.submit(priority);
  const auto data = net::FrameType::data;
  const auto request = net::FrameType::request;
  EXPECT_EQ(sender.frames(), (Frames{{data, 2}, {request, 1}, {request, 0}}));
  sender.submit(1);
  EXPECT_EQ(sender.frames(), (Frames{{request, 3}}));
  uint32_t returned = 0;
  for (const uint32_t next : {3U, 1U, 0U}) {
    returned += charge_of(100);
    sender.return_credit(returned);
    EXPECT_EQ(sender.frames(), (Frames{{data, next}}));
  }
}

}  // namespace
}  // namespace scant::collective
