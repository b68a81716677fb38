// Sums of records: in rank order, bit for bit, whole and in slices, whatever the number of workers;
// and what is refused before anything is added.
#include <array>
#include <bit>
#include <cmath>
#include <gtest/gtest.h>

#include "codec/kernels/kernels.h"
#include "codec/testing/encoders.h"
#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::gaussians;
using testing::kAllKinds;
using testing::make;
using testing::step;

constexpr uint64_t kSeed = 20261121;

struct Records {
  std::vector<std::vector<std::byte>> bytes;
  std::vector<RecordView> views;
  std::vector<std::vector<float>> decoded;
};

// One record a rank; ranks may use different points.
Records make_records(Shape shape, std::span<const Point> points, Workspace& workspace) {
  Records records;
  for (size_t rank = 0; rank < points.size(); ++rank) {
    Encoder encoder = make(shape);
    auto stepped = step(encoder, gaussians(shape.elements(), kSeed, rank), points[rank], workspace);
    records.bytes.push_back(std::move(stepped.bytes));
    records.decoded.push_back(std::move(stepped.decoded));
  }
  for (const auto& bytes : records.bytes)
    records.views.push_back(std::move(RecordView::parse(bytes)).value());
  return records;
}

std::vector<float> expected_sum(const Records& records, size_t n, float weight) {
  std::vector<float> sum(n);
  for (const auto& decoded : records.decoded)
    for (size_t i = 0; i < n; ++i) sum[i] += decoded[i];
  for (float& value : sum) value *= weight;
  return sum;
}

TEST(Accumulate, AddsInRankOrderBitForBit) {
  for (const size_t workers : {size_t{1}, size_t{3}}) {
    Workspace workspace;
    ASSERT_TRUE(workspace.start(workers).ok());
    for (const uint64_t columns : {uint64_t{1}, uint64_t{4096}, uint64_t{50021}}) {
      const Shape shape{3, columns};
      std::vector<std::vector<Point>> worlds;
      for (const ValueKind kind : kAllKinds)
        for (const double density : {1.0, 0.02})
          worlds.push_back(std::vector<Point>(static_cast<size_t>(kind) + 1, {density, kind}));
      worlds.push_back({{1.0, ValueKind::q4}, {0.1, ValueKind::f32}, {1.0, ValueKind::bf16}});
      worlds.push_back({{1.0, ValueKind::q4}, {1.0, ValueKind::bf16}, {1.0, ValueKind::q4}});
      worlds.push_back({{1.0, ValueKind::q4}, {1.0, ValueKind::q2}, {1.0, ValueKind::q4}});
      for (const auto& points : worlds) {
        const Records records = make_records(shape, points, workspace);
        const float weight = 1.0f / static_cast<float>(points.size());
        std::vector<float> sum(shape.elements(), 123.0f);
        ASSERT_TRUE(accumulate(records.views, 7, shape, 0, sum, weight, workspace).ok());
        ASSERT_EQ(sum, expected_sum(records, sum.size(), weight));
      }
    }
  }
}

TEST(Accumulate, ASliceHasTheBitsOfTheWhole) {
  Workspace workspace;
  const Shape shape{5, 30011};
  const Point sparse{0.05, ValueKind::q3};
  const Point dense{1.0, ValueKind::q2};
  for (const auto& points : {std::vector<Point>{sparse, sparse}, std::vector<Point>{dense, dense},
                             std::vector<Point>{sparse, dense}}) {
    const Records records = make_records(shape, points, workspace);
    const auto whole = expected_sum(records, shape.elements(), 0.5f);
    base::Rng rng(kSeed);
    for (int round = 0; round < 40; ++round) {
      const uint64_t first = rng.below(shape.elements());
      const uint64_t count = rng.below(shape.elements() - first + 1);
      std::vector<float> part(count);
      ASSERT_TRUE(accumulate(records.views, 7, shape, first, part, 0.5f, workspace).ok());
      const auto begin = whole.begin() + static_cast<ptrdiff_t>(first);
      ASSERT_TRUE(std::equal(part.begin(), part.end(), begin)) << first << " + " << count;
    }
  }
}

// More ranks than a worker holds back at a time, and not a multiple of them; of the dense lists,
// more entries.
TEST(Accumulate, AddsManyRanks) {
  Workspace workspace;
  const Shape shape{1, 70001};
  for (const Point point : {Point{1.0, ValueKind::q4}, Point{0.02, ValueKind::q2},
                            Point{0.02, ValueKind::bf16}, Point{0.7, ValueKind::f32}}) {
    for (const size_t ranks : {size_t{9}, size_t{16}, size_t{19}}) {
      const Records records = make_records(shape, std::vector<Point>(ranks, point), workspace);
      std::vector<float> sum(shape.elements());
      ASSERT_TRUE(accumulate(records.views, 7, shape, 0, sum, 1.0f, workspace).ok());
      ASSERT_EQ(sum, expected_sum(records, sum.size(), 1.0f)) << name(point.values) << " " << ranks;
    }
  }
}

// Ranks may have cut a tensor differently: blocks of one record then begin within those of another.
TEST(Accumulate, AddsRecordsOfDifferentRanges) {
  Workspace workspace;
  const Shape shape{2, 100000};
  const uint64_t first = 70016;
  const uint64_t count = 60001;
  for (const auto& points :
       {std::vector<Point>(3, {1.0, ValueKind::q4}), std::vector<Point>(3, {0.05, ValueKind::bf16}),
        std::vector<Point>{{1.0, ValueKind::q2}, {0.05, ValueKind::q3}, {1.0, ValueKind::f16}}}) {
    for (const auto& bounds :
         {std::array<uint64_t, 3>{70016, 640, 69952}, std::array<uint64_t, 3>{0, 65536, 70016}}) {
      std::vector<float> expected(count);
      std::vector<std::vector<std::byte>> bytes;
      for (size_t rank = 0; rank < 3; ++rank) {
        const Range range{bounds[rank], 140000 - bounds[rank]};
        Encoder encoder = std::move(Encoder::create(7, shape, {}, range)).value();
        const auto stepped =
            step(encoder, gaussians(range.elements, kSeed, rank), points[rank], workspace);
        for (size_t i = 0; i < count; ++i) expected[i] += stepped.decoded[first - range.first + i];
        bytes.push_back(stepped.bytes);
      }
      std::vector<RecordView> views;
      for (const auto& one : bytes) views.push_back(std::move(RecordView::parse(one)).value());
      std::vector<float> sum(count);
      ASSERT_TRUE(accumulate(views, 7, shape, first, sum, 1.0f, workspace).ok());
      ASSERT_EQ(sum, expected) << bounds[0] << ", " << bounds[1];
    }
  }
}

// NaN, infinities and zeros of both signs among numbers; how many are not finite.
uint32_t strange_numbers(base::Rng& rng, const BlockHeader& header, std::vector<std::byte>& bytes) {
  constexpr std::array<float, 5> kStrange = {-0.0f, 0.0f, HUGE_VALF, -HUGE_VALF, NAN};
  const size_t size = bits(header.values) / 8;
  uint32_t nonfinite = 0;
  for (uint32_t i = 0; i < header.entries; ++i) {
    if (!rng.chance(0.05)) continue;
    const float value = kStrange[rng.below(kStrange.size())];
    std::byte* const to = bytes.data() + bytes.size() - size * (i + 1);
    if (header.values == ValueKind::f32) {
      base::store_little(to, std::bit_cast<uint32_t>(value));
    } else {
      base::store_little(
          to, header.values == ValueKind::f16 ? f16_nearest(value) : bf16_nearest(value));
    }
    nonfinite += std::isfinite(value) ? 0 : 1;
  }
  return nonfinite;
}

// What a valid record may be, whoever wrote it: blocks of any size, each of any kind.
std::vector<std::byte> any_record(base::Rng& rng, Shape shape, Range range, uint32_t block_elements,
                                  bool strange) {
  RecordHeader header{.tensor = 7,
                      .block_elements = block_elements,
                      .shape = shape,
                      .first = range.first,
                      .elements = range.elements};
  const bool one_kind = rng.chance(0.7);
  const double dense = one_kind ? static_cast<double>(rng.below(2)) : 0.5;
  const auto kind_of_all = static_cast<ValueKind>(rng.below(kValueKindCount));
  const double density = rng.chance(0.3) ? 0.9 : rng.uniform() * rng.uniform();
  std::vector<testing::TestBlock> blocks;
  for (uint64_t at = 0; at < range.elements; at += block_elements) {
    const auto covered =
        static_cast<uint32_t>(std::min<uint64_t>(block_elements, range.elements - at));
    const auto kind = one_kind ? kind_of_all : static_cast<ValueKind>(rng.below(kValueKindCount));
    blocks.push_back(rng.chance(dense)
                         ? testing::dense_block(rng, kind, covered)
                         : testing::sparse_block(rng, kind, covered,
                                                 testing::random_positions(rng, covered, density)));
    if (strange && !quantised(kind))
      header.nonfinite += strange_numbers(rng, blocks.back().header, blocks.back().payload);
  }
  return testing::build(header, blocks);
}

// Element by element, as docs/record.md reads; what is absent as zeros.
void add_plainly(const RecordView& record, std::span<const Range> absent, uint64_t first,
                 std::vector<float>& sum) {
  const RecordHeader& header = record.header();
  for (size_t b = 0; b < record.block_count(); ++b) {
    const BlockView block = record.block(b);
    const uint32_t n = block.header.entries;
    std::vector<uint16_t> positions(n);
    for (uint32_t i = 0; i < n; ++i) positions[i] = static_cast<uint16_t>(i);
    if (block.header.positions != 0) {
      ASSERT_TRUE(read_positions(block.positions, block.header.positions, block.elements, n,
                                 positions.data()));
    }
    std::vector<float> values(n + 31);
    if (quantised(block.header.values)) {
      kScalarKernels.decode(block.header.values,
                            {.base = block.header.scale_base,
                             .scales = reinterpret_cast<const uint8_t*>(block.scales.data()),
                             .codes = block.values.data()},
                            n, values.data());
    } else {
      kScalarKernels.add_values(block.header.values, block.values.data(), n, values.data());
    }
    for (uint32_t i = 0; i < n; ++i) {
      const uint64_t element = header.first + uint64_t{b} * header.block_elements + positions[i];
      if (element >= first && element < first + sum.size())
        sum[element - first] += testing::lies_in(absent, element) ? 0.0f : values[i];
    }
  }
}

TEST(Accumulate, AddsWhateverRecordsAreValid) {
  base::Rng rng = testing::printed_rng(kSeed);
  Workspace workspace;
  ASSERT_TRUE(workspace.start(2).ok());
  for (int round = 0; round < 60; ++round) {
    const Shape shape{1, round % 4 == 0 ? uint64_t{140000} : 1 + rng.below(20000)};
    constexpr std::array<uint32_t, 4> kBlocks = {4096, 65536, 8192, 100};
    const auto any_size = [&] {
      return rng.chance(0.7) ? kBlocks[rng.below(4)] : static_cast<uint32_t>(1 + rng.below(65536));
    };
    const uint32_t common_size = any_size();
    std::vector<std::vector<std::byte>> bytes;
    std::vector<RecordView> views;
    std::vector<std::vector<Range>> lost;
    const bool lossy = rng.chance(0.5);
    uint64_t first = 0;
    uint64_t end = shape.elements();
    const uint64_t ranks = 1 + rng.below(20);
    for (uint64_t rank = 0; rank < ranks; ++rank) {
      Range range{0, shape.elements()};
      if (rng.chance(0.1)) {
        range.first = rng.below(1 + shape.elements() / 4);
        range.elements = shape.elements() - range.first - rng.below(1 + shape.elements() / 4);
      }
      bytes.push_back(any_record(rng, shape, range, rng.chance(0.8) ? common_size : any_size(),
                                 rng.chance(0.3)));
      lost.push_back(rng.chance(0.6) ? testing::random_ranges(rng, range) : std::vector<Range>{});
      first = std::max(first, range.first);
      end = std::min(end, range.first + range.elements);
    }
    for (const auto& one : bytes) {
      auto parsed = RecordView::parse(one);
      ASSERT_TRUE(parsed.ok()) << parsed.error().to_string();
      views.push_back(std::move(parsed).value());
    }
    if (rng.chance(0.5)) {
      first += rng.below(end - first);
      end -= rng.below(end - first);
    }
    std::vector<std::span<const Range>> absent(views.size());
    if (lossy) std::copy(lost.begin(), lost.end(), absent.begin());
    std::vector<float> expected(end - first);
    for (size_t i = 0; i < views.size(); ++i) add_plainly(views[i], absent[i], first, expected);
    if (!lossy) absent.clear();
    const size_t before = rng.below(40);  // any place within a cache line
    std::vector<float> around(before + (end - first) + 20, 123.0f);
    const std::span<float> sum(around.data() + before, end - first);
    ASSERT_TRUE(accumulate(views, 7, shape, first, sum, -0.3f, workspace, absent).ok());
    const auto untouched = [](float value) { return value == 123.0f; };
    const auto behind = around.begin() + static_cast<ptrdiff_t>(before + sum.size());
    ASSERT_TRUE(
        std::all_of(around.begin(), around.begin() + static_cast<ptrdiff_t>(before), untouched))
        << round;
    ASSERT_TRUE(std::all_of(behind, around.end(), untouched)) << round;
    for (size_t i = 0; i < sum.size(); ++i) {
      const float value = -0.3f * expected[i];
      ASSERT_TRUE(std::isnan(value)
                      ? std::isnan(sum[i])
                      : std::bit_cast<uint32_t>(sum[i]) == std::bit_cast<uint32_t>(value))
          << "round " << round << ", element " << i << ": " << sum[i] << " for " << value;
    }
  }
}

TEST(Accumulate, AddsRecordsOfASliceToItsOwnPlace) {
  Workspace workspace;
  const Shape shape{4, 5000};
  const Range range{6400, 9000};
  Encoder encoder = std::move(Encoder::create(9, shape, {}, range)).value();
  const auto stepped = step(encoder, gaussians(9000, kSeed, 1), {0.1, ValueKind::q4}, workspace);
  const auto view = std::move(RecordView::parse(stepped.bytes)).value();
  std::vector<float> part(1000);
  ASSERT_TRUE(accumulate({&view, 1}, 9, shape, 7000, part, 1.0f, workspace).ok());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), stepped.decoded.begin() + 600));
}

TEST(Accumulate, RefusesWhatDoesNotFitAndLeavesTheSumAlone) {
  Workspace workspace;
  const Shape shape{2, 640};
  Encoder encoder = std::move(Encoder::create(9, shape, {}, Range{640, 640})).value();
  const auto stepped = step(encoder, gaussians(640, kSeed, 1), {1.0, ValueKind::q4}, workspace);
  const auto view = std::move(RecordView::parse(stepped.bytes)).value();
  std::vector<float> out(640, 5.0f);
  const auto refused = [&](uint32_t tensor, Shape of, uint64_t first) {
    const auto result = accumulate({&view, 1}, tensor, of, first, out, 1.0f, workspace);
    return !result.ok() && result.error().code == ErrorCode::mismatch;
  };
  EXPECT_TRUE(refused(8, shape, 640));
  EXPECT_TRUE(refused(9, {640, 2}, 640));
  EXPECT_TRUE(refused(9, shape, 0));
  EXPECT_TRUE(refused(9, shape, 641));
  EXPECT_TRUE(refused(9, shape, UINT64_MAX - 100));
  for (const auto& ranges : {std::vector<Range>{{600, 50}}, std::vector<Range>{{1279, 2}},
                             std::vector<Range>{{640, 2}, {641, 2}}}) {
    const std::span<const Range> absent = ranges;
    const auto result = accumulate({&view, 1}, 9, shape, 640, out, 1.0f, workspace, {&absent, 1});
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().code, ErrorCode::invalid_argument);
    EXPECT_NE(result.error().message.find("record 0: absent range"), std::string::npos);
  }
  EXPECT_EQ(out, std::vector<float>(640, 5.0f));
  EXPECT_TRUE(accumulate({}, 9, shape, 0, out, 1.0f, workspace).ok());  // nobody sent: zero
  EXPECT_EQ(out, std::vector<float>(640, 0.0f));
}

TEST(Accumulate, AgreesOnEveryRankAboutInfinityAndNan) {
  Workspace workspace;
  const Shape shape{1, 100};
  std::vector<std::vector<std::byte>> bytes;
  std::vector<RecordView> views;
  for (const float value :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 1.0f}) {
    Encoder encoder = make(shape);
    bytes.push_back(
        step(encoder, std::vector<float>(100, value), {1.0, ValueKind::q1}, workspace).bytes);
  }
  for (const auto& one : bytes) views.push_back(std::move(RecordView::parse(one)).value());
  std::vector<float> sum(100);
  ASSERT_TRUE(accumulate(views, 7, shape, 0, sum, 1.0f, workspace).ok());
  EXPECT_TRUE(std::isnan(sum[0]));
  ASSERT_TRUE(accumulate({&views[0], 1}, 7, shape, 0, sum, 1.0f, workspace).ok());
  EXPECT_EQ(sum[0], std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace scant::codec
