// Bases written beside training, on a real folder: named only when every rank's files are durable,
// with the sums of what was copied; and what is left when somebody ends too early.
#include "journal/base_writer.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <gtest/gtest.h>

#include "base/crc.h"
#include "base/little_endian.h"
#include "base/rng.h"
#include "journal/testing/watched_disk.h"

namespace scant::journal {
namespace {

using testing::WatchedDisk;

const Identity kIdentity{.job = 3, .model = 4};
constexpr Duration kLong = std::chrono::seconds(60);  // a limit, not a measure
constexpr Duration kShort = std::chrono::milliseconds(1);

std::vector<std::byte> random_bytes(uint64_t seed, size_t count) {
  base::Rng rng(seed);
  std::vector<std::byte> out(count);
  for (std::byte& one : out) one = static_cast<std::byte>(rng.next());
  return out;
}

class BaseWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "scant-base-writer-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    auto opened = open_disk(folder_, true);
    ASSERT_TRUE(opened.ok()) << opened.error().to_string();
    disk_ = std::make_unique<WatchedDisk>(std::move(opened).value());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<BaseWriter> make(const BaseWriterOptions& options = {}) {
    auto made = BaseWriter::create(*disk_, options);
    EXPECT_TRUE(made.ok());
    return std::move(made).value();
  }
  static BaseIndex index_of(uint64_t step, uint32_t ranks = 1) {
    return {.identity = kIdentity,
            .timeline = 0,
            .step = step,
            .sequence = step,
            .ranks = ranks,
            .files = {}};
  }
  // One file of these bytes, in two pieces.
  static std::vector<BaseSource> source(const std::string& name, Bytes bytes) {
    const size_t half = bytes.size() / 2;
    BaseSource file;
    file.name = name;
    file.head = std::vector<std::byte>(5, std::byte{9});
    file.copied = {bytes.first(half), {}, bytes.subspan(half)};
    return {file};
  }
  void expect_file(const std::string& name, Bytes head, Bytes bytes) {
    const auto read = disk_->read(name);
    ASSERT_TRUE(read.ok()) << read.error().to_string();
    const Bytes is = read.value();
    ASSERT_EQ(is.size(), head.size() + bytes.size()) << name;
    EXPECT_TRUE(std::ranges::equal(is.first(head.size()), head)) << name;
    EXPECT_TRUE(std::ranges::equal(is.subspan(head.size()), bytes)) << name;
  }
  void expect_whole(uint64_t step, size_t files) {
    const auto contents = look(*disk_);
    ASSERT_TRUE(contents.ok());
    EXPECT_TRUE(contents.value().problems.empty()) << contents.value().problems.front();
    ASSERT_FALSE(contents.value().bases.empty());
    EXPECT_EQ(contents.value().bases[0].index.step, step);
    EXPECT_EQ(contents.value().bases[0].index.files.size(), files);
    ASSERT_TRUE(contents.value().manifest.has_value());
    EXPECT_EQ(contents.value().manifest->base, step);
    EXPECT_EQ(contents.value().manifest->sequence, step);
  }
  void write_base(BaseWriter& writer, uint64_t step) {
    const auto bytes = random_bytes(step, 1000);
    ASSERT_TRUE(writer.start(index_of(step), source("model", bytes)).ok());
    ASSERT_TRUE(writer.finish_copying().ok());
    const auto done = writer.poll(kLong);
    ASSERT_TRUE(done.ok()) << done.error().to_string();
    ASSERT_TRUE(done.value().has_value());
    EXPECT_TRUE(done.value()->sealed);
  }
  size_t bases() {
    const auto names = disk_->list("").value();
    return static_cast<size_t>(std::ranges::count_if(
        names, [](const std::string& name) { return name.starts_with("base-"); }));
  }

  std::string folder_;
  std::unique_ptr<WatchedDisk> disk_;
};

const std::vector<std::byte> kHead(5, std::byte{9});

TEST_F(BaseWriterTest, WritesWhatIsCopiedMadeAndLate) {
  const auto writer = make();
  auto bytes = random_bytes(1, 100000);
  const auto copy = bytes;
  auto files = source("model", bytes);
  const auto made = random_bytes(2, 333);
  files.push_back({.name = "residuals",
                   .head = {},
                   .copied = {},
                   .made = [&made] { return std::vector<std::byte>(made); },
                   .tensor = "residuals"});
  ASSERT_TRUE(writer->start(index_of(20), std::move(files)).ok());
  EXPECT_TRUE(writer->busy());
  writer->grant(1000);
  writer->grant(0);
  ASSERT_TRUE(writer->finish_copying("late", random_bytes(3, 77)).ok());
  std::ranges::fill(bytes, std::byte{0});  // training goes on
  EXPECT_EQ(writer->finish_copying().value(), 0.0) << "once is enough";
  const auto done = writer->poll(kLong);
  ASSERT_TRUE(done.ok() && done.value().has_value());
  EXPECT_FALSE(writer->busy());
  EXPECT_EQ(done.value()->step, 20U);
  EXPECT_GT(done.value()->bytes, 100000U + 333 + 77);
  expect_whole(20, 4);
  expect_file(base_name(20) + "/model", kHead, copy);
  expect_file(base_name(20) + "/late", {}, random_bytes(3, 77));
  const auto residuals = disk_->read(base_name(20) + "/residuals").value();
  const auto json = base::load_little<uint64_t>(residuals.data());
  EXPECT_EQ(json % 8, 0U);
  const std::string text(reinterpret_cast<const char*>(residuals.data()) + 8, json);
  EXPECT_EQ(text.substr(0, text.find_last_not_of(' ') + 1),
            R"({"residuals":{"dtype":"U8","shape":[333],"data_offsets":[0,333]}})");
  expect_file(base_name(20) + "/residuals", Bytes(residuals).first(8 + json), made);
}

// Far more bytes than staging holds, granted in pieces of all sizes.
TEST_F(BaseWriterTest, StagingMayBeSmall) {
  constexpr uint64_t kSeed = 7;
  base::Rng rng(kSeed);
  const auto writer = make({.staging_bytes = 100, .chunk_bytes = 64});
  for (uint64_t step = 1; step <= 5; ++step) {
    SCOPED_TRACE("seed " + std::to_string(kSeed) + ", step " + std::to_string(step));
    const auto a = random_bytes(step, 20000);
    const auto b = random_bytes(step + 100, rng.below(3000));
    auto files = source("a", a);
    files.push_back(source("b", b)[0]);
    files.push_back(source("empty", {})[0]);
    ASSERT_TRUE(writer->start(index_of(step), std::move(files)).ok());
    for (int i = 0; i < 2000; ++i) writer->grant(rng.below(200));
    ASSERT_TRUE(writer->finish_copying().ok());
    ASSERT_TRUE(writer->poll(kLong).ok());
    expect_whole(step, 4);
    expect_file(base_name(step) + "/a", kHead, a);
    expect_file(base_name(step) + "/b", kHead, b);
    expect_file(base_name(step) + "/empty", kHead, {});
  }
}

TEST_F(BaseWriterTest, IsNamedWhenAllRanksAreDone) {
  std::vector<std::unique_ptr<BaseWriter>> writers;
  for (uint32_t rank = 0; rank < 3; ++rank) writers.push_back(make({.rank = rank, .ranks = 3}));
  for (uint64_t step = 10; step <= 30; step += 10) {
    SCOPED_TRACE(step);
    std::vector<std::vector<std::byte>> bytes;
    for (uint32_t rank = 0; rank < 3; ++rank) bytes.push_back(random_bytes(step + rank, 5000));
    for (uint32_t rank = 0; rank < 3; ++rank) {
      auto files = source("rank-" + std::to_string(rank), bytes[rank]);
      ASSERT_TRUE(writers[rank]->start(index_of(step, 3), std::move(files)).ok());
      EXPECT_FALSE(writers[rank]->poll().value().has_value());
    }
    for (const uint32_t rank : {0U, 2U}) ASSERT_TRUE(writers[rank]->finish_copying().ok());
    const auto second = writers[2]->poll(kLong);
    ASSERT_TRUE(second.ok() && second.value().has_value());
    EXPECT_FALSE(second.value()->sealed);
    const auto waits = writers[0]->poll(kShort);
    ASSERT_FALSE(waits.ok());
    EXPECT_EQ(waits.error().code, ErrorCode::timeout);
    EXPECT_TRUE(writers[0]->busy());
    EXPECT_FALSE(disk_->list(base_name(step)).ok());
    ASSERT_TRUE(writers[1]->finish_copying().ok());
    ASSERT_TRUE(writers[1]->poll(kLong).value().has_value());
    const auto first = writers[0]->poll(kLong);
    ASSERT_TRUE(first.ok() && first.value().has_value());
    EXPECT_TRUE(first.value()->sealed);
    expect_whole(step, 6);
    for (uint32_t rank = 0; rank < 3; ++rank) {
      expect_file(base_name(step) + "/rank-" + std::to_string(rank), kHead, bytes[rank]);
    }
  }
}

// A rank that is done begins the next base while the first rank still names this one.
TEST_F(BaseWriterTest, ClearingLeavesWhatOthersBegan) {
  const auto bytes = random_bytes(1, 100);
  const auto first = make({.rank = 0, .ranks = 2});
  const auto second = make({.rank = 1, .ranks = 2});
  ASSERT_TRUE(first->start(index_of(10, 2), source("a", bytes)).ok());
  ASSERT_TRUE(second->start(index_of(10, 2), source("b", bytes)).ok());
  ASSERT_TRUE(second->finish_copying().ok());
  ASSERT_TRUE(second->poll(kLong).value().has_value());
  ASSERT_TRUE(second->start(index_of(20, 2), source("b", bytes)).ok());
  ASSERT_TRUE(second->finish_copying().ok());
  ASSERT_TRUE(second->poll(kLong).value().has_value());
  ASSERT_TRUE(first->finish_copying().ok());
  ASSERT_TRUE(first->poll(kLong).value().has_value());
  expect_whole(10, 4);
  ASSERT_TRUE(first->start(index_of(20, 2), source("a", bytes)).ok());
  ASSERT_TRUE(first->finish_copying().ok());
  ASSERT_TRUE(first->poll(kLong).ok());
  expect_whole(20, 4);
}

TEST_F(BaseWriterTest, KeepsSoManyBases) {
  for (const uint32_t keep : {1U, 2U, 3U}) {
    SCOPED_TRACE(keep);
    TearDown();
    SetUp();
    {
      const auto writer = make({.keep_bases = keep});
      for (uint64_t step = 10; step <= 40; step += 10) write_base(*writer, step);
    }
    EXPECT_EQ(bases(), keep);
    const auto after = make({.keep_bases = keep});  // another process
    write_base(*after, 50);
    EXPECT_EQ(bases(), keep);
    const auto contents = look(*disk_);
    ASSERT_TRUE(contents.ok());
    EXPECT_EQ(contents.value().manifest->oldest, 60U - 10 * keep);
    EXPECT_EQ(contents.value().bases.size(), keep);
  }
}

TEST_F(BaseWriterTest, AFailureReachesTheUserAndStays) {
  const auto bytes = random_bytes(1, 5000);
  for (uint64_t at = 1; at <= 12; ++at) {
    SCOPED_TRACE(at);
    TearDown();
    SetUp();
    const auto writer = make({.staging_bytes = 2048, .chunk_bytes = 1024});
    disk_->fail_append = at % 2 == 1 ? (at + 1) / 2 : 0;
    disk_->fail_sync = at % 2 == 0 && at <= 8 ? at / 2 : 0;
    if (disk_->fail_append == 0 && disk_->fail_sync == 0) continue;
    ASSERT_TRUE(writer->start(index_of(1), source("model", bytes)).ok());
    static_cast<void>(writer->finish_copying());
    const auto done = writer->poll(kLong);
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().sys_errno, at % 2 == 1 ? 28 : 5);
    EXPECT_FALSE(writer->busy());
    const Result<void> again = writer->start(index_of(2), source("model", bytes));
    ASSERT_FALSE(again.ok());
    EXPECT_EQ(again.error().sys_errno, done.error().sys_errno);
    const auto contents = look(*disk_);
    ASSERT_TRUE(contents.ok());
    EXPECT_FALSE(contents.value().manifest.has_value());
  }
}

TEST_F(BaseWriterTest, AFailureWhileCopyingIsSeenBeforeItEnds) {
  const auto bytes = random_bytes(1, 5000);
  const auto writer = make({.staging_bytes = 64, .chunk_bytes = 32});
  disk_->fail_append = 1;
  ASSERT_TRUE(writer->start(index_of(1), source("model", bytes)).ok());
  writer->grant(3000);
  while (writer->poll().ok()) {
  }
  EXPECT_FALSE(writer->finish_copying().ok());
  EXPECT_FALSE(writer->poll().ok());
}

TEST_F(BaseWriterTest, ClosedWhileItCopiesItDropsTheBase) {
  const auto bytes = random_bytes(1, 100000);
  for (const uint64_t granted : {uint64_t{0}, uint64_t{1}, uint64_t{5000}, uint64_t{1} << 40}) {
    SCOPED_TRACE(granted);
    {
      const auto writer = make({.staging_bytes = 2048, .chunk_bytes = 1024});
      ASSERT_TRUE(writer->start(index_of(1), source("model", bytes)).ok());
      writer->grant(granted);
    }
    EXPECT_TRUE(look(*disk_).value().empty());
    ASSERT_TRUE(clear_old(*disk_, {.base = UINT64_MAX}).ok());
    EXPECT_TRUE(disk_->list("").value().empty());
  }
}

TEST_F(BaseWriterTest, ClosedWhileAPeerIsMissingItLeavesNoBase) {
  const auto bytes = random_bytes(1, 1000);
  {
    const auto writer = make({.rank = 0, .ranks = 2});
    ASSERT_TRUE(writer->start(index_of(1, 2), source("model", bytes)).ok());
    ASSERT_TRUE(writer->finish_copying().ok());
    EXPECT_FALSE(writer->poll(kShort).ok());
  }
  EXPECT_TRUE(look(*disk_).value().empty());
}

TEST_F(BaseWriterTest, AnotherBaseUnderTheSameNameIsAMismatch) {
  const auto bytes = random_bytes(1, 100);
  for (int which = 1; which < 3; ++which) {
    SCOPED_TRACE(which);
    TearDown();
    SetUp();
    const auto first = make({.rank = 0, .ranks = 2});
    const auto second = make({.rank = 1, .ranks = 2});
    BaseIndex other = index_of(10, 2);
    if (which == 1) other.timeline = 1;
    if (which == 2) other.identity.job = 99;
    ASSERT_TRUE(second->start(other, source("b", bytes)).ok());
    ASSERT_TRUE(second->finish_copying().ok());
    ASSERT_TRUE(second->poll(kLong).ok());
    ASSERT_TRUE(first->start(index_of(10, 2), source("a", bytes)).ok());
    ASSERT_TRUE(first->finish_copying().ok());
    const auto done = first->poll(kLong);
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().code, ErrorCode::mismatch);
  }
}

}  // namespace
}  // namespace scant::journal
