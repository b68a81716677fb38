// Memory between two ranks: nothing before the reader has it, every block once, and no segment that
// could take itself away.
#include "net/tcp/shared_blocks.h"

#include <algorithm>
#include <array>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace scant::net {
namespace {

std::vector<std::byte> pattern(size_t bytes, unsigned salt) {
  std::vector<std::byte> made(bytes);
  for (size_t i = 0; i < bytes; ++i) made[i] = static_cast<std::byte>(i * 31 + salt);
  return made;
}

struct Pair {
  SharedBlocks writer;
  SharedBlocks reader;
};

Pair make_pair() {
  auto writer = SharedBlocks::make();
  EXPECT_TRUE(writer.ok()) << writer.error().to_string();
  EXPECT_FALSE(writer.value().write(pattern(100, 0)).has_value()) << "nobody has mapped it";
  auto reader = SharedBlocks::map(Fd(dup(writer.value().segment().get())));
  EXPECT_TRUE(reader.ok()) << reader.error().to_string();
  return {std::move(writer).value(), std::move(reader).value()};
}

TEST(SharedBlocks, EveryBlockIsUsedOnceUntilItIsFreed) {
  auto [writer, reader] = make_pair();
  std::vector<uint32_t> used;
  for (unsigned i = 0; i < kSharedBlocks; ++i) {
    const auto block = writer.write(pattern(kSharedBlockBytes - i, i));
    ASSERT_TRUE(block.has_value());
    EXPECT_EQ(std::count(used.begin(), used.end(), *block), 0);
    used.push_back(*block);
  }
  EXPECT_FALSE(writer.write(pattern(1, 9)).has_value());
  for (unsigned i = 0; i < kSharedBlocks; ++i) {
    const auto expected = pattern(kSharedBlockBytes - i, i);
    const Bytes got = reader.read(used[i], expected.size());
    EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin(), expected.end()));
  }
  reader.free(used[2]);
  EXPECT_EQ(writer.write(pattern(5, 7)), used[2]);
  EXPECT_FALSE(writer.write(pattern(1, 9)).has_value());
}

TEST(SharedBlocks, MoreThanABlockDoesNotFit) {
  auto [writer, reader] = make_pair();
  EXPECT_FALSE(writer.write(pattern(kSharedBlockBytes + 1, 0)).has_value());
  EXPECT_TRUE(writer.write(pattern(kSharedBlockBytes, 0)).has_value());
}

TEST(SharedBlocks, AWriterThatIsGoneLeavesTheReaderItsMemory) {
  auto [writer, reader] = make_pair();
  const auto expected = pattern(3000, 4);
  const auto block = writer.write(expected);
  ASSERT_TRUE(block.has_value());
  { const SharedBlocks gone = std::move(writer); }
  const Bytes got = reader.read(*block, expected.size());
  EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin(), expected.end()));
}

TEST(SharedBlocks, TheSegmentCannotShrink) {
  auto writer = SharedBlocks::make();
  ASSERT_TRUE(writer.ok());
  EXPECT_NE(ftruncate(writer.value().segment().get(), 0), 0);
}

TEST(SharedBlocks, ForeignMemoryIsRefused) {
  auto writer = SharedBlocks::make();
  ASSERT_TRUE(writer.ok());
  const off_t size = lseek(writer.value().segment().get(), 0, SEEK_END);
  struct Row {
    off_t size;
    int seals;
    const char* words;
  };
  const std::array<Row, 3> rows = {{
      {size, 0, "could shrink"},
      {size - 1, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
      {size + 4096, F_SEAL_SHRINK | F_SEAL_GROW, "another size"},
  }};
  for (const Row& row : rows) {
    Fd foreign(memfd_create("foreign", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    ASSERT_EQ(ftruncate(foreign.get(), row.size), 0);
    ASSERT_EQ(fcntl(foreign.get(), F_ADD_SEALS, row.seals), 0);
    const auto mapped = SharedBlocks::map(std::move(foreign));
    ASSERT_FALSE(mapped.ok());
    EXPECT_EQ(mapped.error().code, ErrorCode::corrupt);
    EXPECT_NE(mapped.error().message.find(row.words), std::string::npos);
  }
  // No memory at all: a pipe has no size.
  std::array<int, 2> ends{};
  ASSERT_EQ(pipe(ends.data()), 0);
  const Fd other_end(ends[1]);
  EXPECT_FALSE(SharedBlocks::map(Fd(ends[0])).ok());
}

}  // namespace
}  // namespace scant::net
