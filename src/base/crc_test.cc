// CRC32C against RFC 3720's vectors and, for every length and alignment that changes a code path,
// the table.
#include "base/crc.h"

#include <cstring>
#include <gtest/gtest.h>
#include <vector>

#include "base/rng.h"

namespace scant::base {
namespace {

std::vector<std::byte> filled(size_t size, uint8_t value) {
  return std::vector<std::byte>(size, std::byte{value});
}

TEST(Crc32c, Rfc3720Vectors) {
  EXPECT_EQ(crc32c(filled(32, 0x00)), 0x8A9136AAu);
  EXPECT_EQ(crc32c(filled(32, 0xFF)), 0x62A8AB43u);
  std::vector<std::byte> ascending(32);
  for (size_t i = 0; i < 32; ++i) ascending[i] = static_cast<std::byte>(i);
  EXPECT_EQ(crc32c(ascending), 0x46DD794Eu);
  const char* digits = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(digits, 9))), 0xE3069283u);
  EXPECT_EQ(crc32c({}), 0u);
}

TEST(Crc32c, EqualsTheTableAtEveryLengthAndAlignment) {
  Rng rng(7);
  std::vector<std::byte> data(4096 + 64);
  for (auto& byte : data) byte = static_cast<std::byte>(rng.next());
  for (size_t length = 0; length < 1100; ++length) {
    const Bytes view = Bytes(data).subspan(length % 33, length);
    ASSERT_EQ(crc32c(view), crc32c_reference(view))
        << "length " << length << " with " << crc32c_implementation();
  }
  for (size_t offset = 0; offset < 64; ++offset) {
    const Bytes view = Bytes(data).subspan(offset, 4096);
    ASSERT_EQ(crc32c(view, 0xDEADBEEFu), crc32c_reference(view, 0xDEADBEEFu))
        << "offset " << offset;
  }
}

TEST(Crc32c, Chains) {
  Rng rng(8);
  std::vector<std::byte> data(3000);
  for (auto& byte : data) byte = static_cast<std::byte>(rng.next());
  const uint32_t whole = crc32c(data);
  for (size_t cut = 0; cut <= data.size(); cut += 37) {
    EXPECT_EQ(crc32c(Bytes(data).subspan(cut), crc32c(Bytes(data).first(cut))), whole)
        << "cut " << cut;
  }
}

TEST(Crc32c, SeesEverySingleBitFlip) {
  std::vector<std::byte> data = filled(700, 0x5A);
  const uint32_t whole = crc32c(data);
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ASSERT_NE(crc32c(data), whole) << "bit " << bit;
    data[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
}

}  // namespace
}  // namespace scant::base
