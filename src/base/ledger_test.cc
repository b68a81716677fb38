// The ledger counts what a process uses, and a meter counts what folders like Linux's say.
#include "base/ledger.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <vector>

namespace scant::base {
namespace {

TEST(Ledger, CountsCpuTimeAndMemory) {
  const Used before = used();
  EXPECT_GT(before.resident_bytes, 0u);
  EXPECT_GE(before.resident_peak_bytes, before.resident_bytes / 2);
  {
    std::vector<char> much(64u << 20u, 1);
    const Used during = used();
    EXPECT_GT(during.resident_bytes, before.resident_bytes + (60u << 20u));
    EXPECT_GE(during.resident_peak_bytes, before.resident_bytes + (60u << 20u));
    EXPECT_EQ(much[5], 1);
  }
  volatile uint64_t work = 0;
  while (used().cpu_s < before.cpu_s + 0.01) work = work + 1;
  EXPECT_GT(used().cpu_s, before.cpu_s);
}

class Folder {
 public:
  Folder() {
    std::string name = ::testing::TempDir() + "powercap.XXXXXX";
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  void domain(const std::string& folder, const std::string& name, uint64_t energy_uj) const {
    std::filesystem::create_directories(path / folder);
    std::ofstream(path / folder / "name") << name << '\n';
    std::ofstream(path / folder / "energy_uj") << energy_uj << '\n';
    std::ofstream(path / folder / "max_energy_range_uj") << 1'000'000'000 << '\n';
  }
  std::filesystem::path path;
};

TEST(EnergyMeter, AddsPackagesAndMemory) {
  const Folder folder;
  folder.domain("intel-rapl:0", "package-0", 5'000'000);
  folder.domain("intel-rapl:0:0", "core", 1'000'000);  // within the package
  folder.domain("intel-rapl:0:1", "dram", 900'000'000);
  folder.domain("intel-rapl:1", "psys", 1'000'000);
  EnergyMeter meter(folder.path.string());
  ASSERT_TRUE(meter.counts());
  EXPECT_EQ(meter.joules(), 0);
  folder.domain("intel-rapl:0", "package-0", 7'500'000);
  folder.domain("intel-rapl:0:0", "core", 9'000'000);
  folder.domain("intel-rapl:1", "psys", 9'000'000);
  EXPECT_DOUBLE_EQ(meter.joules(), 2.5);
  folder.domain("intel-rapl:0:1", "dram", 50'000'000);  // wrapped
  EXPECT_DOUBLE_EQ(meter.joules(), 2.5 + 150);
  std::filesystem::remove(folder.path / "intel-rapl:0/energy_uj");
  EXPECT_DOUBLE_EQ(meter.joules(), 2.5 + 150);
}

TEST(EnergyMeter, SaysWhyItCountsNothing) {
  const Folder folder;
  EnergyMeter none(folder.path.string() + "/missing");
  EXPECT_FALSE(none.counts());
  EXPECT_NE(none.why().find("no energy counters"), std::string::npos);
  EXPECT_EQ(none.joules(), 0);
  folder.domain("intel-rapl:0", "package-0", 5);
  std::filesystem::remove(folder.path / "intel-rapl:0/energy_uj");
  const EnergyMeter closed(folder.path.string());
  EXPECT_FALSE(closed.counts());
  EXPECT_NE(closed.why().find("cannot be read"), std::string::npos);
}

}  // namespace
}  // namespace scant::base
