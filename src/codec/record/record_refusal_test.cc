// What a reader of records refuses, rule by rule, and that no mutation makes it leave the bytes.
#include <bit>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <string>

#include "base/crc.h"
#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::build;
using testing::dense_block;
using testing::printed_rng;
using testing::random_record;
using testing::sparse_block;
using testing::TestBlock;
using Record = std::vector<std::byte>;

// Lays a valid checksum over whatever the record holds.
void reseal(MutableBytes record) {
  const uint32_t crc = base::crc32c(record.subspan(64), base::crc32c(record.first(60)));
  base::store_little(record.data() + 60, crc);
}

// Two blocks of 100 elements: a sparse one of 3-bit codes and a dense one of bf16.
Record small_record(base::Rng& rng) {
  const std::vector<uint16_t> positions = {2, 50, 51, 99, 100};
  const std::vector<TestBlock> blocks = {
      sparse_block(rng, ValueKind::q3, 120, positions, testing::counted(positions, 120, 2)),
      dense_block(rng, ValueKind::bf16, 20)};
  return build({.tensor = 9,
                .block_elements = 120,
                .shape = {.rows = 20, .columns = 10},
                .first = 60,
                .elements = 140},
               blocks);
}

// Whatever parses can be read to its end, and its positions are written in the one way there is.
void expect_walkable(const RecordView& record) {
  uint64_t entries = 0;
  for (size_t i = 0; i < record.block_count(); ++i) {
    const BlockView block = record.block(i);
    ASSERT_EQ(block.scales.size() + block.values.size(),
              value_bytes(block.header.values, block.header.entries));
    unsigned sum = 0;
    for (const Bytes part : {block.positions, block.scales, block.values})
      for (const std::byte byte : part) sum += std::to_integer<unsigned>(byte);
    ASSERT_LE(sum, 255 * record.bytes());
    entries += block.header.entries;
    if (block.header.positions == 0) continue;
    std::vector<uint16_t> positions(block.header.entries);
    ASSERT_TRUE(read_positions(block.positions, block.header.positions, block.elements,
                               block.header.entries, positions.data()));
    std::vector<std::byte> again;
    append_positions(positions, block.elements,
                     {block.header.positions, block.header.position_bytes}, again);
    ASSERT_TRUE(
        std::equal(again.begin(), again.end(), block.positions.begin(), block.positions.end()));
  }
  ASSERT_EQ(entries, record.entries());
}

struct Rule {
  const char* says;  // a part of the message
  std::function<void(Record&)> break_it;
};

template <typename T>
std::function<void(Record&)> put(size_t at, T value) {
  return [=](Record& record) { base::store_little(record.data() + at, value); };
}

TEST(RecordRefusal, EachRule) {
  base::Rng rng = printed_rng(51);
  const Record good = small_record(rng);
  ASSERT_TRUE(RecordView::parse(good).ok()) << RecordView::parse(good).error().message;
  constexpr size_t kFirstBlock = 64;
  constexpr size_t kSecondBlock = 76;
  const size_t payload = 88;
  const uint64_t huge = uint64_t{1} << 63;
  const std::vector<Rule> rules = {
      {"wrong magic", put<uint8_t>(0, 'X')},
      {"reserved bytes", put<uint8_t>(5, 1)},
      {"reserved bytes", put<uint8_t>(7, 128)},
      {"a block covers", put<uint32_t>(12, 0)},
      {"a block covers", put<uint32_t>(12, 65537)},
      {"2^63", put<uint64_t>(16, huge)},
      {"2^63", put<uint64_t>(24, uint64_t{1} << 62)},
      {"2^63", put<uint64_t>(16, ~uint64_t{0})},
      {"leaves the tensor", put<uint64_t>(16, 19)},
      {"leaves the tensor", put<uint64_t>(24, 0)},
      {"leaves the tensor", put<uint64_t>(32, 61)},
      {"leaves the tensor", put<uint64_t>(32, 201)},
      {"leaves the tensor", put<uint64_t>(32, ~uint64_t{0})},
      {"leaves the tensor", put<uint64_t>(40, 141)},
      {"leaves the tensor", put<uint64_t>(40, ~uint64_t{0})},
      {"more blocks than", put<uint32_t>(12, 1)},
      {"bytes, ", put<uint64_t>(48, 63)},
      {"bytes, ", put<uint64_t>(48, good.size() + 1)},
      {"bytes, ", put<uint64_t>(48, ~uint64_t{0})},
      {"NaN or infinities", put<uint32_t>(56, 1)},
      {"block 0: no kind of values", put<uint8_t>(kFirstBlock, 8)},
      {"block 0: no kind of positions", put<uint8_t>(kFirstBlock + 1, 4)},
      {"block 0: no kind of positions", put<uint8_t>(kFirstBlock + 1, 16)},
      {"block 0: no kind of positions", put<uint8_t>(kFirstBlock + 1, 32)},
      {"block 0: dense", put<uint8_t>(kFirstBlock + 1, 0)},
      {"block 0: scale_base", put<uint16_t>(kFirstBlock + 2, 1793)},
      {"block 1: scale_base", put<uint16_t>(kSecondBlock + 2, 1)},
      {"block 0: more entries", put<uint32_t>(kFirstBlock + 4, 121)},
      {"block 0: its payload", put<uint32_t>(kFirstBlock + 8, 0xFFFFFFFF)},
      {"block 1: its payload", put<uint32_t>(kFirstBlock + 8, 6)},
      {"1 bytes behind", put<uint32_t>(kFirstBlock + 8, 4)},
      {"block 1: dense", put<uint32_t>(kSecondBlock + 4, 19)},
      {"block 1: dense", put<uint32_t>(kSecondBlock + 8, 1)},
      {"block 0: positions", put<uint8_t>(payload, 22)},
      {"block 0: positions", put<uint8_t>(payload, 255)},
      {"block 0: bits behind", [&](Record& record) { record[payload + 7] |= std::byte{0x80}; }},
      {"bytes behind the last", [](Record& record) {
         record.push_back(std::byte{0});
         base::store_little(record.data() + 48, uint64_t{record.size()});
       }}};
  for (size_t i = 0; i < rules.size(); ++i) {
    Record bad = good;
    rules[i].break_it(bad);
    reseal(bad);
    const auto record = RecordView::parse(bad);
    ASSERT_FALSE(record.ok()) << "rule " << i << ": " << rules[i].says;
    EXPECT_EQ(record.error().code, ErrorCode::corrupt);
    EXPECT_NE(record.error().message.find(rules[i].says), std::string::npos)
        << "rule " << i << ": " << record.error().message;
  }
}

TEST(RecordRefusal, ScalesStayFinite) {
  base::Rng rng = printed_rng(52);
  TestBlock block = dense_block(rng, ValueKind::q4, 128);
  const auto accepted = [&](uint16_t base, int first, int second) {
    block.header.scale_base = base;
    block.payload[0] = static_cast<std::byte>(first);
    block.payload[1] = static_cast<std::byte>(second);
    return RecordView::parse(build({.shape = {1, 128}, .elements = 128}, std::span(&block, 1)))
        .ok();
  };
  EXPECT_TRUE(accepted(1728, 255, 255));
  EXPECT_FALSE(accepted(1729, 255, 0));
  EXPECT_FALSE(accepted(1729, 0, 255));
  EXPECT_TRUE(accepted(1792, 191, 0));
  EXPECT_FALSE(accepted(1792, 0, 192));
  EXPECT_FALSE(accepted(1793, 0, 0));
  const float scale = std::bit_cast<float>(uint32_t{kScaleSumMax} << 20);
  EXPECT_LT(scale * 128.0f, std::numeric_limits<float>::infinity());
}

TEST(RecordRefusal, OtherVersions) {
  base::Rng rng = printed_rng(53);
  Record bytes = small_record(rng);
  for (const int version : {0, 2, 255}) {
    bytes[4] = static_cast<std::byte>(version);
    reseal(bytes);
    const auto record = RecordView::parse(bytes);
    ASSERT_FALSE(record.ok());
    EXPECT_EQ(record.error().code, ErrorCode::unsupported);
    const std::string until = version > 1 ? "up to 1: upgrade scant" : "version 1";
    EXPECT_EQ(record.error().message, "the record is of version " + std::to_string(version) +
                                          "; this scant reads " + until);
  }
}

TEST(RecordRefusal, EveryTruncationAndEveryFlippedBit) {
  base::Rng rng = printed_rng(54);
  Record bytes = small_record(rng);
  for (size_t length = 0; length < bytes.size(); ++length) {
    const Record cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
    ASSERT_FALSE(RecordView::parse(cut).ok()) << length;
  }
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_FALSE(RecordView::parse(bytes).ok()) << "bit " << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  ASSERT_TRUE(RecordView::parse(bytes).ok());
}

TEST(RecordRefusal, MutationsWithAValidChecksumAreRefusedOrWalkable) {
  base::Rng rng = printed_rng(55);
  int accepted = 0;
  for (int round = 0; round < 20000; ++round) {
    Record bytes =
        random_record(rng, 1 + rng.below(300), static_cast<uint32_t>(1 + rng.below(200)));
    for (uint64_t i = 0; i <= rng.below(3); ++i) {
      const size_t at =
          rng.below(rng.chance(0.5) ? std::min<size_t>(bytes.size(), 112) : bytes.size());
      bytes[at] = rng.chance(0.5) ? static_cast<std::byte>(rng.next())
                                  : bytes[at] ^ (std::byte{1} << rng.below(8));
    }
    if (rng.chance(0.1)) bytes.resize(std::max<size_t>(64, rng.below(bytes.size())));
    if (rng.chance(0.5)) base::store_little(bytes.data() + 48, uint64_t{bytes.size()});
    reseal(bytes);
    const auto memory = std::make_unique<std::byte[]>(bytes.size());  // exactly as long
    std::copy(bytes.begin(), bytes.end(), memory.get());
    const auto record = RecordView::parse(Bytes(memory.get(), bytes.size()));
    if (!record.ok()) {
      ASSERT_FALSE(record.error().message.empty());
      continue;
    }
    ++accepted;
    ASSERT_NO_FATAL_FAILURE(expect_walkable(record.value()));
  }
  EXPECT_GT(accepted, 1000);
  EXPECT_LT(accepted, 19000);
}

TEST(RecordRefusal, RecordsInARow) {
  base::Rng rng = printed_rng(56);
  Record message;
  std::vector<Record> records;
  for (const uint64_t elements : {5u, 0u, 70000u, 256u}) {
    records.push_back(random_record(rng, elements, 4096));
    message.insert(message.end(), records.back().begin(), records.back().end());
  }
  const auto all = parse_all(message);
  ASSERT_TRUE(all.ok()) << all.error().message;
  ASSERT_EQ(all.value().size(), records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    const Bytes view = all.value()[i].view();
    EXPECT_TRUE(std::equal(view.begin(), view.end(), records[i].begin(), records[i].end()));
    ASSERT_NO_FATAL_FAILURE(expect_walkable(all.value()[i]));
  }
  EXPECT_TRUE(parse_all({}).value().empty());
  Record swapped = records[2];  // order carries no meaning
  swapped.insert(swapped.end(), records[0].begin(), records[0].end());
  ASSERT_TRUE(parse_all(swapped).ok());
  EXPECT_EQ(parse_all(swapped).value()[0].header().elements, 70000u);
  for (const size_t missing : {size_t{1}, records[3].size() - 1}) {
    const auto cut = parse_all(Bytes(message).first(message.size() - missing));
    ASSERT_FALSE(cut.ok());
    EXPECT_EQ(cut.error().code, ErrorCode::corrupt);
    EXPECT_EQ(cut.error().message.find("record 3 of the message"), 0u) << cut.error().message;
  }
  message[records[0].size() + 40] ^= std::byte{1};
  const auto flipped = parse_all(message);
  ASSERT_FALSE(flipped.ok());
  EXPECT_EQ(flipped.error().message.find("record 1 of the message"), 0u);
}

}  // namespace
}  // namespace scant::codec
