// Positions: what is chosen is the smallest, what is written is read, and no bytes make the reader
// leave its buffers or accept what the grammar does not say.
#include "codec/record/positions.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <memory>

#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::counted;
using testing::random_positions;
using testing::sparse_kinds;
using Positions = std::vector<uint16_t>;

constexpr uint32_t kSizes[] = {1, 2, 7, 8, 9, 64, 251, 4099, 65521, 65536};
constexpr double kDensities[] = {0, 0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.9, 1};

std::vector<std::byte> encoded(const Positions& positions, uint32_t elements, uint8_t kind) {
  std::vector<std::byte> bytes;
  append_positions(positions, elements, counted(positions, elements, kind), bytes);
  return bytes;
}

// Memory of exactly the right size, so that a sanitizer sees a step past it; values that no reader
// wrote stay 0xAAAA.
struct Read {
  bool ok = false;
  Positions positions;
};
Read read(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries) {
  const auto in = std::make_unique<std::byte[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), in.get());
  Read result;
  result.positions.assign(entries, 0xAAAA);
  result.positions.shrink_to_fit();
  const Bytes exact(in.get(), bytes.size());
  result.ok = read_positions(exact, kind, elements, entries, result.positions.data());
  EXPECT_EQ(check_positions(exact, kind, elements, entries), result.ok);
  return result;
}

// Whatever is accepted is the one way to write what was read.
void expect_canonical(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries) {
  const Read got = read(bytes, kind, elements, entries);
  if (!got.ok) return;
  for (size_t i = 1; i < got.positions.size(); ++i)
    ASSERT_LT(got.positions[i - 1], got.positions[i]);
  ASSERT_TRUE(got.positions.empty() || got.positions.back() < elements);
  const auto again = encoded(got.positions, elements, kind);
  ASSERT_TRUE(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()))
      << "kind " << int{kind} << ", elements " << elements << ", entries " << entries;
}

std::vector<std::byte> bytes_of(std::initializer_list<int> values) {
  std::vector<std::byte> bytes;
  for (const int value : values) bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

TEST(Positions, AreWrittenAsTheGrammarSays) {
  const Positions positions = {3, 4, 260, 520, 1031};  // gaps 3, 0, 255, 259, 510
  EXPECT_EQ(encoded(positions, 1032, 2), bytes_of({3, 0, 255, 0, 255, 4, 255, 255, 0}));
  EXPECT_EQ(encoded(positions, 1032, 3), bytes_of({3, 0, 4, 0, 4, 1, 8, 2, 7, 4}));
  EXPECT_EQ(encoded({3, 12}, 16, 16 + 4), bytes_of({0x83}));
  EXPECT_EQ(encoded({3, 12}, 16, 16 + 3), bytes_of({0x7B, 0x00}));  // 3, then 7 (no entry), 1
  EXPECT_EQ(encoded({3, 12}, 16, 1), bytes_of({0x08, 0x10}));
  EXPECT_EQ(encoded({0, 9}, 10, 1), bytes_of({0x01, 0x02}));
}

TEST(Positions, AreReadAsWritten) {
  base::Rng rng = testing::printed_rng(20240611);
  for (const uint32_t elements : kSizes) {
    for (const double density : kDensities) {
      const Positions positions = random_positions(rng, elements, density);
      for (const uint8_t kind : sparse_kinds()) {
        const auto bytes = encoded(positions, elements, kind);
        const Read got = read(bytes, kind, elements, static_cast<uint32_t>(positions.size()));
        ASSERT_TRUE(got.ok) << "kind " << int{kind} << ", elements " << elements << ", density "
                            << density;
        ASSERT_EQ(got.positions, positions) << "kind " << int{kind} << ", elements " << elements;
      }
    }
  }
}

TEST(Positions, AppendBehindWhatIsThere) {
  std::vector<std::byte> bytes = bytes_of({1, 2, 3});
  append_positions(Positions{5}, 8, {2, 1}, bytes);
  EXPECT_EQ(bytes, bytes_of({1, 2, 3, 5}));
}

TEST(Positions, SmallestIsChosen) {
  base::Rng rng = testing::printed_rng(77);
  std::vector<bool> won(32);
  const auto check = [&](const Positions& positions, uint32_t elements) {
    PositionChoice best = counted(positions, elements, sparse_kinds().front());
    for (const uint8_t kind : sparse_kinds()) {
      const PositionChoice candidate = counted(positions, elements, kind);
      if (candidate.bytes < best.bytes) best = candidate;
    }
    const PositionChoice choice = choose_positions(positions, elements);
    ASSERT_EQ(choice.bytes, best.bytes) << elements << " elements, " << positions.size();
    ASSERT_EQ(int{choice.kind}, int{best.kind}) << elements << " elements, " << positions.size();
    won[choice.kind] = true;
  };
  for (const uint32_t elements : kSizes) {
    for (const double density : kDensities)
      check(random_positions(rng, elements, density), elements);
    check({static_cast<uint16_t>(elements - 1)}, elements);
    check({0}, elements);
  }
  for (int round = 0; round < 2000; ++round) {  // clusters and gaps of one length in turn
    const auto elements = static_cast<uint32_t>(1 + rng.below(6000));
    const auto stride = static_cast<uint32_t>(1 + rng.below(1u << rng.below(13)));
    Positions positions;
    for (uint32_t at = stride - 1; at < elements;
         at += stride + static_cast<uint32_t>(rng.below(1 + (rng.chance(0.5) ? stride : 0))))
      positions.push_back(static_cast<uint16_t>(at));
    check(positions, elements);
  }
  for (const unsigned kind : {1u, 2u, 3u, 17u, 18u, 19u, 20u, 21u, 22u, 23u, 25u, 26u})
    EXPECT_TRUE(won[kind]) << "kind " << kind << " was never the smallest: the test lacks a case";
}

TEST(Positions, EveryOtherLengthIsRefused) {
  base::Rng rng = testing::printed_rng(5);
  for (const uint32_t elements : {9u, 251u, 1000u}) {
    const Positions positions = random_positions(rng, elements, 0.2);
    const auto entries = static_cast<uint32_t>(positions.size());
    ASSERT_GT(entries, 0u);
    for (const uint8_t kind : sparse_kinds()) {
      auto bytes = encoded(positions, elements, kind);
      for (size_t length = 0; length < bytes.size(); ++length)
        EXPECT_FALSE(read(Bytes(bytes).first(length), kind, elements, entries).ok);
      EXPECT_FALSE(read(bytes, kind, positions.back(), entries).ok) << int{kind};
      // Unused bits at the end of packed codes can be read as one more, or one less.
      for (const uint32_t other : {entries - 1, entries + 1}) {
        EXPECT_TRUE(kind > 16 || !read(bytes, kind, elements, other).ok) << int{kind};
        ASSERT_NO_FATAL_FAILURE(expect_canonical(bytes, kind, elements, other));
      }
      for (const int extra : {0, 255}) {
        bytes.push_back(static_cast<std::byte>(extra));
        EXPECT_FALSE(read(bytes, kind, elements, entries).ok) << int{kind};
        bytes.pop_back();
      }
    }
  }
}

TEST(Positions, WrongBytesAreRefused) {
  EXPECT_TRUE(read(bytes_of({0, 1}), 2, 3, 2).ok);
  EXPECT_FALSE(read(bytes_of({0, 1, 255}), 2, 1000, 2).ok);  // ends without an entry
  EXPECT_FALSE(read(bytes_of({0, 2}), 2, 3, 2).ok);          // leaves the block
  EXPECT_FALSE(read(bytes_of({5, 0, 5, 0}), 3, 10, 2).ok);   // the same one twice
  EXPECT_FALSE(read(bytes_of({6, 0, 5, 0}), 3, 10, 2).ok);   // descends
  EXPECT_FALSE(read(bytes_of({5, 0, 10, 0}), 3, 10, 2).ok);  // leaves the block
  EXPECT_FALSE(read(bytes_of({0x01, 0x04}), 1, 10, 2).ok);   // a bit behind the last element
  EXPECT_FALSE(read(bytes_of({0x13}), 19, 10, 1).ok);        // a bit behind the last code
  EXPECT_FALSE(read(bytes_of({0xFF}), 17, 8, 0).ok);         // codes without an entry
  EXPECT_TRUE(read({}, 2, 10, 0).ok);
  EXPECT_TRUE(read({}, 19, 10, 0).ok);
  EXPECT_TRUE(read(bytes_of({0, 0}), 1, 10, 0).ok);
  for (const uint8_t kind : std::initializer_list<uint8_t>{0, 4, 15, 16, 32, 255})
    EXPECT_FALSE(read({}, kind, 10, 0).ok);
  EXPECT_FALSE(read({}, 2, 65537, 0).ok);
}

TEST(Positions, WhateverIsAcceptedIsTheOneWayToWriteIt) {
  base::Rng rng = testing::printed_rng(4242);
  for (int round = 0; round < 60; ++round) {
    const auto elements = static_cast<uint32_t>(1 + rng.below(400));
    const Positions positions = random_positions(rng, elements, rng.uniform() * rng.uniform());
    const auto entries = static_cast<uint32_t>(positions.size());
    for (const uint8_t kind : sparse_kinds()) {
      auto bytes = encoded(positions, elements, kind);
      for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
        bytes[bit / 8] ^= std::byte{1} << (bit % 8);
        for (uint32_t claimed = entries > 0 ? entries - 1 : 0; claimed <= entries + 1; ++claimed)
          ASSERT_NO_FATAL_FAILURE(expect_canonical(bytes, kind, elements, claimed));
        bytes[bit / 8] ^= std::byte{1} << (bit % 8);
      }
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.next());
      for (uint32_t claimed = 0; claimed <= elements + 1; claimed += 1 + entries / 4)
        ASSERT_NO_FATAL_FAILURE(expect_canonical(bytes, kind, elements, claimed));
    }
  }
}

}  // namespace
}  // namespace scant::codec
