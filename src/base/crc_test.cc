// CRC32C against RFC 3720's vectors and, for every length and alignment that changes a code path,
// the table; once for each implementation that this CPU runs.
#include "base/crc.h"

#include <gtest/gtest.h>
#include <string>
#include <vector>

#include "base/rng.h"

namespace scant::base {
namespace {

constexpr uint64_t kSeed = 7;

std::vector<std::byte> filled(size_t size, uint8_t value) {
  return std::vector<std::byte>(size, std::byte{value});
}

std::vector<std::byte> random_bytes(size_t size, uint64_t stream) {
  Rng rng(kSeed, stream);
  std::vector<std::byte> data(size);
  for (auto& byte : data) byte = static_cast<std::byte>(rng.next());
  return data;
}

class Crc32c : public testing::TestWithParam<Crc32cImplementation> {
 protected:
  uint32_t crc(Bytes data, uint32_t before = 0) const {
    return ~GetParam().update(data.data(), data.size(), ~before);
  }
};

TEST_P(Crc32c, Rfc3720Vectors) {
  EXPECT_EQ(crc(filled(32, 0x00)), 0x8A9136AAu);
  EXPECT_EQ(crc(filled(32, 0xFF)), 0x62A8AB43u);
  std::vector<std::byte> ascending(32);
  std::vector<std::byte> descending(32);
  for (size_t i = 0; i < 32; ++i) {
    ascending[i] = static_cast<std::byte>(i);
    descending[i] = static_cast<std::byte>(31 - i);
  }
  EXPECT_EQ(crc(ascending), 0x46DD794Eu);
  EXPECT_EQ(crc(descending), 0x113FDB5Cu);
  const char* digits = "123456789";
  EXPECT_EQ(crc(std::as_bytes(std::span(digits, 9))), 0xE3069283u);
  EXPECT_EQ(crc({}), 0u);
  EXPECT_EQ(crc({}, 0x12345678u), 0x12345678u);
}

TEST_P(Crc32c, EqualsTheTableAtEveryLengthAndAlignment) {
  const auto data = random_bytes(4096 + 64, 0);
  for (size_t length = 0; length <= 1100; ++length) {
    const Bytes view = Bytes(data).subspan(length % 64, length);
    ASSERT_EQ(crc(view), crc32c_reference(view)) << "length " << length << " seed " << kSeed;
  }
  for (size_t offset = 0; offset < 64; ++offset) {
    const Bytes view = Bytes(data).subspan(offset, 4096 - offset * 13);
    ASSERT_EQ(crc(view, 0xDEADBEEFu), crc32c_reference(view, 0xDEADBEEFu)) << "offset " << offset;
  }
}

TEST_P(Crc32c, EqualsTheTableOnALargeArray) {
  const auto data = random_bytes((size_t{1} << 20) + 77, 1);
  EXPECT_EQ(crc(data), crc32c_reference(data)) << "seed " << kSeed;
}

TEST_P(Crc32c, Chains) {
  const auto data = random_bytes(3000, 2);
  const uint32_t whole = crc(data);
  for (size_t cut = 0; cut <= data.size(); cut += 37) {
    EXPECT_EQ(crc(Bytes(data).subspan(cut), crc(Bytes(data).first(cut))), whole) << "cut " << cut;
  }
}

TEST_P(Crc32c, SeesEverySingleBitFlip) {
  std::vector<std::byte> data = filled(1500, 0x5A);
  const uint32_t whole = crc(data);
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ASSERT_NE(crc(data), whole) << "bit " << bit;
    data[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
}

INSTANTIATE_TEST_SUITE_P(OnThisCpu, Crc32c,
                         testing::ValuesIn(crc32c_implementations().begin(),
                                           crc32c_implementations().end()),
                         [](const auto& implementation) {
                           std::string name = implementation.param.name;
                           std::erase(name, '.');
                           return name;
                         });

TEST(Crc32cDispatch, RunsTheFastest) {
  const auto data = random_bytes(5000, 3);
  EXPECT_STREQ(crc32c_implementation(), crc32c_implementations().front().name);
  EXPECT_EQ(crc32c(data), crc32c_reference(data)) << "seed " << kSeed;
  EXPECT_STREQ(crc32c_implementations().back().name, "table");
}

}  // namespace
}  // namespace scant::base
