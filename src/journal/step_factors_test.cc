// Bodies with factors: what is replayed is to the bit the averager's arithmetic, an entry has the
// bytes of its records and a stated overhead, and hostile ones get an error that names the fault.
#include <algorithm>
#include <bit>
#include <functional>
#include <gtest/gtest.h>
#include <limits>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/testing/records.h"
#include "journal/format.h"
#include "journal/testing/factored.h"

namespace scant::journal {
namespace {

using testing::Factored;
using testing::kFactoredShape;

constexpr uint64_t kSeed = 20261130;
constexpr size_t kHeadBytes = 24;
constexpr size_t kPartBytes = 24;

std::vector<std::byte> body_of(const Step& step) {
  const WrittenStep written(step);
  std::vector<std::byte> body;
  for (const Bytes piece : written.pieces()) body.insert(body.end(), piece.begin(), piece.end());
  return body;
}

uint32_t crc_of(const std::vector<Bytes>& found) {
  uint32_t crc = 0;
  for (const Bytes one : found) crc = base::crc32c(one, crc);
  return crc;
}

std::unique_ptr<Gradients> memory() {
  auto made = Gradients::create(Factored::bytes());
  EXPECT_TRUE(made.ok());
  for (size_t i = 0; i < made.value()->tensors(); ++i) {
    std::ranges::fill(made.value()->tensor(i), std::byte{0xff});
  }
  return std::move(made).value();
}

bool equals(Gradients& gradients, const std::vector<Bytes>& found) {
  for (size_t i = 0; i < found.size(); ++i) {
    if (!std::ranges::equal(Bytes(gradients.tensor(i)), found[i])) return false;
  }
  return true;
}

TEST(StepFactors, ComeBackToTheBit) {
  for (const uint32_t ranks : {1U, 3U}) {
    for (const PartKind kind : {PartKind::averages, PartKind::gathered}) {
      if (kind == PartKind::averages && ranks > 1) continue;
      const Factored given(kSeed, kind, ranks);
      Step step = given.step();
      step.crc = crc_of(given.found());
      const auto body = body_of(step);
      const auto read = read_step(body);
      ASSERT_TRUE(read.ok()) << read.error().to_string();
      EXPECT_EQ(read.value().parts[0].matrices, given.matrices);
      EXPECT_EQ(body_of(read.value()), body);
      const auto gradients = memory();
      for (int again = 0; again < 2; ++again) {
        const Result<void> decoded = gradients->decode(read.value(), true);
        ASSERT_TRUE(decoded.ok()) << decoded.error().to_string();
        EXPECT_TRUE(equals(*gradients, given.found())) << name(kind) << " of " << ranks;
      }
    }
  }
}

TEST(StepFactors, AnEntryHasItsRecordsBytesAndTheStatedOverhead) {
  const Factored given(kSeed, PartKind::gathered, 3);
  const size_t overhead =
      kHeadBytes + 1 + kPartBytes * (1 + given.messages.size()) + 40 * given.matrices.size();
  EXPECT_EQ(body_of(given.step()).size(), given.record_bytes() + overhead);
  EXPECT_EQ(version_of(given.step()), kVersion);
  Step without = given.step();
  without.parts.erase(without.parts.begin());
  EXPECT_EQ(version_of(without), kVersionWithoutFactors);
}

TEST(StepFactors, AreScaledOnceAndTheFactorIsFound) {
  const Factored given(kSeed);
  for (const float factor : {0.37f, 1.0f / 3, -2.0f, 0.0f}) {
    auto scaled = given.averages;
    for (auto& one : scaled)
      for (float& value : one) value *= factor;
    const std::vector<Bytes> found{std::as_bytes(std::span(scaled[0])),
                                   std::as_bytes(std::span(scaled[1]))};
    const auto gradients = memory();
    Step step = given.step();
    ASSERT_TRUE(gradients->decode(step, false).ok());
    ASSERT_TRUE(gradients->find_factor(found, step.factor)) << factor;
    EXPECT_EQ(step.factor, factor);
    EXPECT_TRUE(equals(*gradients, found));
    step.crc = crc_of(found);
    EXPECT_TRUE(gradients->decode(step, true).ok());
    EXPECT_TRUE(equals(*gradients, found));
  }
}

// Another plan, then the first again: nothing of the step before is left.
TEST(StepFactors, StepsOfOtherPlansDoNotDisturbEachOther) {
  const Factored one(kSeed);
  const Factored other(kSeed + 1);
  const auto gradients = memory();
  ASSERT_TRUE(gradients->decode(one.step(), false).ok());
  const size_t held = gradients->factor_bytes();
  EXPECT_GT(held, 0U);
  Step plain = other.step();
  plain.parts = {{.kind = PartKind::raw, .where = 0, .bytes = other.found()[0]}};
  ASSERT_TRUE(gradients->decode(plain, false).ok());
  EXPECT_EQ(gradients->factor_bytes(), 0U);
  ASSERT_TRUE(gradients->decode(other.step(), false).ok());
  EXPECT_TRUE(equals(*gradients, other.found()));
  ASSERT_TRUE(gradients->decode(one.step(), false).ok());
  EXPECT_TRUE(equals(*gradients, one.found()));
  EXPECT_EQ(gradients->factor_bytes(), held);
}

// A rest that is -0, for a third of the smallest number is.
TEST(StepFactors, CoefficientsOfZeroLeaveTheRest) {
  codec::Workspace workspace;
  std::vector<std::byte> message;
  const auto append = [&](uint32_t tensor, codec::Shape shape, float value) {
    auto encoder =
        codec::Encoder::create(tensor, shape, {.residual = codec::ResidualKind::none}).value();
    const std::vector<float> values(shape.elements(), value);
    const auto done =
        codec::testing::step(encoder, values, {1.0, codec::ValueKind::f32}, workspace);
    message.insert(message.end(), done.bytes.begin(), done.bytes.end());
  };
  append(codec::kLeftFactors + 1, {2, kFactoredShape.rows}, 1.0f);
  append(codec::kRightFactors + 1, {2, kFactoredShape.columns}, 0.0f);
  append(0, kFactoredShape, -0x1p-149f);
  const uint64_t elements = kFactoredShape.elements();
  Step step{.ranks = 3, .present = {true, false}};
  const Matrix whole{.part = 1, .tensor = 0, .rank = 2, .columns = 96, .range = {0, elements}};
  step.parts = {{.kind = PartKind::matrices, .where = 0, .matrices = {whole}},
                {.kind = PartKind::gathered, .where = 0, .bytes = message}};
  const auto gradients = memory();
  ASSERT_TRUE(gradients->decode(step, false).ok());
  const std::vector<float> minus(elements, -0.0f);
  EXPECT_TRUE(std::ranges::equal(Bytes(gradients->tensor(0)), std::as_bytes(std::span(minus))));
}

// A tensor that has no gradient anywhere: its matrices stand in the entry, their records do not.
TEST(StepFactors, AMatrixWithoutRecordsIsNoGradient) {
  const Factored given(kSeed);
  std::vector<std::byte> beside;
  const auto records = codec::parse_all(given.messages[1]);
  ASSERT_TRUE(records.ok());
  const Bytes last = records.value().back().view();
  beside.assign(last.begin(), last.end());
  Step step{.present = {false, true}};
  step.parts = {{.kind = PartKind::matrices, .where = 7, .matrices = given.matrices},
                {.kind = PartKind::averages, .where = 7, .bytes = beside}};
  step.crc = crc_of({given.found()[1]});
  const auto gradients = memory();
  ASSERT_TRUE(gradients->decode(step, true).ok());
  EXPECT_TRUE(std::ranges::equal(Bytes(gradients->tensor(1)), given.found()[1]));
  float factor = 0;
  EXPECT_TRUE(gradients->find_factor(std::vector<Bytes>{{}, given.found()[1]}, factor));
  EXPECT_EQ(factor, 1.0f);
}

// A step that was not finite is replayed; where the optimizer saw another, the checksum tells.
TEST(StepFactors, NanIsReplayedOrRefusedByTheChecksum) {
  codec::Workspace workspace;
  const codec::Shape right{3, kFactoredShape.columns};
  auto encoder = codec::Encoder::create(codec::kRightFactors + 2, right,
                                        {.residual = codec::ResidualKind::none},
                                        codec::Range{0, right.elements()});
  std::vector<float> values(right.elements(), std::numeric_limits<float>::quiet_NaN());
  codec::RecordBuffer record;
  ASSERT_TRUE(encoder.value().encode(values, {1.0, codec::ValueKind::q8}, workspace, record).ok());
  const Factored given(kSeed);
  const auto known = codec::parse_all(given.messages[1]);
  std::vector<std::byte> message;
  for (const codec::RecordView& one : known.value()) {
    const bool changed = one.header().tensor == codec::kRightFactors + 2;
    const Bytes bytes = changed ? Bytes(record.view()) : one.view();
    message.insert(message.end(), bytes.begin(), bytes.end());
  }
  Step step = given.step();
  step.parts[2].bytes = message;
  const auto gradients = memory();
  ASSERT_TRUE(gradients->decode(step, false).ok());
  const auto* floats = reinterpret_cast<const float*>(gradients->tensor(0).data());
  EXPECT_EQ(std::bit_cast<uint32_t>(floats[1999]),
            std::bit_cast<uint32_t>(given.averages[0][1999]));
  EXPECT_TRUE(std::isnan(floats[2000]));
  step.crc = gradients->crc(step.present);
  EXPECT_TRUE(gradients->decode(step, true).ok());
  step.crc = crc_of(given.found());
  const Result<void> refused = gradients->decode(step, true);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::corrupt);
  EXPECT_NE(refused.error().message.find("not what the optimizer saw"), std::string::npos);
}

// ---- hostile bodies ---------------------------------------------------------------------------

std::string fault(const Step& step) {
  const auto gradients = memory();
  const Result<void> decoded = gradients->decode(step, false);
  if (decoded) return "";
  EXPECT_EQ(decoded.error().code, ErrorCode::corrupt);
  const std::string head = "a step of the journal: ";
  EXPECT_TRUE(decoded.error().message.starts_with(head)) << decoded.error().message;
  return decoded.error().message.substr(head.size());
}

TEST(HostileFactors, MatricesThatCannotBeAreNamed) {
  const Factored given(kSeed);
  struct Case {
    std::function<void(Matrix&)> change;
    std::string said;
  };
  const std::vector<Case> cases{
      {[](Matrix& one) { one.rank = 0; }, "matrix part 2: rank 0 of 20 x 96"},
      {[](Matrix& one) { one.rank = 21; }, "matrix part 2: rank 21 of 20 x 96"},
      {[](Matrix& one) { one.rank = UINT32_MAX; }, "matrix part 2: rank 4294967295 of 20 x 96"},
      {[](Matrix& one) { one.rank = 4; },
       "matrix part 2: its left factor is 4 x 20, not as a record says: 3 x 20"},
      {[](Matrix& one) { one.columns = 0; },
       "matrix part 2: a tensor of 3840 elements has no rows of 0"},
      {[](Matrix& one) { one.columns = 97; },
       "matrix part 2: a tensor of 3840 elements has no rows of 97"},
      {[](Matrix& one) { one.columns = 1920; }, "matrix part 2: rank 3 of 1 x 1920"},
      {[](Matrix& one) { one.columns = UINT64_MAX; },
       "matrix part 2: a tensor of 3840 elements has no rows of 18446744073709551615"},
      {[](Matrix& one) { one.columns = 48; },
       "matrix part 2: its left factor is 3 x 39, not as a record says: 3 x 20"},
      {[](Matrix& one) { one.tensor = 2; }, "matrix part 2 fits no tensor of the model"},
      {[](Matrix& one) { one.tensor = UINT32_MAX; }, "matrix part 2 fits no tensor of the model"},
      {[](Matrix& one) {
         one.range = {2000, 1841};
       },
       "matrix part 2 fits no tensor of the model"},
      {[](Matrix& one) {
         one.range = {2000, 0};
       },
       "matrix part 2 fits no tensor of the model"},
      {[](Matrix& one) {
         one.range = {3841, UINT64_MAX};
       },
       "matrix part 2 fits no tensor of the model"},
      {[](Matrix& one) {
         one.range = {1999, 1841};
       },
       "matrix part 2 does not follow the one before it"},
      {[](Matrix& one) { one.part = 1; }, "matrix part 1 does not follow the one before it"},
      {[](Matrix& one) { one.part = 1U << 30; }, "matrix part 1073741824: no such part"},
      {[](Matrix& one) { one.part = 3; }, "factors of part 2, which is no matrix"},
      {[](Matrix& one) {
         one.range = {2100, 1740};
       },
       "matrix part 2: its left factor is 3 x 19, not as a record says: 3 x 20"}};
  EXPECT_EQ(fault(given.step()), "");
  for (const Case& one : cases) {
    Step step = given.step();
    one.change(step.parts[0].matrices[1]);
    EXPECT_EQ(fault(step), one.said);
  }
}

TEST(HostileFactors, RecordsThatDoNotBelongAreNamed) {
  const Factored given(kSeed);
  Step step = given.step();
  step.parts[0].matrices[0].range.elements = 1500;
  EXPECT_EQ(fault(step), "matrix part 1 holds a part of a record");
  step = given.step();
  step.parts.push_back(step.parts[1]);
  EXPECT_EQ(fault(step), "a record twice");
  step = given.step();
  step.parts.resize(1);
  EXPECT_EQ(fault(step), "matrices without records");
  step = given.step();
  step.parts[0].where = 8;
  EXPECT_EQ(fault(step), "matrices without records");
  step = given.step();
  step.parts.insert(step.parts.begin() + 1, step.parts[0]);
  EXPECT_EQ(fault(step), "matrices without records");
  step = given.step();
  const auto again = step.parts;
  step.parts.insert(step.parts.end(), again.begin(), again.end());
  EXPECT_EQ(fault(step), "matrix part 1 does not follow the one before it");
  step = given.step();
  step.parts.erase(step.parts.begin());
  EXPECT_EQ(fault(step), "a part that fits no tensor of the model") << "factors of nothing";
}

TEST(HostileFactors, CutOffAnywhereTheyAreRefused) {
  const Factored given(kSeed);
  const auto body = body_of(given.step());
  for (size_t length = 0; length < body.size(); ++length) {
    const auto read = read_step(Bytes(body).first(length));
    ASSERT_FALSE(read.ok()) << length;
    EXPECT_EQ(read.error().code, ErrorCode::corrupt);
  }
  // A part of another length, whose bytes fall to those behind it.
  const size_t length_at = kHeadBytes + 1 + 16;
  for (const uint64_t length : {0, 39, 41, 79}) {
    auto changed = body;
    base::store_little(changed.data() + length_at, length);
    EXPECT_FALSE(read_step(changed).ok()) << length;
  }
  Step step = given.step();
  for (size_t cut : {size_t{1}, size_t{63}, given.messages[0].size() - 1}) {
    step.parts[1].bytes = Bytes(given.messages[0]).first(cut);
    const auto gradients = memory();
    const Result<void> decoded = gradients->decode(step, false);
    ASSERT_FALSE(decoded.ok()) << cut;
    EXPECT_EQ(decoded.error().code, ErrorCode::corrupt);
  }
}

// Any byte of heads and matrices may be any other.
TEST(HostileFactors, ChangedAnywhereTheyAreRefusedOrStayWithinTheTensors) {
  const Factored given(kSeed);
  const auto body = body_of(given.step());
  const size_t heads = kHeadBytes + 1 + kPartBytes + 2 * kMatrixBytes;
  const auto gradients = memory();
  base::Rng rng = codec::testing::printed_rng(kSeed);
  size_t refused = 0;
  size_t tried = 0;
  for (size_t at = 0; at < heads; ++at) {
    for (int i = 0; i < 8; ++i, ++tried) {
      auto changed = body;
      changed[at] = static_cast<std::byte>(rng.next());
      const auto step = read_step(changed);
      refused += !step || !gradients->decode(step.value(), false) ? 1 : 0;
    }
  }
  EXPECT_GT(refused, tried / 4);
  ASSERT_TRUE(gradients->decode(given.step(), false).ok());
  EXPECT_TRUE(equals(*gradients, given.found())) << "nothing of hostile steps is left";
}

}  // namespace
}  // namespace scant::journal
