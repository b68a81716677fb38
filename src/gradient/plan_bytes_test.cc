// What uniform plans hold, and what plans send: the document's formulas for dense points, real
// records for the others.
#include <cstdio>
#include <gtest/gtest.h>

#include "codec/record/record.h"
#include "codec/testing/encoders.h"
#include "gradient/testing/fusion_plans.h"

namespace scant::gradient {
namespace {

using codec::Point;
using codec::ValueKind;
using testing::layout_of;
using testing::random_layout;

TEST(UniformPlan, ClosesBuffersOnceTheyHoldEnough) {
  const std::vector<codec::Shape> shapes(10, codec::Shape{1, 1000});
  const Layout layout = layout_of(shapes, 2);
  const FusionPlan plan = uniform_plan({.buffer_bytes = 8001, .first_buffer_bytes = 8000}, layout);
  ASSERT_TRUE(validate(plan, layout).ok());
  ASSERT_EQ(plan.buffers.size(), 4u);
  for (const size_t b : {size_t{0}, size_t{1}, size_t{2}, size_t{3}}) {
    EXPECT_EQ(plan.buffers[b].parts, b == 0 || b == 3 ? 2u : 3u) << b;
    EXPECT_EQ(plan.buffers[b].path, Path::all_reduce);
    EXPECT_TRUE(plan.buffers[b].points.empty());
  }
}

TEST(UniformPlan, SmallPartsStayDense) {
  const Layout layout = layout_of({{1, 2048}, {1, 2049}, {1, 1}}, 2);
  struct Case {
    Point wanted;
    Point small;
  };
  for (const Case& c : {Case{{0.01, ValueKind::q2}, {1.0, ValueKind::bf16}},
                        Case{{1.0, ValueKind::q8}, {1.0, ValueKind::bf16}},
                        Case{{0.1, ValueKind::f16}, {1.0, ValueKind::f16}},
                        Case{{0.1, ValueKind::f32}, {1.0, ValueKind::f32}}}) {
    for (const Path path : {Path::split, Path::gather}) {
      const FusionPlan plan = uniform_plan({.path = path, .point = c.wanted}, layout);
      ASSERT_TRUE(validate(plan, layout).ok());
      ASSERT_EQ(plan.buffers.size(), 1u);
      const auto& points = plan.buffers[0].points;
      ASSERT_EQ(points.size(), 3u);
      EXPECT_EQ(points[0].first, c.small);
      EXPECT_EQ(points[1].first, c.wanted);
      EXPECT_EQ(points[2].first, c.small);
      for (const PartPlan& part : points)
        EXPECT_EQ(part.second, path == Path::split ? part.first : Point{});
    }
  }
}

TEST(UniformPlan, ByRowTensorsOfOneRowStayDense) {
  const Layout layout = layout_of({{1, 5000}, {50, 100}, {2, 3}}, 2);
  const Point wanted{0.01, ValueKind::q4, true};
  const FusionPlan plan = uniform_plan({.path = Path::gather, .point = wanted}, layout);
  const auto& points = plan.buffers[0].points;
  EXPECT_EQ(points[0].first, (Point{1.0, ValueKind::bf16}));
  EXPECT_EQ(points[1].first, wanted);
  EXPECT_EQ(points[2].first, (Point{1.0, ValueKind::bf16}));
}

TEST(UniformPlan, ObeysTheRulesForAnyLayout) {
  constexpr uint64_t kSeed = 61;
  std::printf("seed %llu\n", static_cast<unsigned long long>(kSeed));
  base::Rng rng(kSeed);
  for (int round = 0; round < 300; ++round) {
    const Layout layout = random_layout(rng, 60);
    const UniformPlan wanted{.path = static_cast<Path>(rng.below(kPathCount)),
                             .point = testing::random_point(rng),
                             .buffer_bytes = rng.below(1 << 24),
                             .first_buffer_bytes = rng.below(1 << 22),
                             .small_elements = rng.below(10000)};
    const FusionPlan plan = uniform_plan(wanted, layout);
    const auto valid = validate(plan, layout);
    ASSERT_TRUE(valid.ok()) << round << ": " << valid.error().to_string();
    for (size_t b = 0; b < plan.buffers.size(); ++b) {
      const BufferPlan& buffer = plan.buffers[b];
      uint64_t bytes = 0;
      for (uint32_t i = 0; i + 1 < buffer.parts; ++i)
        bytes += 4 * layout.parts()[buffer.first_part + i].range.elements;
      const uint64_t limit = b == 0 ? wanted.first_buffer_bytes : wanted.buffer_bytes;
      if (buffer.parts > 1) {
        EXPECT_LT(bytes, limit) << round << ": closed too late";
      }
      bytes += 4 * layout.parts()[buffer.first_part + buffer.parts - 1].range.elements;
      if (b + 1 < plan.buffers.size()) {
        EXPECT_GE(bytes, limit) << round << ": closed too early";
      }
    }
  }
}

// The tensors fill the arena without gaps.
TEST(SentBytes, AreTheFormulasOfTheDocument) {
  const std::vector<codec::Shape> shapes = {{1, 16}, {300, 1024}, {1, 5000000}};
  for (const int ranks : {1, 2, 3, 4, 9}) {
    const Layout layout = layout_of(shapes, ranks);
    const double others = ranks - 1;
    const auto sent = [&](Path path, ValueKind values) {
      return sent_bytes(
          uniform_plan({.path = path, .point = {1.0, values}, .small_elements = 0}, layout),
          layout);
    };
    const auto elements = static_cast<double>(layout.elements());
    EXPECT_NEAR(sent(Path::all_reduce, ValueKind::f32), 2 * others / ranks * 4 * elements, 0.01);
    for (const ValueKind values : codec::testing::kAllKinds) {
      uint64_t records = 0;
      for (const SliceLayout& slice : layout.slices())
        records += codec::dense_record_bytes(slice.range.elements, values);
      const auto bytes = static_cast<double>(records);
      EXPECT_NEAR(sent(Path::split, values), others / ranks * 2 * bytes, 0.01) << name(values);
      EXPECT_NEAR(sent(Path::gather, values), others * bytes, 0.01) << name(values);
    }
  }
}

TEST(SentBytes, LegsCountApartAndTheArenaWithItsGaps) {
  const Layout layout = layout_of({{1, 1}, {1, 17}, {1, 3}}, 2);
  FusionPlan plan{{{0, 1, Path::split, {{{1.0, ValueKind::f32}, {1.0, ValueKind::q8}}}},
                   {1, 2, Path::all_reduce, {}}}};
  ASSERT_TRUE(validate(plan, layout).ok());
  const auto records = static_cast<double>(codec::dense_record_bytes(1, ValueKind::f32) +
                                           codec::dense_record_bytes(1, ValueKind::q8));
  EXPECT_DOUBLE_EQ(sent_bytes(plan, layout), records / 2 + 4.0 * (32 + 3));
}

constexpr int kFirst = 2;  // steps in which residuals begin to grow
constexpr int kSteps = 20;

// Gradients of all steps, of independent values: Gaussian, or their cubes, of which a few are far
// above all others.
std::vector<std::vector<float>> gradients(uint64_t elements, bool heavy) {
  std::vector<std::vector<float>> all;
  for (uint64_t step = 0; step < kFirst + kSteps; ++step) {
    all.push_back(codec::testing::many_gaussians(elements, 71, step));
    if (!heavy) continue;
    for (float& value : all.back()) value *= value * value;
  }
  return all;
}

// All bytes that all ranks would send in a step, as a mean over one rank and the steps. Counted
// from records of one encoder a slice.
double counted(const Layout& layout, Point point, Path path,
               const std::vector<std::vector<float>>& of_steps) {
  codec::Workspace workspace;
  codec::RecordBuffer record;
  double bytes = 0;
  for (const SliceLayout& slice : layout.slices()) {
    const uint32_t tensor = layout.parts()[slice.part].tensor;
    const uint64_t offset = layout.arena_offset(tensor, slice.range);
    auto encoder = codec::Encoder::create(tensor, layout.tensors()[tensor].shape, {}, slice.range);
    EXPECT_TRUE(encoder.ok());
    for (int step = 0; step < kFirst + kSteps; ++step) {
      const std::span<const float> gradient(of_steps[static_cast<size_t>(step)]);
      const auto report = encoder.value().encode(gradient.subspan(offset, slice.range.elements),
                                                 point, workspace, record);
      EXPECT_TRUE(report.ok());
      if (step >= kFirst) bytes += static_cast<double>(report.value().bytes) / kSteps;
    }
  }
  const double others = layout.ranks() - 1;
  return path == Path::gather ? others * bytes : 2 * others / layout.ranks() * bytes;
}

void expect_like_real_records(const Layout& layout, double tolerance) {
  std::printf("seed 71\n");
  double worst = 0;
  for (const bool heavy : {false, true}) {
    const auto of_steps = gradients(layout.arena_elements(), heavy);
    for (const double density : {0.5, 0.25, 0.1, 0.03, 0.01, 0.002}) {
      for (const ValueKind values :
           {ValueKind::f32, ValueKind::bf16, ValueKind::q4, ValueKind::q1}) {
        const Path path = values == ValueKind::bf16 ? Path::gather : Path::split;
        const UniformPlan wanted{.path = path, .point = {density, values}, .small_elements = 0};
        const double expected = sent_bytes(uniform_plan(wanted, layout), layout);
        const double real = counted(layout, wanted.point, path, of_steps);
        EXPECT_NEAR(real / expected, 1.0, tolerance)
            << "density " << density << ", " << name(values) << (heavy ? ", heavy" : "");
        worst = std::max(worst, std::abs(real / expected - 1));
      }
    }
  }
  std::printf("farthest from real records: %.2f %%\n", 100 * worst);
}

// Entries that lie independently of one another. What a model's own positions take is learnt from
// what it sent (tuner_test.cc).
TEST(SentBytes, AreThoseOfRealRecordsWithinAHundredth) {
  expect_like_real_records(layout_of({{40, 1000}, {100, 1000}}, 3), 0.01);
}

TEST(SentBytes, OfSmallSlicesToo) {
  expect_like_real_records(layout_of({{1, 2500}, {10, 300}, {1, 7000}}, 2), 0.01);
}

}  // namespace
}  // namespace scant::gradient
