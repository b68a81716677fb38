// Bodies that no writer made: every length, number and record of them may be anything.
#include <cstring>
#include <gtest/gtest.h>

#include "base/little_endian.h"
#include "codec/testing/encoders.h"
#include "codec/testing/records.h"
#include "journal/step.h"

namespace scant::journal {
namespace {

constexpr uint64_t kSeed = 20261122;

std::vector<std::byte> body_of(const Step& step) {
  const WrittenStep written(step);
  std::vector<std::byte> body;
  for (const Bytes piece : written.pieces()) body.insert(body.end(), piece.begin(), piece.end());
  return body;
}

std::vector<std::byte> record(uint32_t tensor, uint64_t elements) {
  codec::Workspace workspace;
  auto encoder = codec::testing::make({1, elements}, {}, tensor);
  return codec::testing::step(encoder, codec::testing::gaussians(elements, kSeed, tensor),
                              {1.0, codec::ValueKind::q4}, workspace)
      .bytes;
}

Step small_step(Bytes records, Bytes raw) {
  Step step{.present = {true, true, true}, .settings = "{}"};
  step.parts.push_back({.kind = PartKind::averages, .where = 0, .bytes = records});
  step.parts.push_back({.kind = PartKind::raw, .where = 1, .first = 4, .bytes = raw});
  step.parts.push_back({.kind = PartKind::bf16, .where = 2, .first = 0, .bytes = raw});
  return step;
}

TEST(HostileStep, CutOffAnywhereItIsRefused) {
  const auto records = record(0, 100);
  const std::vector<std::byte> raw(8, std::byte{1});
  const auto body = body_of(small_step(records, raw));
  ASSERT_TRUE(read_step(body).ok());
  for (size_t length = 0; length < body.size(); ++length) {
    const auto read = read_step(Bytes(body).first(length));
    ASSERT_FALSE(read.ok()) << length;
    EXPECT_EQ(read.error().code, ErrorCode::corrupt);
  }
  auto longer = body;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(read_step(longer).ok());
}

// Any byte may be any other: what is read and decoded stays within the tensors (the sanitizers
// watch), and most of it is refused.
TEST(HostileStep, ChangedAnywhereItIsRefusedOrReadWithinItsBounds) {
  const auto records = record(0, 100);
  const std::vector<std::byte> raw(8, std::byte{1});
  const auto body = body_of(small_step(records, raw));
  const auto memory = Gradients::create({400, 16, 16});
  Gradients& gradients = *memory.value();
  base::Rng rng(kSeed);
  size_t refused = 0;
  for (size_t at = 0; at < body.size(); ++at) {
    for (int i = 0; i < 20; ++i) {
      auto changed = body;
      changed[at] = static_cast<std::byte>(rng.next());
      const auto step = read_step(changed);
      refused += !step || !gradients.decode(step.value(), false) ? 1 : 0;
    }
  }
  EXPECT_GT(refused, 0U);
}

TEST(HostileStep, NumbersThatCannotBeAreRefused) {
  const std::vector<std::byte> raw(8, std::byte{1});
  const auto body = body_of(small_step(record(0, 100), raw));
  const auto refuses = [&body](size_t at, uint32_t value) {
    auto changed = body;
    base::store_little(changed.data() + at, value);
    const auto read = read_step(changed);
    return !read.ok() && read.error().code == ErrorCode::corrupt;
  };
  EXPECT_TRUE(refuses(0, 0x7f800000)) << "factor: infinite";
  EXPECT_TRUE(refuses(0, 0x7fc00000)) << "factor: NaN";
  EXPECT_TRUE(refuses(8, 0)) << "ranks";
  for (const size_t at : {12U, 16U, 20U}) {
    EXPECT_TRUE(refuses(at, UINT32_MAX)) << at;
    EXPECT_TRUE(refuses(at, 1U << 20)) << at;
  }
  EXPECT_TRUE(refuses(20, 2)) << "a part less: bytes behind the end";
  const size_t part = 24 + 1 + 2;
  auto changed = body;
  for (const int kind : {0, 6, 255}) {
    changed[part] = static_cast<std::byte>(kind);
    EXPECT_FALSE(read_step(changed).ok()) << kind;
  }
}

TEST(HostileStep, PartsThatFitNoTensorAreRefused) {
  const std::vector<std::byte> bytes(16);
  const auto memory = Gradients::create({16, 0, 6});
  Gradients& gradients = *memory.value();
  const auto refused = [&](Part part) {
    Step step{.present = {true, true, true}};
    step.parts.push_back(part);
    const Result<void> decoded = gradients.decode(step, false);
    return !decoded.ok() && decoded.error().code == ErrorCode::corrupt;
  };
  const auto part = [&](PartKind kind, uint32_t where, uint64_t first, size_t length) {
    return Part{.kind = kind, .where = where, .first = first, .bytes = Bytes(bytes).first(length)};
  };
  EXPECT_FALSE(refused(part(PartKind::raw, 0, 0, 16)));
  EXPECT_FALSE(refused(part(PartKind::raw, 0, 16, 0)));
  EXPECT_FALSE(refused(part(PartKind::bf16, 0, 0, 8)));
  EXPECT_FALSE(refused(part(PartKind::bf16, 2, 1, 2))) << "at an odd byte";
  EXPECT_TRUE(refused(part(PartKind::raw, 3, 0, 0))) << "no such tensor";
  EXPECT_TRUE(refused(part(PartKind::raw, UINT32_MAX, 0, 1)));
  EXPECT_TRUE(refused(part(PartKind::raw, 0, 1, 16))) << "beyond its end";
  EXPECT_TRUE(refused(part(PartKind::raw, 0, UINT64_MAX, 1)));
  EXPECT_TRUE(refused(part(PartKind::raw, 1, 0, 1))) << "an empty tensor";
  EXPECT_TRUE(refused(part(PartKind::bf16, 0, 0, 9)));
  EXPECT_TRUE(refused(part(PartKind::bf16, 2, 0, 5)));
  Step other{.present = {true}};
  EXPECT_FALSE(gradients.decode(other, false).ok()) << "of another number of tensors";
}

TEST(HostileStep, RecordsThatFitNoTensorAreRefused) {
  const auto memory = Gradients::create({400, 6});
  Gradients& gradients = *memory.value();
  const auto refused = [&](const std::vector<std::vector<std::byte>>& messages, PartKind kind) {
    Step step{.ranks = 2, .present = {true, true}};
    for (const auto& one : messages) step.parts.push_back({.kind = kind, .bytes = one});
    const Result<void> decoded = gradients.decode(step, false);
    return !decoded.ok() && decoded.error().code == ErrorCode::corrupt;
  };
  const auto right = record(0, 100);
  EXPECT_FALSE(refused({right}, PartKind::averages));
  EXPECT_FALSE(refused({right, right}, PartKind::gathered));
  EXPECT_FALSE(refused({right, {}}, PartKind::gathered));
  EXPECT_TRUE(refused({right, right}, PartKind::averages)) << "an average twice";
  EXPECT_TRUE(refused({right, right, right}, PartKind::gathered)) << "of three ranks, not two";
  EXPECT_TRUE(refused({record(0, 101)}, PartKind::averages)) << "longer than the tensor";
  EXPECT_TRUE(refused({record(1, 2)}, PartKind::averages)) << "a tensor of six bytes";
  EXPECT_TRUE(refused({record(2, 1)}, PartKind::averages)) << "no such tensor";
  EXPECT_TRUE(refused({right, record(0, 64)}, PartKind::gathered)) << "of two shapes";
  auto torn = right;
  torn.pop_back();
  EXPECT_TRUE(refused({torn}, PartKind::averages));
  base::Rng rng(kSeed);
  for (const uint64_t first : {uint64_t{1} << 62, uint64_t{64}, UINT64_MAX - 63}) {
    const codec::RecordHeader header{
        .shape = {.rows = 1, .columns = UINT64_MAX / 2}, .first = first, .elements = 64};
    const auto block = codec::testing::dense_block(rng, codec::ValueKind::f32, 64);
    EXPECT_TRUE(refused({codec::testing::build(header, {&block, 1})}, PartKind::averages)) << first;
  }
}

}  // namespace
}  // namespace scant::journal
