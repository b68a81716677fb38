// The log's writer on a real folder: what is read back is to the bit what the optimizer was given,
// whatever the records said; what is called durable was synced; an error of the disk reaches the
// user and stays.
#include "journal/writer.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <gtest/gtest.h>
#include <map>
#include <sys/mman.h>
#include <unistd.h>

#include "codec/testing/encoders.h"
#include "journal/testing/factored.h"
#include "journal/testing/watched_disk.h"

namespace scant::journal {
namespace {

using testing::WatchedDisk;

constexpr uint64_t kSeed = 20261122;
const Identity kIdentity{.job = 3, .model = 4};
constexpr codec::Shape kShape{1, 5000};
constexpr uint64_t kOtherBytes = 40;  // of a tensor that goes as it is

class WriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "scant-writer-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    auto opened = open_disk(folder_, true);
    ASSERT_TRUE(opened.ok()) << opened.error().to_string();
    disk_ = std::make_unique<WatchedDisk>(std::move(opened).value());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<Writer> make(const WriterOptions& options = {}, uint64_t sequence = 0) {
    auto made = Writer::create(*disk_, kIdentity, sequence,
                               {kShape.elements() * sizeof(float), kOtherBytes, 12}, options);
    EXPECT_TRUE(made.ok());
    return std::move(made).value();
  }

  // What the optimizer finds: tensor 0 as a record gives it, times a factor; tensor 1 as it is;
  // tensor 2 has no gradient.
  struct Given {
    std::vector<std::byte> record;
    std::vector<float> gradient;
    std::vector<float> other;
    [[nodiscard]] std::vector<Bytes> found() const {
      return {std::as_bytes(std::span(gradient)), std::as_bytes(std::span(other)), {}};
    }
    [[nodiscard]] std::vector<Part> parts() const {
      return {{.kind = PartKind::averages, .where = 0, .bytes = record},
              {.kind = PartKind::raw, .where = 1, .bytes = std::as_bytes(std::span(other))}};
    }
  };
  Given give(uint64_t step, float factor) {
    auto encoder = codec::testing::make(kShape, {}, 0);
    const auto gradient = codec::testing::gaussians(kShape.elements(), kSeed, step);
    auto stepped = codec::testing::step(encoder, gradient, {0.1, codec::ValueKind::q4}, workspace_);
    for (float& value : stepped.decoded) value *= factor;
    return {std::move(stepped.bytes), std::move(stepped.decoded),
            codec::testing::gaussians(kOtherBytes / 4, kSeed, 1000 + step)};
  }

  Result<Logged> log(Writer& writer, uint64_t step, const Given& given, bool records = true) {
    Result<void> begun = writer.begin(step, given.found(),
                                      records ? given.parts() : std::vector<Part>(), 1, "settings");
    if (!begun) return begun.error();
    return writer.end();
  }

  Log read(uint64_t first = 0) {
    auto all = read_log(*disk_, kIdentity, first);
    EXPECT_TRUE(all.ok());
    return all ? std::move(all).value() : Log{};
  }
  // The entry gives these gradients.
  void expect_entry(const LogEntry& entry, const Given& given) {
    LogReader reader(*disk_);
    const auto body = reader.body(entry);
    ASSERT_TRUE(body.ok());
    const auto step = read_step(body.value());
    ASSERT_TRUE(step.ok());
    EXPECT_EQ(step.value().settings, "settings");
    EXPECT_EQ(step.value().present, (std::vector<bool>{true, true, false}));
    const auto memory = Gradients::create({kShape.elements() * sizeof(float), kOtherBytes, 12});
    Gradients& gradients = *memory.value();
    const Result<void> decoded = gradients.decode(step.value(), true);
    ASSERT_TRUE(decoded.ok()) << decoded.error().to_string();
    EXPECT_TRUE(std::ranges::equal(Bytes(gradients.tensor(0)), given.found()[0]));
    EXPECT_TRUE(std::ranges::equal(Bytes(gradients.tensor(1)), given.found()[1]));
  }

  std::string folder_;
  std::unique_ptr<WatchedDisk> disk_;
  codec::Workspace workspace_;
};

TEST_F(WriterTest, RecordsProveWithAnyFactor) {
  std::vector<Given> given;
  {
    const auto writer = make();
    for (const float factor : {1.0f, 0.37f, 0.125f, 0.0f}) {
      given.push_back(give(given.size(), factor));
      const auto logged = log(*writer, given.size(), given.back());
      ASSERT_TRUE(logged.ok()) << logged.error().to_string();
      EXPECT_TRUE(logged.value().proven);
      EXPECT_FALSE(logged.value().as_is);
      EXPECT_EQ(logged.value().factor, factor);
      EXPECT_EQ(logged.value().sequence, given.size() - 1);
      EXPECT_LT(logged.value().bytes, kShape.elements() * sizeof(float) / 4);
    }
  }
  const Log all = read();
  ASSERT_EQ(all.entries.size(), given.size());
  for (size_t i = 0; i < given.size(); ++i) {
    EXPECT_EQ(all.entries[i].header.step, i + 1);
    expect_entry(all.entries[i], given[i]);
  }
}

// Clipped ones too, and one that was changed in another way, which goes as it is.
TEST_F(WriterTest, FactorsProveWithAnyFactor) {
  using testing::Factored;
  const std::vector<float> factors{1.0f, 0.37f, 0.125f, 1.0f};
  std::vector<std::vector<std::vector<float>>> all;
  {
    auto made = Writer::create(*disk_, kIdentity, 0, Factored::bytes(), {});
    ASSERT_TRUE(made.ok());
    Writer& writer = *made.value();
    for (uint64_t step = 1; step <= factors.size(); ++step) {
      const Factored given(kSeed + step, PartKind::gathered, 3);
      all.push_back(given.averages);
      for (auto& tensor : all.back())
        for (float& value : tensor) value *= factors[step - 1];
      const bool changed = step == factors.size();
      if (changed) all.back()[0][2999] += 1.0f;
      const std::vector<Bytes> found{std::as_bytes(std::span(all.back()[0])),
                                     std::as_bytes(std::span(all.back()[1]))};
      ASSERT_TRUE(writer.begin(step, found, given.parts(), 3, "").ok());
      const auto logged = writer.end();
      ASSERT_TRUE(logged.ok()) << logged.error().to_string();
      EXPECT_TRUE(logged.value().proven);
      EXPECT_EQ(logged.value().as_is, changed);
      EXPECT_EQ(logged.value().factor, factors[step - 1]);
      const size_t parts = 1 + given.messages.size();
      EXPECT_EQ(changed, logged.value().bytes !=
                             given.record_bytes() + 64 + 1 + 24 * parts + 2 * kMatrixBytes);
    }
  }
  const auto memory = Gradients::create(Factored::bytes());
  Gradients& gradients = *memory.value();
  LogReader reader(*disk_);
  const Log log = read();
  ASSERT_EQ(log.entries.size(), all.size());
  for (size_t i = 0; i < all.size(); ++i) {
    const auto step = read_step(reader.body(log.entries[i]).value());
    ASSERT_TRUE(step.ok());
    const Result<void> decoded = gradients.decode(step.value(), true);
    ASSERT_TRUE(decoded.ok()) << decoded.error().to_string();
    for (size_t tensor = 0; tensor < all[i].size(); ++tensor) {
      EXPECT_TRUE(std::ranges::equal(Bytes(gradients.tensor(tensor)),
                                     std::as_bytes(std::span(all[i][tensor]))));
    }
  }
}

TEST_F(WriterTest, WhatRecordsDoNotTellGoesAsItIs) {
  std::vector<Given> given{give(1, 1.0f), give(2, 0.5f), give(3, 1.0f)};
  given[0].gradient[77] += 1.0f;  // noise, say
  given[1].other[0] += 1.0f;      // behind begin()'s copy nothing changes: that is a raw part
  given[2].record.clear();
  {
    const auto writer = make();
    for (size_t i = 0; i < given.size(); ++i) {
      const auto logged = log(*writer, i + 1, given[i]);
      ASSERT_TRUE(logged.ok());
      EXPECT_TRUE(logged.value().proven);
      EXPECT_EQ(logged.value().as_is, i != 1);
    }
  }
  const Log all = read();
  ASSERT_EQ(all.entries.size(), given.size());
  for (size_t i = 0; i < given.size(); ++i) expect_entry(all.entries[i], given[i]);
}

TEST_F(WriterTest, WithoutRecordsBf16TakesHalf) {
  Given given = give(1, 1.0f);
  const auto writer = make();
  const auto whole = log(*writer, 1, given, false);
  ASSERT_TRUE(whole.ok());
  EXPECT_TRUE(whole.value().proven && whole.value().as_is);
  for (float& value : given.gradient) {
    value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) & 0xffff0000U);
  }
  const auto half = log(*writer, 2, given, false);
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(whole.value().bytes - half.value().bytes, kShape.elements() * 2);
  ASSERT_TRUE(writer->sync().ok());
  ASSERT_EQ(read().entries.size(), 2U);
  expect_entry(read().entries[1], given);
}

// Memory at two addresses, so that the optimizer's write is no race of this program.
class Twice {
 public:
  explicit Twice(size_t bytes) : bytes_(bytes) {
    const int file = memfd_create("gradient", MFD_CLOEXEC);
    EXPECT_EQ(ftruncate(file, static_cast<off_t>(bytes)), 0);
    for (void*& one : at_) {
      one = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      EXPECT_NE(one, MAP_FAILED);
    }
    close(file);
  }
  ~Twice() {
    for (void* one : at_) munmap(one, bytes_);
  }
  Twice(const Twice&) = delete;
  Twice& operator=(const Twice&) = delete;
  [[nodiscard]] std::span<float> of(size_t which) const {
    return {static_cast<float*>(at_[which]), bytes_ / sizeof(float)};
  }

 private:
  size_t bytes_;
  std::array<void*, 2> at_{};
};

TEST_F(WriterTest, AnOptimizerThatWritesIntoItsGradientsIsNotLoggedWrongly) {
  const Twice memory(kShape.elements() * sizeof(float));
  size_t unproven = 0;
  std::map<uint64_t, Given> proven;  // by sequence
  uint64_t reachable = UINT64_MAX;
  {
    const auto writer = make();
    for (uint64_t step = 1; step <= 40; ++step) {
      Given given = give(step, 1.0f);
      given.gradient[9] += 1.0f;  // no factor explains it
      std::ranges::copy(given.gradient, memory.of(0).begin());
      auto found = given.found();
      found[0] = std::as_bytes(memory.of(0));
      ASSERT_TRUE(writer->begin(step, found, given.parts(), 1, "settings").ok());
      memory.of(1)[step] += 3.0f;
      const auto logged = writer->end();
      ASSERT_TRUE(logged.ok());
      EXPECT_EQ(logged.value().sequence, step - 1);
      if (logged.value().proven) {
        proven[logged.value().sequence] = std::move(given);
      } else {
        ++unproven;
        reachable = std::min(reachable, logged.value().sequence);
      }
    }
    ASSERT_TRUE(writer->sync().ok()) << "a step that was not logged is not waited for";
    EXPECT_EQ(writer->durable_sequence(), 40U);
  }
  std::printf("%zu of 40 unproven\n", unproven);
  const Log all = read();
  EXPECT_EQ(all.entries.size(), std::min<uint64_t>(reachable, 40));
  for (const LogEntry& entry : all.entries) expect_entry(entry, proven.at(entry.header.sequence));
}

// Entries in front of what was synced of each segment.
std::vector<uint64_t> really_durable(const Log& all, const std::map<std::string, uint64_t>& bytes) {
  std::vector<uint64_t> sequences;
  for (const LogEntry& entry : all.entries) {
    const auto synced = bytes.find(entry.segment);
    const uint64_t end = entry.offset + kEntryHeaderBytes + entry.header.length;
    if (synced != bytes.end() && synced->second >= end) sequences.push_back(entry.header.sequence);
  }
  return sequences;
}

TEST_F(WriterTest, AtMostSoManyStepsAreUnsyncedAndDurableOnesWereSynced) {
  for (const uint32_t limit : {1U, 2U, 3U, 5U, 16U}) {
    SCOPED_TRACE(limit);
    TearDown();
    SetUp();
    std::map<std::string, uint64_t> bytes;
    const auto writer = make({.segment_bytes_max = 9000, .unsynced_steps = limit}, 7);
    const Given given = give(1, 1.0f);
    for (uint64_t step = 1; step <= 40; ++step) {
      const auto logged = log(*writer, step, given);
      ASSERT_TRUE(logged.ok());
      EXPECT_LE(logged.value().unsynced, limit);
      const uint64_t durable = writer->durable_sequence();
      EXPECT_EQ(logged.value().unsynced, 7 + step - durable);
      for (const auto& one : disk_->synced()) {
        bytes[one.name] = std::max(bytes[one.name], one.bytes);
      }
      EXPECT_GE(really_durable(read(7), bytes).size(), durable - 7);
    }
    ASSERT_TRUE(writer->sync().ok());
    EXPECT_EQ(writer->durable_sequence(), 47U);
    EXPECT_GT(writer->sync_cost().syncs, 0U);
  }
}

TEST_F(WriterTest, ACutBeginsASegmentForTheBaseAtItsNumber) {
  const Given given = give(1, 1.0f);
  const auto writer = make();
  ASSERT_TRUE(writer->sync().ok());
  EXPECT_EQ(writer->cut().value(), 0U);
  for (uint64_t step = 1; step <= 3; ++step) ASSERT_TRUE(log(*writer, step, given).ok());
  EXPECT_EQ(writer->cut().value(), 3U);
  EXPECT_EQ(writer->cut().value(), 3U);
  ASSERT_TRUE(log(*writer, 4, given).ok());
  ASSERT_TRUE(writer->sync().ok());
  EXPECT_EQ(read(0).entries.size(), 4U);
  const Log behind = read(3);
  ASSERT_EQ(behind.entries.size(), 1U);
  EXPECT_EQ(behind.entries[0].segment, segment_name(3));
}

TEST_F(WriterTest, ALogIsTakenUpWhereItJoins) {
  const Given given = give(1, 1.0f);
  const auto sequences = [this] {
    std::vector<uint64_t> all;
    for (const LogEntry& entry : read(0).entries) all.push_back(entry.header.sequence);
    return all;
  };
  ASSERT_TRUE(log(*make({.joins = 0}, 10), 1, given).ok());
  ASSERT_TRUE(log(*make({.joins = 5}, 20), 2, given).ok());
  EXPECT_EQ(sequences(), std::vector<uint64_t>{10}) << "nobody wrote number 4";
  ASSERT_TRUE(log(*make({.joins = 11}, 30), 2, given).ok());
  EXPECT_EQ(sequences(), (std::vector<uint64_t>{10, 30}));
  ASSERT_TRUE(log(*make({.joins = 0}, 40), 1, given).ok());
  EXPECT_EQ(sequences(), std::vector<uint64_t>{40});
}

TEST_F(WriterTest, AFullDiskReachesTheUserAndStays) {
  const Given given = give(1, 1.0f);
  const auto writer = make();
  disk_->fail_append = 4;  // header, two entries
  ASSERT_TRUE(log(*writer, 1, given).ok());
  ASSERT_TRUE(log(*writer, 2, given).ok());
  const auto full = log(*writer, 3, given);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::resource);
  const auto again = log(*writer, 4, given);
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code, ErrorCode::resource);
  EXPECT_FALSE(writer->cut().ok());
  EXPECT_FALSE(writer->sync().ok());
  EXPECT_EQ(read().entries.size(), 2U);
}

TEST_F(WriterTest, ASyncThatFailsReachesTheUserAndStays) {
  const Given given = give(1, 1.0f);
  const auto writer = make({.unsynced_steps = 2});
  disk_->fail_sync = 3;
  uint64_t step = 1;
  Result<Logged> logged = log(*writer, step, given);
  while (logged && step < 10) logged = log(*writer, ++step, given);
  ASSERT_FALSE(logged.ok());
  EXPECT_EQ(logged.error().sys_errno, 5);
  EXPECT_LE(step, 5U) << "the third sync is of the fifth step at the latest";
  EXPECT_LE(writer->durable_sequence(), 2U);
  const Result<void> synced = writer->sync();
  ASSERT_FALSE(synced.ok()) << "a later sync that works does not bring back what was lost";
  EXPECT_EQ(synced.error().sys_errno, 5);
}

TEST_F(WriterTest, WhatCannotBeLoggedIsRefusedAndTheNextStepIsNot) {
  Given given = give(1, 1.0f);
  const auto writer = make();
  auto found = given.found();
  found[1] = found[1].first(8);
  const Result<void> shorter = writer->begin(1, found, given.parts(), 1, "settings");
  ASSERT_FALSE(shorter.ok());
  EXPECT_EQ(shorter.error().code, ErrorCode::mismatch);
  auto parts = given.parts();
  parts[1].where = 9;
  EXPECT_FALSE(writer->begin(1, given.found(), parts, 1, "settings").ok());
  ASSERT_TRUE(log(*writer, 1, given).ok());
  ASSERT_TRUE(writer->sync().ok());
  ASSERT_EQ(read().entries.size(), 1U);
  expect_entry(read().entries[0], given);
  EXPECT_FALSE(Writer::create(*disk_, kIdentity, 0, {4}, {.unsynced_steps = 0}).ok());
}

TEST_F(WriterTest, ClosedInTheMiddleOfAStepItEndsIt) {
  const Given given = give(1, 1.0f);
  for (int i = 0; i < 20; ++i) {
    SCOPED_TRACE(i);
    TearDown();
    SetUp();
    {
      const auto writer = make();
      ASSERT_TRUE(log(*writer, 1, given).ok());
      ASSERT_TRUE(writer->begin(2, given.found(), given.parts(), 1, "settings").ok());
    }
    const Log all = read();
    ASSERT_EQ(all.entries.size(), 2U);
    expect_entry(all.entries[1], given);
    std::map<std::string, uint64_t> bytes;
    for (const auto& one : disk_->synced()) bytes[one.name] = one.bytes;
    EXPECT_EQ(really_durable(all, bytes).size(), 2U);
  }
}

}  // namespace
}  // namespace scant::journal
