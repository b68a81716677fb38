// What a journal relies on, of a real folder and of the simulated one; and what the simulated one
// forgets.
#include "journal/disk.h"

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "base/crc.h"
#include "journal/testing/disk_simulated.h"

namespace scant::journal {
namespace {

std::vector<std::byte> pattern(size_t count) {
  std::vector<std::byte> out(count);
  for (size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>(i * 7);
  return out;
}

std::string fresh_folder() {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  std::string name = std::string(test->test_suite_name()) + "-" + test->name();
  std::ranges::replace(name, '/', '-');
  std::string path = ::testing::TempDir() + "scant-journal-" + name;
  std::filesystem::remove_all(path);
  return path;
}

class AnyDisk : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    if (!GetParam()) {
      disk_ = std::make_unique<SimulatedDisk>();
      return;
    }
    folder_ = fresh_folder();
    auto opened = open_disk(folder_, true);
    ASSERT_TRUE(opened.ok()) << opened.error().to_string();
    disk_ = std::move(opened).value();
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }
  void put(const std::string& name, Bytes bytes) {
    auto file = disk_->create(name);
    ASSERT_TRUE(file.ok()) << file.error().to_string();
    ASSERT_TRUE(file.value()->append({&bytes, 1}).ok());
    ASSERT_TRUE(file.value()->sync().ok());
  }
  std::unique_ptr<Disk> disk_;
  std::string folder_;
};

TEST_P(AnyDisk, AppendsPiecesInOrderAndReadsThemBack) {
  const auto all = pattern(5000);
  auto file = disk_->create("a");
  ASSERT_TRUE(file.ok());
  std::vector<Bytes> pieces;  // more than one writev() takes, some empty
  for (size_t at = 0; at < all.size(); at += 25) {
    pieces.push_back(Bytes(all).subspan(at, 25));
    pieces.push_back({});
  }
  ASSERT_TRUE(file.value()->append(std::span(pieces).first(90)).ok());
  ASSERT_TRUE(file.value()->append({}).ok());
  ASSERT_TRUE(file.value()->append(std::span(pieces).subspan(90)).ok());
  ASSERT_TRUE(file.value()->sync().ok());
  ASSERT_TRUE(disk_->sync_file("a").ok());
  EXPECT_EQ(disk_->read("a").value(), all);
  EXPECT_EQ(disk_->sum("a").value().bytes, all.size());
  EXPECT_EQ(disk_->sum("a").value().crc, base::crc32c(all));
  put("a", Bytes(all).first(3));
  EXPECT_EQ(disk_->read("a").value().size(), 3U) << "created again it is empty first";
}

TEST_P(AnyDisk, FoldersAreListedRenamedAndRemovedWithAllInThem) {
  ASSERT_TRUE(disk_->make_folder("f").ok());
  ASSERT_TRUE(disk_->make_folder("f").ok());
  put("f/b", pattern(3));
  put("f/a", pattern(4));
  put("c", pattern(5));
  EXPECT_EQ(disk_->list("").value(), (std::vector<std::string>{"c", "f"}));
  EXPECT_EQ(disk_->list("f").value(), (std::vector<std::string>{"a", "b"}));
  ASSERT_TRUE(disk_->sync_folder("f").ok());
  ASSERT_TRUE(disk_->rename("f", "g").ok());
  ASSERT_TRUE(disk_->sync_folder("").ok());
  EXPECT_EQ(disk_->read("g/a").value().size(), 4U);
  EXPECT_FALSE(disk_->list("f").ok());
  ASSERT_TRUE(disk_->make_folder("f").ok());
  EXPECT_FALSE(disk_->rename("f", "g").ok()) << "onto a folder that is not empty";
  EXPECT_TRUE(disk_->rename("g", "f").ok());
  put("d", pattern(6));
  ASSERT_TRUE(disk_->rename("d", "c").ok());
  EXPECT_EQ(disk_->read("c").value().size(), 6U);
  ASSERT_TRUE(disk_->remove("f").ok());
  ASSERT_TRUE(disk_->remove("c").ok());
  ASSERT_TRUE(disk_->remove("never there").ok());
  EXPECT_TRUE(disk_->list("").value().empty());
}

TEST_P(AnyDisk, WhatIsMissingIsTold) {
  const auto missing = [](const auto& result) { return !result && is_missing(result.error()); };
  EXPECT_TRUE(missing(disk_->read("a")));
  EXPECT_TRUE(missing(disk_->read("f/a")));
  EXPECT_TRUE(missing(disk_->sum("a")));
  EXPECT_TRUE(missing(disk_->list("f")));
  EXPECT_TRUE(missing(disk_->rename("a", "b")));
  EXPECT_TRUE(missing(disk_->sync_file("a")));
  EXPECT_TRUE(missing(disk_->sync_folder("f")));
  EXPECT_TRUE(missing(disk_->create("f/a")));
  EXPECT_EQ(disk_->read("a").error().code, ErrorCode::io);
}

INSTANTIATE_TEST_SUITE_P(Disk, AnyDisk, ::testing::Bool(), [](const auto& test) {
  return test.param ? std::string("real") : std::string("simulated");
});

TEST(RealDisk, IsOpenedForReadingOnlyWhereItIs) {
  const std::string path = fresh_folder();
  const auto none = open_disk(path, false);
  ASSERT_FALSE(none.ok());
  EXPECT_TRUE(is_missing(none.error()));
  EXPECT_NE(none.error().message.find(path), std::string::npos);
  EXPECT_FALSE(open_disk(path + "/below", true).ok());
  ASSERT_TRUE(open_disk(path, true).ok());
  ASSERT_TRUE(open_disk(path, false).ok());
  auto file = open_disk(path, true).value()->create("file");
  ASSERT_TRUE(file.ok());
  EXPECT_FALSE(open_disk(path + "/file", false).ok());
  std::filesystem::remove_all(path);
}

// A file that may not grow takes a piece in part, and gives it back.
TEST(RealDisk, AnAppendThatDoesNotFitLeavesTheFileAsItWas) {
  const std::string path = fresh_folder();
  auto disk = open_disk(path, true);
  ASSERT_TRUE(disk.ok());
  auto file = disk.value()->create("a");
  ASSERT_TRUE(file.ok());
  const auto all = pattern(10000);
  const Bytes first = Bytes(all).first(3000);
  ASSERT_TRUE(file.value()->append({&first, 1}).ok());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit less{.rlim_cur = 8000, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &less), 0);
  const std::array<Bytes, 2> rest{Bytes(all).subspan(3000, 4000), Bytes(all).subspan(7000)};
  const Result<void> full = file.value()->append(rest);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().sys_errno, EFBIG);
  EXPECT_EQ(disk.value()->read("a").value().size(), 3000U);
  ASSERT_TRUE(file.value()->append(rest).ok());
  EXPECT_EQ(disk.value()->read("a").value(), all);
  std::filesystem::remove_all(path);
}

// Over many power cuts: what was synced is always there, what was not is seen lost, kept, cut and
// zeroed; names likewise.
TEST(Simulated, APowerCutTakesOnlyWhatWasNotSynced) {
  const auto all = pattern(20000);
  bool lost_name = false;
  bool kept_name = false;
  bool kept_tail = false;
  bool cut_tail = false;
  bool zeros = false;
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE(seed);
    SimulatedDisk disk;
    auto a = disk.create("a");
    const Bytes begin = Bytes(all).first(5000);
    const Bytes rest = Bytes(all).subspan(5000);
    ASSERT_TRUE(a.value()->append({&begin, 1}).ok());
    ASSERT_TRUE(a.value()->sync().ok());
    ASSERT_TRUE(disk.sync_folder("").ok());
    ASSERT_TRUE(a.value()->append({&rest, 1}).ok());
    auto b = disk.create("b");
    base::Rng rng(seed);
    disk.restart(rng);
    const auto found = disk.read("a").value();
    ASSERT_GE(found.size(), begin.size());
    EXPECT_TRUE(std::equal(begin.begin(), begin.end(), found.begin()));
    (disk.read("b").ok() ? kept_name : lost_name) = true;
    (found.size() == all.size() || std::equal(found.begin(), found.end(), all.begin()) ? kept_tail
                                                                                       : zeros) =
        true;
    cut_tail = cut_tail || found.size() < all.size();
  }
  EXPECT_TRUE(lost_name && kept_name && kept_tail && cut_tail && zeros);
}

TEST(Simulated, WhenThePowerIsOffNothingHappens) {
  SimulatedDisk disk;
  auto file = disk.create("a");
  const auto all = pattern(100);
  const Bytes piece(all);
  disk.cut_power_at(2);
  EXPECT_FALSE(file.value()->append({&piece, 1}).ok());
  EXPECT_TRUE(disk.is_off());
  EXPECT_FALSE(file.value()->append({&piece, 1}).ok());
  EXPECT_FALSE(file.value()->sync().ok());
  EXPECT_FALSE(disk.read("a").ok());
  EXPECT_FALSE(disk.create("b").ok());
  EXPECT_EQ(disk.operations(), 2U);
  disk.restart_process();
  EXPECT_EQ(disk.read("a").value().size(), 50U) << "what was under way is there in part";
}

}  // namespace
}  // namespace scant::journal
