// Limits of control groups, from folders like Linux's: version 2, version 1, containers that see a
// part of the tree, and nothing at all.
#include "base/limits.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace scant::base {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class LimitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "limits.XXXXXX";
    ASSERT_NE(::mkdtemp(root_.data()), nullptr);
    write("/proc/meminfo", "MemTotal:   4194304 kB\nMemFree: 1 kB\nMemAvailable:   2097152 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  void unified(const std::string& group, const std::string& shown = "/") const {
    write("/proc/self/mountinfo", "25 1 0:23 / /proc rw - proc proc rw\n30 23 0:26 " + shown +
                                      " /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 none rw\n");
    write("/proc/self/cgroup", "0::" + group + "\n");
  }

  std::string root_;
};

TEST_F(LimitsTest, WithoutGroupsTheMachineDecides) {
  const Limits found = limits(root_);
  EXPECT_EQ(found.memory_free, 2048 * kMiB);
  EXPECT_EQ(found.memory_most, 4096 * kMiB);
  EXPECT_EQ(found.memory_by, "");
  EXPECT_GE(found.cpus, 1);
}

TEST_F(LimitsTest, TheTightestOfAllGroupsAboveDecides) {
  unified("/slice/unit");
  write("/sys/fs/cgroup/slice/memory.max", "1073741824\n");
  write("/sys/fs/cgroup/slice/memory.current", "943718400\n");
  write("/sys/fs/cgroup/slice/cpu.max", "50000 100000\n");
  write("/sys/fs/cgroup/slice/unit/memory.max", "max\n");
  write("/sys/fs/cgroup/slice/unit/memory.current", "104857600\n");
  write("/sys/fs/cgroup/slice/unit/cpu.max", "max 100000\n");
  const Limits found = limits(root_);
  EXPECT_EQ(found.memory_most, 1024 * kMiB);
  EXPECT_EQ(found.memory_free, 124 * kMiB);
  EXPECT_EQ(found.memory_by, root_ + "/sys/fs/cgroup/slice");
  EXPECT_EQ(found.cpus, 0.5);
}

TEST_F(LimitsTest, PagesOfFilesThatWereNotUsedLatelyAreFree) {
  unified("/a");
  write("/sys/fs/cgroup/a/memory.max", "104857600");
  write("/sys/fs/cgroup/a/memory.current", "104857600");
  write("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 20971520\nactive_file 4096\n");
  EXPECT_EQ(limits(root_).memory_free, 20 * kMiB);
}

TEST_F(LimitsTest, AContainerSeesItsOwnGroupAtTheTop) {
  unified("/docker/abc", "/docker/abc");
  write("/sys/fs/cgroup/memory.max", "209715200");
  write("/sys/fs/cgroup/memory.current", "1048576");
  EXPECT_EQ(limits(root_).memory_free, 199 * kMiB);
  unified("/../../elsewhere");  // a group that is not seen from here
  EXPECT_EQ(limits(root_).memory_free, 199 * kMiB);
}

TEST_F(LimitsTest, VersionOneHasAHierarchyForEachController) {
  write("/proc/self/mountinfo",
        "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n");
  write("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/one/two\n1:cpu,cpuacct:/one\n0::/\n");
  write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  write("/sys/fs/cgroup/memory/memory.usage_in_bytes", "5000000000\n");
  write("/sys/fs/cgroup/memory/one/memory.limit_in_bytes", "314572800\n");
  write("/sys/fs/cgroup/memory/one/memory.usage_in_bytes", "104857600\n");
  write("/sys/fs/cgroup/memory/one/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\n");
  write("/sys/fs/cgroup/cpu,cpuacct/one/cpu.cfs_quota_us", "150000\n");
  write("/sys/fs/cgroup/cpu,cpuacct/one/cpu.cfs_period_us", "100000\n");
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  const Limits found = limits(root_);
  EXPECT_EQ(found.memory_most, 300 * kMiB);
  EXPECT_EQ(found.memory_free, 201 * kMiB);
  EXPECT_LE(found.cpus, 1.5);
}

TEST_F(LimitsTest, WhatMakesNoSenseLimitsNothing) {
  unified("/a");
  write("/sys/fs/cgroup/a/memory.max", "many\n");
  write("/sys/fs/cgroup/a/memory.current", "\n");
  write("/sys/fs/cgroup/a/cpu.max", "0 0\n");
  write("/proc/self/mountinfo", "x\n1 2 3\n- - - -\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2\n");
  EXPECT_EQ(limits(root_).memory_free, 2048 * kMiB);
  EXPECT_GE(limits(root_).cpus, 1);
}

TEST(LimitsOfThisMachine, AreThere) {
  const Limits found = limits();
  EXPECT_GT(found.memory_free, 0u);
  EXPECT_LE(found.memory_free, found.memory_most);
  EXPECT_GT(found.cpus, 0);
}

}  // namespace
}  // namespace scant::base
