// Random draws, seen from outside: no two groups, blocks, steps, tensors, ranges or seeds share
// them, rounding twice keeps the mean, and ties are thinned evenly.
#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <set>

#include "codec/testing/encoders.h"

namespace scant::codec {
namespace {

using testing::make;
using testing::step;

constexpr size_t kGroup = 64;

// What rounding made of the same value in each element of a group. With even chances, two groups
// with draws of their own are alike once in 2^64, and the halves of one once in 2^32.
class Patterns {
 public:
  void add(std::span<const float> values) {
    for (size_t at = 0; at + kGroup <= values.size(); at += kGroup) {
      const auto group = values.subspan(at, kGroup);
      repeated_ += seen_.emplace(group.begin(), group.end()).second ? 0 : 1;
      repeated_ +=
          std::equal(group.begin(), group.begin() + kGroup / 2, group.begin() + kGroup / 2);
    }
  }
  [[nodiscard]] size_t seen() const { return seen_.size(); }
  [[nodiscard]] size_t repeated() const { return repeated_; }

 private:
  std::set<std::vector<float>> seen_;
  size_t repeated_ = 0;
};

// Two tensors, seeds and ranges.
std::vector<Encoder> encoders_of(uint64_t elements, EncoderOptions options) {
  std::vector<Encoder> encoders;
  for (const uint32_t tensor : {7u, 8u}) {
    for (const uint64_t seed : {uint64_t{1}, uint64_t{2}}) {
      for (const uint64_t first : {uint64_t{0}, elements}) {
        options.seed = seed;
        auto made = Encoder::create(tensor, {2, elements}, options, Range{first, elements});
        encoders.push_back(std::move(made).value());
      }
    }
  }
  return encoders;
}

// Halfway between two levels of q8, the largest of a group of equal values being near 127.
constexpr float kBetweenLevels = 122.5f * 1.25f * 0x1p-9f;

TEST(Draws, OfCodesAreSharedByNoTwoGroups) {
  Workspace workspace;
  Patterns patterns;
  constexpr uint64_t kElements = 2 * 4096;
  for (Encoder& encoder :
       encoders_of(kElements, {.residual = ResidualKind::none, .stochastic = true})) {
    const std::vector<float> gradient(kElements, kBetweenLevels);
    for (int t = 0; t < 3; ++t)
      patterns.add(step(encoder, gradient, {1.0, ValueKind::q8}, workspace).decoded);
  }
  EXPECT_EQ(patterns.repeated(), 0u);
  EXPECT_EQ(patterns.seen(), 8 * 3 * kElements / kGroup);
}

TEST(Draws, OfSparseCodesAreSharedByNoTwoGroups) {
  Workspace workspace;
  Patterns patterns;
  constexpr uint64_t kElements = 2 * 65536;
  Encoder encoder = make({1, kElements}, {.residual = ResidualKind::none, .stochastic = true});
  for (int t = 0; t < 2; ++t) {
    const auto stepped = step(encoder, std::vector<float>(kElements, kBetweenLevels),
                              {0.999, ValueKind::q8}, workspace);
    patterns.add(std::span(stepped.decoded).first(stepped.report.entries));
  }
  EXPECT_EQ(patterns.repeated(), 0u);
  EXPECT_GT(patterns.seen(), 2 * 2 * 60000 / kGroup);
}

TEST(Draws, OfResidualsAreSharedByNoTwoGroups) {
  Workspace workspace;
  struct Case {
    uint64_t elements;
    Point point;
    float value;  // what is left of it lies halfway between two numbers of bf16
  };
  for (const Case& one : {Case{2 * 4096, {1.0, ValueKind::q1}, 1 + 0x1p-6f + 0x1p-14f},
                          Case{2 * 65536, {1e-7, ValueKind::f32}, 1 + 0x1p-8f}}) {
    Patterns patterns;
    for (Encoder& encoder : encoders_of(one.elements, {.residual = ResidualKind::bf16})) {
      const std::vector<float> gradient(one.elements, one.value);
      std::vector<float> kept(one.elements);
      for (int t = 0; t < 2; ++t) {
        encoder.clear_residual();
        ASSERT_EQ(step(encoder, gradient, one.point, workspace).report.forced, 0u);
        encoder.read_residual(kept);
        patterns.add(kept);
      }
    }
    EXPECT_EQ(patterns.repeated(), 0u) << one.elements;
    EXPECT_EQ(patterns.seen(), 8 * 2 * one.elements / kGroup);
  }
}

TEST(Draws, OfMergedResidualsAreSharedByNoTwoGroups) {
  constexpr size_t kElements = 1000 * kGroup;
  Encoder stays = make({1, kElements}, {.residual = ResidualKind::bf16});
  Encoder leaves = make({1, kElements}, {.residual = ResidualKind::bf16});
  ASSERT_TRUE(stays.add_residual(std::vector<float>(kElements, 1.0f)).ok());
  ASSERT_TRUE(leaves.add_residual(std::vector<float>(kElements, 0x1p-8f)).ok());
  ASSERT_TRUE(stays.take_over(leaves).ok());
  std::vector<float> kept(kElements);
  stays.read_residual(kept);
  Patterns patterns;
  patterns.add(kept);
  EXPECT_EQ(patterns.repeated(), 0u);
  EXPECT_EQ(patterns.seen(), 1000u);
}

// Codes and residuals round one after the other; with draws in common the second rounding would
// depend on the first, and what is sent and kept would no longer add up on average.
TEST(Draws, RoundingTwiceKeepsTheMean) {
  Workspace workspace;
  constexpr size_t kElements = 1 << 17;
  for (const ResidualKind residual : {ResidualKind::bf16, ResidualKind::i8}) {
    for (const double density : {1.0, 0.9999}) {
      Encoder encoder = make({1, kElements}, {.residual = residual, .stochastic = true});
      const std::vector<float> gradient(kElements, 0.2987f);
      const auto stepped = step(encoder, gradient, {density, ValueKind::q8}, workspace);
      std::vector<float> kept(kElements);
      encoder.read_residual(kept);
      double sum = 0;
      double squares = 0;
      const size_t sent = stepped.report.entries;  // the first ones: all are equal
      for (size_t i = 0; i < sent; ++i) {
        const double off = static_cast<double>(stepped.decoded[i]) + static_cast<double>(kept[i]) -
                           static_cast<double>(gradient[i]);
        sum += off;
        squares += off * off;
      }
      EXPECT_GT(squares, 0);
      EXPECT_LT(std::abs(sum), 6 * std::sqrt(squares)) << name(residual) << " " << density;
    }
  }
}

// One repeated value in a range that is not scanned as a whole.
TEST(Draws, ThinTiesEvenlyAndInNoTwoBlocksAlike) {
  Workspace workspace;
  constexpr size_t kBlock = 65536;
  constexpr size_t kElements = (size_t{1} << 22) + kBlock;
  Encoder encoder = make({1, kElements}, {.residual = ResidualKind::none});
  const auto decoded =
      step(encoder, std::vector<float>(kElements, -0.25f), {0.01, ValueKind::f32}, workspace)
          .decoded;
  const double wanted = 0.01 * kBlock / 4;
  for (size_t at = 0; at < kElements; at += kBlock / 4) {
    const auto part = decoded.begin() + static_cast<ptrdiff_t>(at);
    const auto count = std::count_if(part, part + kBlock / 4, [](float v) { return v != 0; });
    ASSERT_NEAR(static_cast<double>(count), wanted, 6 * std::sqrt(wanted)) << at;
  }
  for (size_t at = kBlock; at < kElements; at += kBlock) {
    size_t both = 0;
    for (size_t i = 0; i < kBlock; ++i) both += decoded[i] != 0 && decoded[at + i] != 0 ? 1 : 0;
    ASSERT_LT(both, 40u) << at;  // 6.6 by chance
  }
}

}  // namespace
}  // namespace scant::codec
