// Fields of messages: their bytes, and what happens at the end.
#include "base/bytes.h"

#include <array>
#include <gtest/gtest.h>

namespace scant::base {
namespace {

TEST(Bytes, FieldsFollowEachOtherLowestByteFirst) {
  std::array<std::byte, 17> memory{};
  ByteWriter w(memory);
  w.put(uint8_t{0x01});
  w.put(uint16_t{0x0302});
  w.put(uint32_t{0x07060504});
  w.put(uint64_t{0x0F0E0D0C0B0A0908});
  const std::array<std::byte, 2> tail{std::byte{0x10}, std::byte{0x11}};
  w.put_bytes(tail);
  EXPECT_EQ(w.used(), memory.size());
  for (size_t i = 0; i < memory.size(); ++i) EXPECT_EQ(memory[i], std::byte(i + 1)) << i;
  ByteReader r(memory);
  EXPECT_EQ(r.get<uint8_t>(), 0x01);
  EXPECT_EQ(r.get<uint16_t>(), 0x0302);
  EXPECT_EQ(r.get<uint32_t>(), 0x07060504u);
  EXPECT_EQ(r.get<uint64_t>(), 0x0F0E0D0C0B0A0908u);
  EXPECT_FALSE(r.at_end());
  EXPECT_EQ(r.get_bytes(2).data(), memory.data() + 15);  // a view, no copy
  EXPECT_TRUE(r.at_end());
  EXPECT_TRUE(r.ok());
}

TEST(Bytes, PastTheEndThereIsZeroAndItIsTold) {
  const std::array<std::byte, 3> memory{std::byte{1}, std::byte{2}, std::byte{3}};
  ByteReader numbers(memory);
  EXPECT_EQ(numbers.get<uint32_t>(), 0u);
  EXPECT_FALSE(numbers.ok());
  EXPECT_EQ(numbers.get<uint16_t>(), 0x0201);  // what there is can still be read
  EXPECT_FALSE(numbers.ok());
  ByteReader bytes(memory);
  EXPECT_TRUE(bytes.get_bytes(4).empty());
  EXPECT_FALSE(bytes.ok());
  ByteReader huge(memory);
  EXPECT_TRUE(huge.get_bytes(SIZE_MAX).empty());
  EXPECT_FALSE(huge.ok());
  ByteReader none(Bytes{});
  EXPECT_TRUE(none.at_end());
  EXPECT_TRUE(none.get_bytes(0).empty());
  EXPECT_TRUE(none.ok());
}

TEST(BytesDeathTest, NothingIsWrittenPastTheEnd) {
  std::array<std::byte, 3> memory{};
  const std::array<std::byte, 2> two{};
  ByteWriter w(memory);
  w.put(uint16_t{1});
  EXPECT_DEATH(w.put(uint16_t{2}), "out_.size");
  EXPECT_DEATH(w.put_bytes(two), "out_.size");
  w.put(uint8_t{3});
  w.put_bytes({});
  EXPECT_EQ(w.used(), memory.size());
}

}  // namespace
}  // namespace scant::base
