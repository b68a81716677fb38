// Plans as values and as bytes: the document's example, every rule broken once, and that damaged or
// hostile bytes are refused before they cost memory.
#include "gradient/fusion_plan.h"

#include <cmath>
#include <cstdio>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <sstream>
#include <string>

#include "base/crc.h"
#include "base/little_endian.h"
#include "gradient/testing/fusion_plans.h"

namespace scant::gradient {
namespace {

using codec::Point;
using codec::ValueKind;
using testing::layout_of;
using testing::random_layout;
using testing::random_plan;
using PlanBytes = std::vector<std::byte>;

base::Rng printed_rng(uint64_t seed) {
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return base::Rng(seed);
}

// Five parts: 0 and 1 of their own tensors, 2 and 3 of a large one, 4 a last small one.
Layout example_layout() { return layout_of({{1, 10}, {300, 300}, {1, 5000000}, {1, 1}}, 4); }

FusionPlan example_plan() {
  constexpr Point kQuantised{1.0, ValueKind::q4};
  constexpr Point kSparse{0.25, ValueKind::bf16};
  return {{{0,
            2,
            Path::split,
            {{{1.0, ValueKind::bf16}, {1.0, ValueKind::bf16}}, {kSparse, kQuantised}}},
           {2, 2, Path::all_reduce, {}},
           {4, 1, Path::gather, {{{0.5, ValueKind::f32}, {}}}}}};
}

// Part 1 is the only matrix of the example: 300 x 300.
FusionPlan plan_with_factors() {
  FusionPlan plan = example_plan();
  PartPlan& matrix = plan.buffers[0].points[1];
  matrix = {{1.0, ValueKind::q1}, {1.0, ValueKind::q1}};
  matrix.first.rank = matrix.second.rank = 8;
  matrix.second.factors = ValueKind::q4;
  return plan;
}

void seal(PlanBytes& bytes) {
  const size_t body = bytes.size() - 4;
  base::store_little(bytes.data() + body, base::crc32c(Bytes(bytes).first(body)));
}

// Lines "OFFSET  HEX HEX ...  meaning"; the offsets must add up.
PlanBytes bytes_of_text(const char* text) {
  PlanBytes bytes;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) continue;
    EXPECT_EQ(std::stoul(line.substr(0, 3)), bytes.size()) << line;
    const size_t end = std::min(line.find("  ", 5), line.size());
    std::istringstream hex(line.substr(5, end - 5));
    for (std::string pair; hex >> pair;)
      bytes.push_back(static_cast<std::byte>(std::stoul(pair, nullptr, 16)));
  }
  return bytes;
}

constexpr const char* kExample = R"(
000  53 43 50 4C              magic, "SCPL"
004  02 00                    version
006  04 00                    ranks
008  05 00 00 00              parts
012  03 00 00 00              buffers
016  00 00 00 00              reversed: none
020  02 00 00 00              buffer 0: parts 0 and 1
024  01 00 00 00              path, split
028  00 00 00 00 00 00 F0 3F  part 0: first density, 1
036  00 00 00 00 00 00 F0 3F  second density, 1
044  01 01 00 00 00 00 00 00  values: bf16, bf16
052  00 00 00 00 00 00 D0 3F  part 1: first density, 0.25
060  00 00 00 00 00 00 F0 3F  second density, 1
068  01 04 00 00 00 00 00 00  values: bf16, q4
076  02 00 00 00              buffer 1: parts 2 and 3
080  00 00 00 00              path, all_reduce: no points
084  01 00 00 00              buffer 2: part 4
088  02 00 00 00              path, gather
092  00 00 00 00 00 00 E0 3F  part 4: first density, 0.5
100  00 00 00 00 00 00 F0 3F  second density, 1: there is no second leg
108  00 00 00 00 00 00 00 00  values: f32, f32
116  2F 30 B3 57              crc
)";

TEST(FusionPlan, ExampleOfTheDocument) {
  const PlanBytes bytes = serialise(example_plan(), example_layout());
  EXPECT_EQ(bytes, bytes_of_text(kExample));
  const auto parsed = parse_fusion_plan(bytes, example_layout());
  ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
  EXPECT_EQ(parsed.value(), example_plan());
  EXPECT_EQ(hash_of(bytes) >> 32, 120u);
  EXPECT_EQ(hash_of(bytes) & 0xFFFFFFFF, base::crc32c(Bytes(bytes).first(116)));
}

TEST(FusionPlan, IsParsedAsSerialised) {
  base::Rng rng = printed_rng(51);
  for (int round = 0; round < 300; ++round) {
    const Layout layout = random_layout(rng, 60);
    const FusionPlan plan = random_plan(rng, layout, round % 2 == 0);
    const auto valid = validate(plan, layout);
    ASSERT_TRUE(valid.ok()) << round << ": " << valid.error().to_string();
    const PlanBytes bytes = serialise(plan, layout);
    const auto parsed = parse_fusion_plan(bytes, layout);
    ASSERT_TRUE(parsed.ok()) << round << ": " << parsed.error().to_string();
    EXPECT_EQ(parsed.value(), plan) << round;
    EXPECT_EQ(serialise(parsed.value(), layout), bytes) << round;
  }
}

TEST(FusionPlan, OtherPlansHaveOtherHashes) {
  const Layout layout = example_layout();
  FusionPlan plan = example_plan();
  const uint64_t hash = hash_of(serialise(plan, layout));
  EXPECT_EQ(hash_of(serialise(plan, layout)), hash);
  plan.buffers[0].points[1].second.density = std::nextafter(1.0, 0.0);
  EXPECT_NE(hash_of(serialise(plan, layout)), hash);
}

// In memory of exactly the right size, so that a sanitizer sees a step past it.
Result<FusionPlan> parse_copy(Bytes bytes, const Layout& layout) {
  const PlanBytes copy(bytes.begin(), bytes.end());
  return parse_fusion_plan(copy, layout);
}

TEST(FusionPlan, EveryTruncationAndEveryFlippedBitIsRefused) {
  base::Rng rng = printed_rng(52);
  for (int round = 0; round < 5; ++round) {
    const Layout layout = random_layout(rng, 20);
    PlanBytes bytes = serialise(random_plan(rng, layout, round % 2 == 0), layout);
    for (size_t size = 0; size < bytes.size(); ++size)
      ASSERT_FALSE(parse_copy(Bytes(bytes).first(size), layout).ok()) << round << ": " << size;
    for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
      bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
      const auto parsed = parse_copy(bytes, layout);
      ASSERT_FALSE(parsed.ok()) << round << ": bit " << bit;
      EXPECT_FALSE(parsed.error().message.empty());
      bytes[bit / 8] ^= static_cast<std::byte>(1 << bit % 8);
    }
    ASSERT_TRUE(parse_copy(bytes, layout).ok()) << round;
    bytes.push_back(std::byte{0});
    ASSERT_FALSE(parse_copy(bytes, layout).ok()) << round;
    seal(bytes);
    ASSERT_FALSE(parse_copy(bytes, layout).ok()) << round;
  }
}

// With a checksum that fits, truncated or changed bytes are refused by the rules alone, or are
// another plan that obeys them and has these bytes.
TEST(FusionPlan, SealedDamageIsRefusedOrAPlan) {
  base::Rng rng = printed_rng(53);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    const Layout layout = random_layout(rng, 6);
    PlanBytes bytes = serialise(random_plan(rng, layout, round % 2 == 0), layout);
    if (rng.chance(0.3)) bytes.resize(20 + rng.below(bytes.size() - 19));
    for (uint64_t i = rng.below(3); i > 0; --i)
      bytes[6 + rng.below(bytes.size() - 6)] = static_cast<std::byte>(rng.next());
    seal(bytes);
    const auto parsed = parse_copy(bytes, layout);
    refused += parsed.ok() ? 0 : 1;
    if (parsed.ok()) {
      ASSERT_EQ(serialise(parsed.value(), layout), bytes) << round;
    }
  }
  EXPECT_GT(refused, 1000);
}

void expect_refused(PlanBytes bytes, const Layout& layout, ErrorCode code,
                    const std::string& what) {
  seal(bytes);
  const auto parsed = parse_copy(bytes, layout);
  ASSERT_FALSE(parsed.ok()) << what;
  EXPECT_EQ(parsed.error().code, code) << parsed.error().to_string();
  EXPECT_NE(parsed.error().message.find(what), std::string::npos) << parsed.error().message;
}

TEST(FusionPlan, ParsingNamesWhatIsWrong) {
  const Layout layout = example_layout();
  const PlanBytes good = serialise(example_plan(), layout);
  const auto changed = [&](size_t at, int value) {
    PlanBytes bytes = good;
    bytes[at] = static_cast<std::byte>(value);
    return bytes;
  };
  expect_refused(changed(0, 0), layout, ErrorCode::corrupt, "SCPL");
  expect_refused(changed(4, 1), layout, ErrorCode::unsupported, "version 1; this scant reads ver");
  expect_refused(changed(4, 9), layout, ErrorCode::unsupported,
                 "the plan is of version 9; this scant reads up to 3: upgrade scant");
  expect_refused(changed(6, 3), layout, ErrorCode::mismatch, "for 3 ranks and 5 parts");
  expect_refused(changed(8, 6), layout, ErrorCode::mismatch, "the layout has 4 and 5");
  expect_refused(changed(12, 2), layout, ErrorCode::corrupt, "32 bytes behind the last buffer");
  expect_refused(changed(12, 4), layout, ErrorCode::corrupt, "buffer 3: it ends");
  expect_refused(changed(16, 1), layout, ErrorCode::corrupt, "1 reversed buffers of 3");
  expect_refused(changed(16, 4), layout, ErrorCode::corrupt, "4 reversed buffers of 3");
  expect_refused(changed(20, 1), layout, ErrorCode::corrupt, "buffer 1");
  expect_refused(changed(24, 9), layout, ErrorCode::corrupt, "buffer 0: no such path: 9");
  expect_refused(changed(25, 1), layout, ErrorCode::corrupt, "buffer 0: reserved");
  expect_refused(changed(51, 1), layout, ErrorCode::corrupt, "buffer 0: part 0: reserved");
  expect_refused(changed(35, 0x40), layout, ErrorCode::corrupt, "buffer 0: part 0: first leg");
  expect_refused(changed(69, 8), layout, ErrorCode::corrupt, "part 1: second leg: no such kind");
  expect_refused(changed(76, 0), layout, ErrorCode::corrupt, "buffer 1: it has no parts");
  expect_refused(changed(76, 1), layout, ErrorCode::corrupt, "part 4 stands in no buffer");
  expect_refused(changed(76, 4), layout, ErrorCode::corrupt, "buffer 1: it has 4 parts");
  expect_refused(changed(109, 1), layout, ErrorCode::corrupt, "part 4: gather has no second leg");
  expect_refused(changed(46, 4), layout, ErrorCode::corrupt, "buffer 0: part 0: reserved");
  expect_refused(changed(47, 1), layout, ErrorCode::corrupt, "buffer 0: part 0: reserved");
  expect_refused(changed(110, 2), layout, ErrorCode::corrupt, "part 4: gather has no second leg");
  PlanBytes flipped = good;
  flipped.back() ^= std::byte{1};
  EXPECT_EQ(parse_copy(flipped, layout).error().message, "plan: its checksum does not fit");
  EXPECT_EQ(parse_copy({}, layout).error().message, "plan: 0 bytes are too few");
}

// Were counts believed, these would take gigabytes; under a sanitizer that ends the test.
TEST(FusionPlan, HostileCountsAreRefusedBeforeTheyCostMemory) {
  const Layout layout = example_layout();
  PlanBytes bytes = serialise(example_plan(), layout);
  base::store_little(bytes.data() + 12, uint32_t{0xFFFFFFFF});
  expect_refused(bytes, layout, ErrorCode::corrupt, "4294967295 buffers are more than");
  base::store_little(bytes.data() + 12, uint32_t{3});
  base::store_little(bytes.data() + 20, uint32_t{0xFFFFFFFF});
  expect_refused(bytes, layout, ErrorCode::corrupt, "more points than bytes");
  base::store_little(bytes.data() + 20, uint32_t{2});
  base::store_little(bytes.data() + 76, uint32_t{0xFFFFFFFF});
  expect_refused(bytes, layout, ErrorCode::corrupt, "buffer 1: it has 4294967295 parts");
  base::store_little(bytes.data() + 8, uint32_t{0xFFFFFFFF});
  expect_refused(bytes, layout, ErrorCode::mismatch, "4294967295 parts");
  const Layout many = layout_of(std::vector<codec::Shape>(100000, {1, 1}), 4);
  base::store_little(bytes.data() + 8, uint32_t{100000});
  base::store_little(bytes.data() + 12, uint32_t{100000});
  expect_refused(bytes, many, ErrorCode::corrupt, "100000 buffers are more than");
}

TEST(FusionPlan, ValidateNamesBufferAndPart) {
  const Layout layout = example_layout();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto refused = [&](const std::function<void(FusionPlan&)>& spoil, const std::string& what) {
    FusionPlan plan = example_plan();
    ASSERT_TRUE(validate(plan, layout).ok());
    spoil(plan);
    const auto valid = validate(plan, layout);
    ASSERT_FALSE(valid.ok()) << what;
    EXPECT_EQ(valid.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(valid.error().message.find(what), std::string::npos) << valid.error().message;
  };
  refused([](FusionPlan& plan) { plan.buffers.clear(); }, "part 0 stands in no buffer");
  refused([](FusionPlan& plan) { plan.buffers.pop_back(); }, "part 4 stands in no buffer");
  refused([](FusionPlan& plan) { plan.buffers[1].parts = 0; }, "buffer 1: it has no parts");
  refused([](FusionPlan& plan) { plan.buffers[1].first_part = 3; },
          "buffer 1: it begins with part 3 instead of part 2");
  refused([](FusionPlan& plan) { plan.buffers[1].parts = 1; },
          "buffer 2: it begins with part 4 instead of part 3");
  refused([](FusionPlan& plan) { plan.buffers[1].parts = 3; }, "buffer 2");
  refused([](FusionPlan& plan) { plan.buffers[2].parts = 2; }, "buffer 2: it has 2 parts");
  refused(
      [](FusionPlan& plan) {
        plan.buffers.push_back({5, 1, Path::all_reduce, {}});
      },
      "buffer 3: it has 1 parts from part 5 on, the layout has 5 in all");
  refused([](FusionPlan& plan) { plan.buffers[1].points.resize(2); },
          "buffer 1: all_reduce of 2 parts takes 0 points, got 2");
  refused([](FusionPlan& plan) { plan.buffers[0].points.pop_back(); },
          "buffer 0: split of 2 parts takes 2 points, got 1");
  for (const double density :
       {0.0, -0.0, -0.5, std::nextafter(1.0, 2.0), nan, std::numeric_limits<double>::infinity()}) {
    refused([&](FusionPlan& plan) { plan.buffers[0].points[1].first.density = density; },
            "buffer 0: part 1: first leg: density");
    refused([&](FusionPlan& plan) { plan.buffers[0].points[0].second.density = density; },
            "buffer 0: part 0: second leg: density");
  }
  refused([](FusionPlan& plan) { plan.buffers[0].path = static_cast<Path>(3); }, "no such path: 3");
  refused([](FusionPlan& plan) { plan.buffers[0].points[0].first.values = ValueKind{8}; },
          "part 0: first leg: no such kind of value: 8");
  refused([](FusionPlan& plan) { plan.buffers[2].points[0].second.density = 0.5; },
          "buffer 2: part 4: gather has no second leg");
  refused([](FusionPlan& plan) { plan.buffers[2].points[0].second.values = ValueKind::bf16; },
          "buffer 2: part 4: gather has no second leg");
  const auto spoiled = [&](const std::function<void(PartPlan&)>& spoil, const std::string& what) {
    refused(
        [&](FusionPlan& plan) {
          plan = plan_with_factors();
          spoil(plan.buffers[0].points[1]);
        },
        "buffer 0: part 1: " + what);
  };
  spoiled([](PartPlan& part) { part.first.rank = 257; }, "first leg: rank 257, the part has at");
  spoiled([](PartPlan& part) { part.second.rank = 7; }, "legs of different ranks");
  spoiled([](PartPlan& part) { part.second.rank = 0; }, "second leg: factors without a rank");
  spoiled([](PartPlan& part) { part.first.density = 0; }, "first leg: no rest, but a kind of it");
  spoiled([](PartPlan& part) { part.first = {.density = 0, .rank = 8}; },
          "legs of different ranks, or a rest in one of them alone");
  spoiled([](PartPlan& part) { part.first = {.density = -0.0, .rank = 8}; }, "first leg: density");
  refused([](FusionPlan& plan) { plan.buffers[2].points[0].first.rank = 1; },
          "part 4: first leg: rank 1, the part has at most 0");
}

TEST(FusionPlan, FactorsStandBesideTheValues) {
  const Layout layout = example_layout();
  const PlanBytes plain = serialise(example_plan(), layout);
  const FusionPlan plan = plan_with_factors();
  PlanBytes bytes = serialise(plan, layout);
  EXPECT_EQ(parse_copy(bytes, layout).value(), plan);
  // Part 1 begins at byte 52: by row and whose legs have factors; their kinds, q8 and q4; the rank.
  EXPECT_EQ(bytes[4], std::byte{3});
  EXPECT_EQ(bytes[70], std::byte{4});
  EXPECT_EQ(bytes[71], std::byte{0x43});
  EXPECT_EQ(bytes[72], std::byte{8});
  EXPECT_EQ(bytes[73], std::byte{0});
  EXPECT_EQ(plain[4], std::byte{2});

  const auto changed = [&](size_t at, int value) {
    PlanBytes copy = bytes;
    copy[at] = static_cast<std::byte>(value);
    return copy;
  };
  expect_refused(changed(73, 2), layout, ErrorCode::corrupt, "rank 520, the part has at most 256");
  expect_refused(changed(70, 0), layout, ErrorCode::corrupt, "factors without a rank");
  expect_refused(changed(71, 0x48), layout, ErrorCode::corrupt, "no such kind of factors: 8");
  expect_refused(changed(74, 1), layout, ErrorCode::corrupt, "part 1: reserved bytes");
  expect_refused(changed(72, 0), layout, ErrorCode::corrupt, "part 1: reserved bytes");
  PlanBytes without = plain;
  without[4] = std::byte{3};
  for (const size_t at : {47u, 71u, 111u}) without[at] = std::byte{0x33};
  expect_refused(without, layout, ErrorCode::corrupt, "of version 3, and no factors");
}

TEST(FusionPlan, SmallestDensityIsOne) {
  const Layout layout = example_layout();
  FusionPlan plan = example_plan();
  plan.buffers[0].points[0].first.density = std::numeric_limits<double>::denorm_min();
  const auto parsed = parse_copy(serialise(plan, layout), layout);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed.value(), plan);
}

TEST(FusionPlan, PathsHaveNames) {
  EXPECT_STREQ(name(Path::all_reduce), "all_reduce");
  EXPECT_STREQ(name(Path::split), "split");
  EXPECT_STREQ(name(Path::gather), "gather");
  EXPECT_STREQ(name(static_cast<Path>(3)), "unknown");
  EXPECT_EQ(path_of("gather"), Path::gather);
  EXPECT_EQ(path_of("unknown"), std::nullopt);
}

}  // namespace
}  // namespace scant::gradient
