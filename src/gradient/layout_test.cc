// Layouts: slices tile parts, parts tile tensors, tensors lie in the arena without overlap; owners
// are those of the document and own about equally much; what cannot be laid out is refused by name.
#include "gradient/layout.h"

#include <algorithm>
#include <cstdio>
#include <gtest/gtest.h>
#include <string>

#include "base/rng.h"

namespace scant::gradient {
namespace {

using codec::Range;
using codec::Shape;

Layout laid_out(std::span<const Shape> tensors, int ranks) {
  auto layout = Layout::create(tensors, ranks);
  EXPECT_TRUE(layout.ok()) << layout.error().to_string();
  return std::move(layout).value();
}

// Magnitudes from one element to several parts, as likely each.
std::vector<Shape> random_shapes(base::Rng& rng) {
  std::vector<Shape> shapes(1 + rng.below(60));
  for (Shape& shape : shapes) {
    const uint64_t elements = 1 + rng.below(uint64_t{1} << (1 + rng.below(24)));
    const uint64_t rows = rng.chance(0.5) ? 1 : 1 + rng.below(elements);
    shape = {rows, elements / rows};
  }
  return shapes;
}

void expect_tiles(const Layout& layout, const PartLayout& part, uint32_t number) {
  uint64_t next = part.range.first;
  uint64_t least = UINT64_MAX;
  uint64_t most = 0;
  const auto slices = layout.slices_of(part);
  for (const SliceLayout& slice : slices) {
    EXPECT_EQ(slice.part, number);
    EXPECT_EQ(slice.range.first, next);
    EXPECT_EQ(slice.range.first % codec::kGroupElements, 0u);
    EXPECT_GT(slice.range.elements, 0u);
    next += slice.range.elements;
    least = std::min(least, slice.range.elements);
    most = std::max(most, slice.range.elements);
  }
  EXPECT_EQ(next, part.range.first + part.range.elements);
  EXPECT_LE(most - least, codec::kGroupElements);
  if (slices.size() > 1) {
    EXPECT_GE(least, kSliceElementsMin);
  }
}

// The owner rule of the document, told again without a heap.
void expect_owners(const Layout& layout) {
  const auto ranks = static_cast<uint64_t>(layout.ranks());
  std::vector<uint64_t> owned(ranks);
  for (uint32_t p = 0; p < layout.parts().size(); ++p) {
    const PartLayout& part = layout.parts()[p];
    const auto slices = layout.slices_of(part);
    const bool is_cut = part.range.elements >= ranks * kSliceElementsMin;
    ASSERT_EQ(slices.size(), is_cut ? ranks : 1) << "part " << p;
    for (uint64_t s = 0; s < slices.size(); ++s) {
      const auto least = std::min_element(owned.begin(), owned.end()) - owned.begin();
      const uint64_t owner = is_cut ? (s + p) % ranks : static_cast<uint64_t>(least);
      ASSERT_EQ(slices[s].owner, static_cast<Rank>(owner)) << "part " << p << ", slice " << s;
    }
    for (const SliceLayout& slice : slices)
      owned[static_cast<size_t>(slice.owner)] += slice.range.elements;
  }
}

// Parts that are cut add at most 64 elements to the difference between two owners, a part that is
// not goes to the one with the least.
void expect_balance(const Layout& layout) {
  std::vector<uint64_t> owned(static_cast<size_t>(layout.ranks()));
  uint64_t largest_whole = 0;
  uint64_t parts_cut = 0;
  for (const SliceLayout& slice : layout.slices())
    owned[static_cast<size_t>(slice.owner)] += slice.range.elements;
  for (const PartLayout& part : layout.parts()) {
    const bool whole =
        part.range.elements < static_cast<uint64_t>(layout.ranks()) * kSliceElementsMin;
    if (whole) largest_whole = std::max(largest_whole, part.range.elements);
    if (!whole) ++parts_cut;
  }
  const auto [least, most] = std::minmax_element(owned.begin(), owned.end());
  EXPECT_LE(*most - *least, largest_whole + codec::kGroupElements * parts_cut);
}

void expect_rules(const Layout& layout, std::span<const Shape> shapes) {
  ASSERT_EQ(layout.tensors().size(), shapes.size());
  uint64_t arena = 0;
  uint64_t elements = 0;
  uint32_t part_next = 0;
  uint32_t slice_next = 0;
  for (size_t t = 0; t < shapes.size(); ++t) {
    const TensorLayout& tensor = layout.tensors()[t];
    EXPECT_EQ(tensor.shape, shapes[t]);
    EXPECT_EQ(tensor.offset, (arena + 15) / 16 * 16);
    EXPECT_EQ(tensor.first_part, part_next);
    uint64_t next = 0;
    for (uint32_t i = 0; i < tensor.parts; ++i, ++part_next) {
      const PartLayout& part = layout.parts()[part_next];
      EXPECT_EQ(part.tensor, t);
      EXPECT_EQ(part.range.first, next);
      EXPECT_EQ(part.first_slice, slice_next);
      EXPECT_EQ(layout.arena_offset(part.tensor, part.range), tensor.offset + next);
      if (i + 1 < tensor.parts) {
        EXPECT_EQ(part.range.elements, uint64_t{4194304});
      }
      EXPECT_LE(part.range.elements, uint64_t{4194304});
      next += part.range.elements;
      slice_next += part.slices;
      expect_tiles(layout, part, part_next);
    }
    EXPECT_EQ(next, shapes[t].elements());
    elements += next;
    arena = tensor.offset + next;
  }
  EXPECT_EQ(layout.parts().size(), part_next);
  EXPECT_EQ(layout.slices().size(), slice_next);
  EXPECT_EQ(layout.elements(), elements);
  EXPECT_EQ(layout.arena_elements(), arena);
  expect_owners(layout);
  expect_balance(layout);
}

void expect_same(const Layout& a, const Layout& b) {
  ASSERT_EQ(a.parts().size(), b.parts().size());
  ASSERT_EQ(a.slices().size(), b.slices().size());
  for (size_t i = 0; i < a.slices().size(); ++i) {
    EXPECT_EQ(a.slices()[i].part, b.slices()[i].part);
    EXPECT_EQ(a.slices()[i].owner, b.slices()[i].owner);
    EXPECT_EQ(a.slices()[i].range, b.slices()[i].range);
  }
}

TEST(Layout, ObeysTheRulesOfTheDocument) {
  constexpr uint64_t kSeed = 41;
  std::printf("seed %llu\n", static_cast<unsigned long long>(kSeed));
  base::Rng rng(kSeed);
  for (int round = 0; round < 200; ++round) {
    const auto shapes = random_shapes(rng);
    const auto ranks = static_cast<int>(1 + rng.below(rng.chance(0.1) ? 300 : 9));
    SCOPED_TRACE("round " + std::to_string(round) + ", ranks " + std::to_string(ranks));
    const Layout layout = laid_out(shapes, ranks);
    EXPECT_EQ(layout.ranks(), ranks);
    expect_rules(layout, shapes);
    expect_same(layout, laid_out(shapes, ranks));
    if (HasFailure()) return;
  }
}

TEST(Layout, SizesAroundEachLimit) {
  for (const int ranks : {1, 2, 3, 7, 8, 9, 1024, 1025}) {
    std::vector<Shape> shapes;
    const uint64_t limit = static_cast<uint64_t>(ranks) * kSliceElementsMin;
    for (const uint64_t middle : {uint64_t{64}, limit, limit + 64, kPartElementsMax})
      for (const uint64_t elements : {middle - 1, middle, middle + 1})
        shapes.push_back({1, elements});
    SCOPED_TRACE("ranks " + std::to_string(ranks));
    expect_rules(laid_out(shapes, ranks), shapes);
  }
}

TEST(Layout, OneRankOwnsEverything) {
  const std::vector<Shape> shapes = {{1, 1}, {300, 1000}, {1, 5000000}};
  const Layout layout = laid_out(shapes, 1);
  EXPECT_EQ(layout.parts().size(), 4u);
  EXPECT_EQ(layout.slices().size(), 4u);
  for (const SliceLayout& slice : layout.slices()) EXPECT_EQ(slice.owner, 0);
}

TEST(Layout, OneElementEachAndMoreRanksThanElements) {
  const std::vector<Shape> shapes(5, Shape{1, 1});
  const Layout layout = laid_out(shapes, 65535);
  EXPECT_EQ(layout.elements(), 5u);
  EXPECT_EQ(layout.arena_elements(), 65u);
  ASSERT_EQ(layout.slices().size(), 5u);
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(layout.slices()[i].owner, static_cast<Rank>(i));
    EXPECT_EQ(layout.slices()[i].range, (Range{0, 1}));
  }
}

// By hand: part 1 is cut at multiples of 64 (129 units of 64: 64 and 65), and shifted by one owner.
TEST(Layout, SmallExample) {
  const std::vector<Shape> shapes = {{10, 10}, {1, 8210}, {1, 20}};
  const Layout layout = laid_out(shapes, 2);
  ASSERT_EQ(layout.slices().size(), 4u);
  EXPECT_EQ(layout.tensors()[1].offset, 112u);
  EXPECT_EQ(layout.tensors()[2].offset, 8336u);
  EXPECT_EQ(layout.arena_elements(), 8356u);
  EXPECT_EQ(layout.slices()[0].owner, 0);
  EXPECT_EQ(layout.slices()[1].owner, 1);
  EXPECT_EQ(layout.slices()[1].range, (Range{0, 4096}));
  EXPECT_EQ(layout.slices()[2].owner, 0);
  EXPECT_EQ(layout.slices()[2].range, (Range{4096, 4114}));
  EXPECT_EQ(layout.slices()[3].owner, 1) << "4096 elements so far, rank 0 has 4214";
}

// Two terabytes of gradients, were there any.
TEST(Layout, TakesNoMemoryForElements) {
  const std::vector<Shape> shapes = {{uint64_t{1} << 20, uint64_t{1} << 19}};
  const Layout layout = laid_out(shapes, 3);
  EXPECT_EQ(layout.tensors()[0].parts, uint32_t{1} << 17);
  EXPECT_EQ(layout.slices().size(), size_t{3} << 17);
  EXPECT_EQ(layout.arena_elements(), uint64_t{1} << 39);
  expect_balance(layout);
}

TEST(Layout, ManySmallTensorsOnManyRanks) {
  const std::vector<Shape> shapes(200000, Shape{1, 3});
  const Layout layout = laid_out(shapes, 65535);
  EXPECT_EQ(layout.slices().size(), 200000u);
  EXPECT_EQ(layout.slices()[65534].owner, 65534);
  EXPECT_EQ(layout.slices()[65535].owner, 0);
  expect_balance(layout);
}

void expect_refused(std::span<const Shape> shapes, int ranks, const std::string& what) {
  const auto layout = Layout::create(shapes, ranks);
  ASSERT_FALSE(layout.ok()) << what;
  EXPECT_EQ(layout.error().code, ErrorCode::invalid_argument);
  EXPECT_NE(layout.error().message.find(what), std::string::npos) << layout.error().message;
}

TEST(Layout, RefusesByName) {
  const std::vector<Shape> one = {{1, 1}};
  expect_refused(one, 0, "ranks must be 1 to 65535, got 0");
  expect_refused(one, -3, "got -3");
  expect_refused(one, 65536, "got 65536");
  expect_refused({}, 2, "there is no tensor");
  expect_refused(std::vector<Shape>{{1, 1}, {0, 5}}, 2, "tensor 1 (0 x 5) is empty");
  expect_refused(std::vector<Shape>{{5, 0}}, 2, "tensor 0 (5 x 0) is empty");
  constexpr uint64_t kMost = kArenaElementsMax;
  expect_refused(std::vector<Shape>{{1, kMost + 1}}, 2,
                 "tensor 0 (1 x 1099511627777) is too large");
  expect_refused(std::vector<Shape>{{UINT64_MAX, 2}}, 2, "is too large");
  expect_refused(std::vector<Shape>{{uint64_t{1} << 33, (uint64_t{1} << 31) + 1}}, 2, "too large");
  expect_refused(std::vector<Shape>{{1, 1}, {1, 2}, {kMost / 2, 2}}, 2, "tensor 2 ");
  expect_refused(std::vector<Shape>{{1, kMost}, {1, 1}}, 65535, "tensor 1 (1 x 1) is too large");
  expect_refused(std::vector<Shape>(kTensorsMax + 1, Shape{1, 1}), 2, "1048577 tensors");
}

}  // namespace
}  // namespace scant::gradient
