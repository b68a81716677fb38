// Sums of records: in rank order, bit for bit, whole and in slices, whatever the number of workers;
// and what is refused before anything is added.
#include <array>
#include <gtest/gtest.h>

#include "codec/encoder_testing.h"

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

// More ranks than a worker holds back at a time, and not a multiple of them.
TEST(Accumulate, AddsManyRanks) {
  Workspace workspace;
  const Shape shape{1, 9001};
  for (const size_t ranks : {size_t{9}, size_t{16}, size_t{19}}) {
    const Records records =
        make_records(shape, std::vector<Point>(ranks, {1.0, ValueKind::q4}), workspace);
    std::vector<float> sum(shape.elements());
    ASSERT_TRUE(accumulate(records.views, 7, shape, 0, sum, 1.0f, workspace).ok());
    ASSERT_EQ(sum, expected_sum(records, sum.size(), 1.0f)) << ranks;
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
