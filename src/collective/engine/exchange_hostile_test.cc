// Exchange against a peer that breaks the protocol: whatever frames it sends, in whatever phases
// they arrive, nothing is written beyond a part, the operation ends, and the error says what is
// wrong (docs/engine.md, the table of data frames).
#include <algorithm>
#include <array>
#include <gtest/gtest.h>
#include <optional>

#include "base/rng.h"
#include "collective/engine/control.h"
#include "collective/engine/engine.h"

namespace scant::collective {
namespace {

using namespace std::chrono_literals;
using net::FrameHeader;
using net::FrameType;

constexpr uint64_t kSegment = 1000;
constexpr uint64_t kCapacity = 3500;  // slots of 1,000, 1,000, 1,000 and 500 bytes
constexpr size_t kGuard = 4096;
constexpr std::byte kUntouched{0xA5};

struct Sent {
  uint32_t slot = 0;
  uint32_t length = 0;
  bool last = false;
};

// Rank 0 of two, alone with what the test sends it as rank 1.
class Victim {
 public:
  Victim() {
    EngineOptions options;
    options.size = 2;
    options.segment_bytes = kSegment;
    options.agree_first = 0;
    engine_.emplace(options, CostModel{});
    now_ = Time{1h};
    engine_->set_now(now_);
  }

  void submit() {
    Call call;
    call.kind = OpKind::exchange;
    call.inputs = {Bytes{}, Bytes(part_)};
    call.outputs = {MutableBytes{}, MutableBytes(memory_).subspan(kGuard, kCapacity)};
    call.received = received_;
    call.timeout = 10s;
    outcome.reset();
    engine_->submit(now_, std::move(call),
                    [this](const Result<void>& result, Rank) { outcome = result; });
  }

  // Phases of a frame's arrival. False: the engine wants nothing more of it.
  bool begin(const Sent& sent) {
    Flight& flight = flights_.emplace_back();
    flight.header = header_of(sent);
    if (sent.length == 0) return true;
    flight.target = engine_->on_header(1, flight.header);
    if (!flight.target.empty()) return true;
    flights_.pop_back();
    return false;
  }
  void finish(size_t index) {
    Flight flight = flights_[index];
    flights_.erase(flights_.begin() + static_cast<std::ptrdiff_t>(index));
    std::fill(flight.target.begin(), flight.target.end(), std::byte{1});
    engine_->on_frame(1, flight.header, flight.target);
  }
  void whole(const Sent& sent) {
    if (begin(sent)) finish(flights_.size() - 1);
  }
  void take(const Sent& sent) {
    const std::vector<std::byte> payload(sent.length, std::byte{1});
    if (sent.length == 0 || !engine_->take(1, header_of(sent), payload)) whole(sent);
  }
  [[nodiscard]] size_t arriving() const { return flights_.size(); }

  // Its own part leaves.
  std::vector<FrameHeader> transmit() {
    std::vector<FrameHeader> all;
    while (const std::optional<OutFrame> frame = engine_->poll_transmit(1)) {
      all.push_back(frame->header);
      engine_->on_sent(frame->token);
    }
    return all;
  }
  void pass(Duration time) {
    now_ += time;
    engine_->on_timer(now_);
  }

  void expect_unharmed() {
    const auto untouched = [](Bytes bytes) {
      return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == kUntouched; });
    };
    EXPECT_TRUE(untouched(Bytes(memory_).first(kGuard)));
    EXPECT_TRUE(untouched(Bytes(memory_).subspan(kGuard + kCapacity)));
    EXPECT_EQ(engine_->buffers_out(), 0U);
    EXPECT_EQ(engine_->operations_in_flight(), outcome ? 0U : 1U);
  }
  [[nodiscard]] const std::array<uint64_t, 2>& received() const { return received_; }

  std::optional<Result<void>> outcome;

 private:
  struct Flight {
    FrameHeader header;
    MutableBytes target;
  };
  [[nodiscard]] FrameHeader header_of(const Sent& sent) const {
    FrameHeader header;
    header.type = FrameType::data;
    header.flags = static_cast<uint16_t>(kFlagEager | (sent.last ? kFlagLast : 0));
    header.epoch = engine_->epoch();
    header.slot = sent.slot;
    header.length = sent.length;
    header.call.kind = static_cast<uint8_t>(OpKind::exchange);
    header.call.dtype = static_cast<uint8_t>(DType::u8);
    header.call.algorithm = static_cast<uint8_t>(Algorithm::direct);
    header.call.group_size = 2;
    header.call.bytes = kCapacity;
    return header;
  }

  std::vector<std::byte> part_ = std::vector<std::byte>(10);
  std::vector<std::byte> memory_ = std::vector<std::byte>(2 * kGuard + kCapacity, kUntouched);
  std::array<uint64_t, 2> received_{77, 77};
  std::vector<Flight> flights_;
  std::optional<Engine> engine_;
  Time now_;
};

struct Row {
  const char* name;
  std::vector<Sent> frames;
  const char* words;  // in the error when they come one after another
};

const char* const kBehind = "it sends data behind the last frame of its part";
const char* const kTwo = "it marks two frames as the last of its part";
const char* const kCut = "its parts are cut differently";
const char* const kTwice = "it sends one part twice";

const Row kRows[] = {
    {"behind_the_last", {{0, 1000}, {1, 200, true}, {2, 1000}}, kBehind},
    {"behind_the_last_empty", {{0, 0, true}, {1, 1000}}, kBehind},
    {"last_before_what_came", {{2, 1000}, {1, 200, true}}, kBehind},
    {"last_before_the_final_slot", {{3, 500, true}, {1, 200, true}}, kTwo},
    {"two_last", {{1, 200, true}, {0, 1000, true}}, kTwo},
    {"two_last_upwards", {{0, 1000, true}, {1, 200, true}}, kTwo},
    {"the_same_last_twice", {{1, 200, true}, {1, 200, true}}, kTwice},
    {"the_same_twice", {{0, 1000}, {0, 1000}}, kTwice},
    {"short_and_not_last", {{0, 999}}, kCut},
    {"empty_and_not_last", {{0, 0}}, kCut},
    {"longer_than_a_segment", {{0, 1001, true}}, kCut},
    {"longer_than_a_segment_not_last", {{0, 1001}}, kCut},
    {"longer_than_the_final_slot", {{3, 501, true}}, kCut},
    {"a_frame_of_a_mebibyte", {{3, 1 << 20, true}}, kCut},
    {"final_slot_not_last", {{3, 500}}, kCut},
    {"empty_last_in_a_later_slot", {{0, 1000}, {1, 0, true}}, kCut},
    {"beyond_the_schedule", {{4, 0, true}}, "it sends a part that is not expected here"},
    {"far_beyond_the_schedule", {{UINT32_MAX, 1, true}}, "not expected here"},
};

class Hostile : public testing::TestWithParam<Row> {};

void expect_refused(Victim& victim, const char* words) {
  ASSERT_TRUE(victim.outcome.has_value());
  ASSERT_FALSE(victim.outcome->ok());
  EXPECT_EQ(victim.outcome->error().code, ErrorCode::mismatch);
  EXPECT_EQ(victim.outcome->error().peer, 1);
  EXPECT_NE(victim.outcome->error().message.find(words), std::string::npos)
      << victim.outcome->error().message;
  EXPECT_EQ(victim.received(), (std::array<uint64_t, 2>{77, 77}));
  victim.expect_unharmed();
}

TEST_P(Hostile, FramesOneAfterAnotherAreNamed) {
  for (const bool taken : {false, true}) {
    Victim victim;
    victim.submit();
    for (const Sent& sent : GetParam().frames) {
      ASSERT_FALSE(victim.outcome.has_value()) << "an earlier frame was refused";
      taken ? victim.take(sent) : victim.whole(sent);
    }
    expect_refused(victim, GetParam().words);
  }
}

TEST_P(Hostile, FramesBeforeTheCallAreNamed) {
  Victim victim;
  for (const Sent& sent : GetParam().frames) victim.whole(sent);
  victim.submit();
  expect_refused(victim, GetParam().words);
}

// All at once, in any order of headers and ends.
TEST_P(Hostile, FramesInAnyPhaseAreRefused) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    base::Rng rng(seed);
    Victim victim;
    std::vector<Sent> frames = GetParam().frames;
    const bool early = rng.chance(0.2);
    if (!early) victim.submit();
    while (!frames.empty() || victim.arriving() > 0) {
      if (!frames.empty() && (victim.arriving() == 0 || rng.chance(0.5))) {
        const auto at = static_cast<std::ptrdiff_t>(rng.below(frames.size()));
        const Sent sent = frames[static_cast<size_t>(at)];
        frames.erase(frames.begin() + at);
        if (rng.chance(0.3)) {
          victim.take(sent);
        } else {
          victim.begin(sent);
        }
      } else {
        victim.finish(rng.below(victim.arriving()));
      }
    }
    if (early) victim.submit();
    expect_refused(victim, "rank 1 calls exchange of parts of up to 3,500 bytes u8");
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, Hostile, testing::ValuesIn(kRows),
                         [](const auto& row) { return std::string(row.param.name); });

// Frames at random: the operation ends well only with a part that has one shape, and nothing is
// written outside in any case.
TEST(HostileFuzz, AnyFramesLeaveTheMemoryBesideThePartAlone) {
  int well = 0;
  for (uint64_t seed = 0; seed < 20'000; ++seed) {
    base::Rng rng(seed);
    Victim victim;
    victim.submit();
    victim.transmit();
    uint64_t good = 0;
    for (int i = 0; i < 8; ++i) {
      Sent sent;
      sent.slot = static_cast<uint32_t>(rng.below(5));
      const uint32_t lengths[] = {0, 1, 499, 500, 501, 999, 1000, 1001};
      sent.length = rng.chance(0.6) ? 1000 : lengths[rng.below(8)];
      sent.last = rng.chance(0.4);
      if (victim.outcome) break;
      good += sent.length;
      if (rng.chance(0.3)) {
        victim.take(sent);
      } else if (victim.begin(sent) && rng.chance(0.7)) {
        victim.finish(rng.below(victim.arriving()));
      }
    }
    while (victim.arriving() > 0) victim.finish(rng.below(victim.arriving()));
    ASSERT_TRUE(victim.outcome || victim.received()[1] == 77U) << "seed " << seed;
    if (victim.outcome && *victim.outcome) {
      ++well;
      EXPECT_LE(victim.received()[1], std::min(good, kCapacity)) << "seed " << seed;
    } else {
      EXPECT_EQ(victim.received()[1], 77U) << "seed " << seed;
    }
    victim.expect_unharmed();
    if (testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(well, 100);
}

TEST(HostileEnd, APartWithoutAnEndEndsByTheDeadline) {
  Victim victim;
  victim.submit();
  victim.transmit();
  victim.whole({0, 1000});
  victim.whole({2, 1000});
  victim.pass(9s);
  EXPECT_FALSE(victim.outcome.has_value());
  victim.pass(2s);
  ASSERT_TRUE(victim.outcome.has_value());
  EXPECT_EQ(victim.outcome->error().code, ErrorCode::timeout);
  EXPECT_EQ(victim.outcome->error().peer, 1);
  victim.expect_unharmed();
}

// This rank's outcome stands; the peer and the next operation are told.
TEST(HostileEnd, AFrameBehindAPartThatEndedWellFailsTheNextOperation) {
  Victim victim;
  victim.submit();
  EXPECT_EQ(victim.transmit().size(), 1U);
  victim.whole({0, 5, true});
  ASSERT_TRUE(victim.outcome.has_value() && victim.outcome->ok());
  EXPECT_EQ(victim.received(), (std::array<uint64_t, 2>{0, 5}));
  victim.whole({1, 1000});
  const std::vector<FrameHeader> told = victim.transmit();
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].type, FrameType::cancel);
  victim.submit();
  ASSERT_TRUE(victim.outcome.has_value() && !victim.outcome->ok());
  EXPECT_EQ(victim.outcome->error().code, ErrorCode::mismatch);
  EXPECT_NE(victim.outcome->error().message.find(kBehind), std::string::npos);
  victim.expect_unharmed();
}

TEST(HostileEnd, TheFlagMarksTheEndOfEveryPartOnTheWire) {
  for (const size_t bytes : {0U, 1U, 1000U, 1001U, 3500U}) {
    EngineOptions options;
    options.size = 2;
    options.segment_bytes = kSegment;
    options.agree_first = 0;
    Engine engine(options, CostModel{});
    std::vector<std::byte> part(bytes);
    std::vector<std::byte> output(kCapacity);
    std::array<uint64_t, 2> received{};
    Call call;
    call.kind = OpKind::exchange;
    call.inputs = {Bytes{}, Bytes(part)};
    call.outputs = {MutableBytes{}, MutableBytes(output)};
    call.received = received;
    engine.submit(Time{1s}, std::move(call), [](const Result<void>&, Rank) {});
    std::vector<uint32_t> lengths;
    while (const std::optional<OutFrame> frame = engine.poll_transmit(1)) {
      EXPECT_EQ(frame->header.slot, lengths.size());
      lengths.push_back(frame->header.length);
      const bool ends = lengths.size() == std::max<size_t>(1, (bytes + kSegment - 1) / kSegment);
      EXPECT_EQ((frame->header.flags & kFlagLast) != 0, ends);
      EXPECT_EQ(frame->header.call.bytes, kCapacity);
      engine.on_sent(frame->token);
    }
    EXPECT_EQ(lengths.size(), std::max<size_t>(1, (bytes + kSegment - 1) / kSegment));
  }
}

}  // namespace
}  // namespace scant::collective
