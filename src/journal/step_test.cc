// A step's body: what records, raw parts and the factor give is to the bit what the optimizer saw;
// no other factor is found than the one that was there; whatever else a body says is refused.
#include "journal/step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <sstream>
#include <string>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/testing/encoders.h"

namespace scant::journal {
namespace {

using codec::Point;
using codec::Shape;
using codec::ValueKind;

constexpr uint64_t kSeed = 20261122;
constexpr uint32_t kRanks = 3;

struct Tensor {
  Shape shape;
  Point point;
};

// Of every kind of value, dense and sparse, of sizes that fill no block; one of a single element.
const std::vector<Tensor>& tensors() {
  static const std::vector<Tensor> all{
      {{1, 1}, {1.0, ValueKind::f32}},     {{3, 700}, {0.05, ValueKind::q4}},
      {{1, 4096}, {1.0, ValueKind::q3}},   {{2, 2500}, {0.01, ValueKind::bf16}},
      {{1, 70001}, {0.02, ValueKind::q2}}, {{1, 333}, {1.0, ValueKind::f16}}};
  return all;
}

std::vector<uint64_t> sizes() {
  std::vector<uint64_t> bytes;
  for (const Tensor& tensor : tensors()) bytes.push_back(tensor.shape.elements() * sizeof(float));
  return bytes;
}

// One rank's message: a record of each tensor.
std::vector<std::byte> message(uint64_t seed, uint64_t rank, codec::Workspace& workspace) {
  std::vector<std::byte> all;
  for (uint32_t t = 0; t < tensors().size(); ++t) {
    auto encoder = codec::testing::make(tensors()[t].shape, {}, t);
    const auto gradient =
        codec::testing::gaussians(tensors()[t].shape.elements(), seed, rank * 100 + t);
    const auto stepped = codec::testing::step(encoder, gradient, tensors()[t].point, workspace);
    all.insert(all.end(), stepped.bytes.begin(), stepped.bytes.end());
  }
  return all;
}

// What codec::accumulate makes of messages.
std::vector<std::vector<float>> expected(std::span<const std::vector<std::byte>> messages,
                                         float weight, codec::Workspace& workspace) {
  std::vector<std::vector<float>> all;
  for (uint32_t t = 0; t < tensors().size(); ++t) {
    std::vector<codec::RecordView> records;
    for (const auto& one : messages) {
      auto parsed = codec::parse_all(one);
      EXPECT_TRUE(parsed.ok());
      records.push_back(std::move(parsed.value()[t]));
    }
    all.emplace_back(tensors()[t].shape.elements());
    EXPECT_TRUE(
        codec::accumulate(records, t, tensors()[t].shape, 0, all.back(), weight, workspace).ok());
  }
  return all;
}

// As the optimizer finds them.
struct Found {
  std::vector<std::vector<float>> values;
  std::vector<Bytes> views;
  explicit Found(std::vector<std::vector<float>> given) : values(std::move(given)) {
    for (const auto& one : values) views.push_back(std::as_bytes(std::span(one)));
  }
  [[nodiscard]] uint32_t crc() const {
    uint32_t crc = 0;
    for (const Bytes one : views) crc = base::crc32c(one, crc);
    return crc;
  }
};

std::vector<std::byte> body_of(const Step& step) {
  const WrittenStep written(step);
  std::vector<std::byte> body;
  for (const Bytes piece : written.pieces()) body.insert(body.end(), piece.begin(), piece.end());
  return body;
}

bool equals(Gradients& gradients, const Found& found) {
  for (size_t t = 0; t < found.views.size(); ++t) {
    const Bytes is = gradients.tensor(t);
    if (!std::equal(is.begin(), is.end(), found.views[t].begin(), found.views[t].end())) {
      return false;
    }
  }
  return true;
}

Step step_of(PartKind kind, std::span<const std::vector<std::byte>> messages) {
  Step step{.ranks = kRanks, .present = std::vector<bool>(tensors().size(), true)};
  for (const auto& one : messages) step.parts.push_back({.kind = kind, .where = 0, .bytes = one});
  return step;
}

void scale(std::vector<std::vector<float>>& values, float factor) {
  for (auto& one : values)
    for (float& value : one) value *= factor;
}

TEST(Step, GatheredRecordsAreAddedInRankOrder) {
  codec::Workspace workspace;
  std::vector<std::vector<std::byte>> messages;
  for (uint64_t rank = 0; rank < kRanks; ++rank) {
    messages.push_back(message(kSeed, rank, workspace));
  }
  const Found found(expected(messages, 1.0f / kRanks, workspace));
  const auto memory = Gradients::create(sizes());
  Gradients& gradients = *memory.value();
  Step step = step_of(PartKind::gathered, messages);
  step.crc = found.crc();
  ASSERT_TRUE(gradients.decode(step, true).ok());
  EXPECT_TRUE(equals(gradients, found));
  std::swap(step.parts[0], step.parts[2]);
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_FALSE(equals(gradients, found)) << "floats are not added in any order";
}

// Each owner's averages, beside tensors that went as they are and a module's buffer.
TEST(Step, IsWrittenAndReadBack) {
  codec::Workspace workspace;
  const std::vector<std::vector<std::byte>> messages{message(kSeed, 0, workspace)};
  auto values = expected(messages, 1, workspace);
  auto sizes_now = sizes();
  sizes_now.insert(sizes_now.end(), {10, 256, 8});
  Step step = step_of(PartKind::averages, messages);
  step.present.insert(step.present.end(), {true, true, false});
  step.settings = R"({"lr": 0.1})";
  step.factor = 0.25f;
  scale(values, step.factor);
  const auto raw = codec::testing::gaussians(3, kSeed, 900);  // 10 bytes of 12
  std::vector<std::byte> half(128);
  base::Rng rng(kSeed);
  for (std::byte& one : half) one = static_cast<std::byte>(rng.next());
  const std::string state = "running mean";
  const auto raw_bytes = std::as_bytes(std::span(raw)).first(10);
  step.parts.push_back({.kind = PartKind::raw, .where = 6, .first = 0, .bytes = raw_bytes});
  step.parts.push_back({.kind = PartKind::bf16, .where = 7, .first = 0, .bytes = half});
  step.parts.push_back(
      {.kind = PartKind::state, .where = 9, .bytes = std::as_bytes(std::span(state))});
  const auto body = body_of(step);
  const auto read = read_step(body);
  ASSERT_TRUE(read.ok()) << read.error().to_string();
  const Step& again = read.value();
  EXPECT_EQ(again.factor, step.factor);
  EXPECT_EQ(again.ranks, kRanks);
  EXPECT_EQ(again.present, step.present);
  EXPECT_EQ(again.settings, step.settings);
  ASSERT_EQ(again.parts.size(), step.parts.size());
  EXPECT_EQ(again.parts.back().bytes.size(), state.size());
  EXPECT_EQ(again.parts.back().where, 9U);
  const auto memory = Gradients::create(sizes_now);
  Gradients& gradients = *memory.value();
  ASSERT_TRUE(gradients.decode(again, false).ok());
  EXPECT_TRUE(equals(gradients, Found(values)));
  EXPECT_TRUE(std::ranges::equal(gradients.tensor(6), raw_bytes));
  for (size_t i = 0; i < 64; ++i) {
    EXPECT_EQ(base::load_little<uint32_t>(gradients.tensor(7).data() + 4 * i),
              uint32_t{base::load_little<uint16_t>(half.data() + 2 * i)} << 16);
  }
  EXPECT_EQ(body_of(again), body);
}

TEST(Step, WhatNoPartTellsOfIsZero) {
  const auto memory = Gradients::create({8, 16, 8});
  Gradients& gradients = *memory.value();
  for (size_t t = 0; t < 3; ++t) std::ranges::fill(gradients.tensor(t), std::byte{0xff});
  const std::vector<std::byte> four(4, std::byte{1});
  Step step{.present = {true, true, false}};
  step.parts.push_back({.kind = PartKind::raw, .where = 1, .first = 8, .bytes = four});
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_TRUE(std::ranges::all_of(gradients.tensor(0), [](auto b) { return b == std::byte{0}; }));
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(gradients.tensor(1)[i], i >= 8 && i < 12 ? std::byte{1} : std::byte{0});
  }
}

// Clipping, unscaling: one float that everything was multiplied by.
TEST(Factor, IsFoundOrNothingIs) {
  codec::Workspace workspace;
  size_t found_at = 0;
  size_t tried = 0;
  for (uint64_t seed = kSeed; seed < kSeed + 12; ++seed) {
    const std::vector<std::vector<std::byte>> messages{message(seed, 0, workspace)};
    const auto values = expected(messages, 1, workspace);
    base::Rng rng(seed);
    std::vector<float> factors{1.0f, 0.5f, 0x1p-16f, 8.0f, 0.0f, -1.0f, -0.3f, 1.0f / 3};
    for (int i = 0; i < 20; ++i) factors.push_back(static_cast<float>(rng.uniform()));
    for (int i = 0; i < 5; ++i) factors.push_back(static_cast<float>(1000 * rng.uniform()));
    factors.push_back(std::nextafter(1.0f, 0.0f));
    for (const float factor : factors) {
      SCOPED_TRACE("seed " + std::to_string(seed) + ", factor " + std::to_string(factor));
      auto scaled = values;
      scale(scaled, factor);
      const Found found(std::move(scaled));
      const auto memory = Gradients::create(sizes());
      Gradients& gradients = *memory.value();
      Step step = step_of(PartKind::averages, messages);
      ASSERT_TRUE(gradients.decode(step, false).ok());
      ++tried;
      if (!gradients.find_factor(found.views, step.factor)) continue;
      ++found_at;
      EXPECT_TRUE(equals(gradients, found));
      step.crc = found.crc();
      ASSERT_TRUE(gradients.decode(step, true).ok()) << "again, with the factor that was found";
    }
  }
  EXPECT_EQ(found_at, tried);
}

// Few distinct values: each leaves several factors, of which one explains all.
TEST(Factor, OfSeveralTheOneThatExplainsAllIsTaken) {
  codec::Workspace workspace;
  size_t tried = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    const Shape shape{1, 3000};
    auto encoder = codec::testing::make(shape, {}, 0);
    auto gradient = codec::testing::gaussians(3000, kSeed, seed, 0.001f);
    gradient[7] = 1.99f;  // the one sample: its products are rounded the least
    auto stepped = codec::testing::step(encoder, gradient, {1.0, ValueKind::f32}, workspace);
    base::Rng rng(seed);
    const auto factor = static_cast<float>(rng.uniform());
    std::vector<std::vector<float>> scaled{stepped.decoded};
    scale(scaled, factor);
    const Found found(std::move(scaled));
    const auto memory = Gradients::create({shape.elements() * 4});
    Gradients& gradients = *memory.value();
    Step step{.present = {true}};
    step.parts.push_back({.kind = PartKind::averages, .where = 0, .bytes = stepped.bytes});
    ASSERT_TRUE(gradients.decode(step, false).ok());
    float is = 0;
    ASSERT_TRUE(gradients.find_factor(found.views, is));
    EXPECT_TRUE(equals(gradients, found));
    ++tried;
  }
  EXPECT_EQ(tried, 300U);
}

TEST(Factor, IsFoundWhereTheFrontOfATensorIsZero) {
  codec::Workspace workspace;
  auto encoder = codec::testing::make({1, 70000}, {}, 0);
  std::vector<float> gradient(70000);
  for (size_t i = 60000; i < gradient.size(); i += 50) gradient[i] = 0.1f * static_cast<float>(i);
  auto stepped = codec::testing::step(encoder, gradient, {0.01, ValueKind::f32}, workspace);
  std::vector<std::vector<float>> scaled{stepped.decoded};
  scale(scaled, 0.7f);
  const Found found(std::move(scaled));
  const auto memory = Gradients::create({70000 * 4});
  Gradients& gradients = *memory.value();
  Step step{.present = {true}};
  step.parts.push_back({.kind = PartKind::averages, .where = 0, .bytes = stepped.bytes});
  ASSERT_TRUE(gradients.decode(step, false).ok());
  float factor = 0;
  ASSERT_TRUE(gradients.find_factor(found.views, factor));
  EXPECT_TRUE(equals(gradients, found));
}

TEST(Factor, IsNotFoundWhereThereIsNone) {
  codec::Workspace workspace;
  const std::vector<std::vector<std::byte>> messages{message(kSeed, 0, workspace)};
  const auto values = expected(messages, 1, workspace);
  const auto memory = Gradients::create(sizes());
  Gradients& gradients = *memory.value();
  const Step step = step_of(PartKind::averages, messages);
  float factor = 0;
  auto changed = values;
  for (float& value : changed[1]) value *= 0.5f;  // one tensor of six
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_FALSE(gradients.find_factor(Found(changed).views, factor));
  changed = values;
  scale(changed, std::numeric_limits<float>::quiet_NaN());
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_FALSE(gradients.find_factor(Found(changed).views, factor));
  changed = values;
  scale(changed, std::numeric_limits<float>::infinity());
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_FALSE(gradients.find_factor(Found(changed).views, factor));
  const Found right(values);
  std::vector<Bytes> views = right.views;
  views[2] = {};  // no gradient there
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_FALSE(gradients.find_factor(views, factor));
}

TEST(Step, TheChecksumRefusesAnyChangedElement) {
  codec::Workspace workspace;
  const std::vector<std::vector<std::byte>> messages{message(kSeed, 0, workspace)};
  auto values = expected(messages, 1, workspace);
  const auto memory = Gradients::create(sizes());
  Gradients& gradients = *memory.value();
  Step step = step_of(PartKind::averages, messages);
  step.crc = Found(values).crc();
  ASSERT_TRUE(gradients.decode(step, true).ok());
  for (auto& one : values) {
    float& last = one.back();
    const float was = last;
    last = std::bit_cast<float>(std::bit_cast<uint32_t>(last) ^ 1U);
    step.crc = Found(values).crc();
    const Result<void> refused = gradients.decode(step, true);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
    last = was;
  }
}

TEST(Step, KeptPartsStayWhenTheirSourceChanges) {
  std::vector<std::byte> source(16, std::byte{1});
  const auto memory = Gradients::create({16, 8});
  Gradients& gradients = *memory.value();
  Step step{.present = {true, true}};
  step.parts.push_back({.kind = PartKind::raw, .where = 0, .first = 0, .bytes = source});
  ASSERT_TRUE(gradients.keep(step).ok());
  std::ranges::fill(source, std::byte{2});
  ASSERT_TRUE(gradients.decode(step, false).ok());
  EXPECT_EQ(gradients.tensor(0)[15], std::byte{1});
  EXPECT_EQ(gradients.tensor(1)[0], std::byte{0});
  step.parts[0].where = 1;
  EXPECT_FALSE(gradients.keep(step).ok());
}

TEST(Step, Bf16IsTakenOnlyWhereItLosesNothing) {
  for (const size_t count : {0U, 1U, 4096U, 10000U}) {
    std::vector<float> values = codec::testing::gaussians(count, kSeed, count);
    for (float& value : values) {
      value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff0000U);
    }
    std::vector<std::byte> out(count * 2);
    EXPECT_TRUE(to_bf16_exactly(std::as_bytes(std::span(values)), out));
    for (size_t at = 0; at < count; at += 4095) {
      const float was = std::exchange(values[at], 1.0f / 3);
      EXPECT_FALSE(to_bf16_exactly(std::as_bytes(std::span(values)), out)) << at;
      values[at] = was;
    }
  }
}

// The example of docs/journal.md, from its first line to its last.
TEST(StepDocument, TheExampleIsWhatIsWritten) {
  std::ifstream file(SCANT_DOCUMENT);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t begin = text.find("**Example.**");
  ASSERT_NE(begin, std::string::npos);
  std::istringstream lines(text.substr(text.find("\n\n", begin), 400));
  std::string digits;
  for (std::string line; std::getline(lines, line) && (line.empty() || line[0] == ' ');) {
    std::ranges::copy_if(line, std::back_inserter(digits), [](char c) { return c != ' '; });
  }
  std::vector<std::byte> gradient(8);
  base::store_little(gradient.data(), std::bit_cast<uint32_t>(1.0f));
  base::store_little(gradient.data() + 4, std::bit_cast<uint32_t>(2.0f));
  const Step step{.crc = base::crc32c(gradient),
                  .present = {true},
                  .parts = {{.kind = PartKind::raw, .bytes = gradient}}};
  std::string written;
  const WrittenStep pieces(step);
  for (const Bytes piece : pieces.pieces()) {
    for (const std::byte one : piece) {
      static constexpr const char* kDigits = "0123456789abcdef";
      written += kDigits[std::to_integer<unsigned>(one) >> 4U];
      written += kDigits[std::to_integer<unsigned>(one) & 15U];
    }
  }
  EXPECT_EQ(digits, written);
}

}  // namespace
}  // namespace scant::journal
