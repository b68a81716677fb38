// Records: the document's example byte by byte, what is refused and why, and that whatever is
// accepted can be walked to its end.
#include "codec/record/record.h"

#include <fstream>
#include <gtest/gtest.h>
#include <memory>
#include <sstream>
#include <string>

#include "codec/testing/records.h"

namespace scant::codec {
namespace {

using testing::build;
using testing::dense_block;
using testing::printed_rng;
using testing::random_positions;
using testing::random_record;
using testing::sparse_block;
using testing::TestBlock;
using Record = std::vector<std::byte>;

// Reads all that a decoder would; a sanitizer sees a step outside.
uint64_t walk(const RecordView& record) {
  uint64_t entries = 0;
  uint64_t elements = 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < record.block_count(); ++i) {
    const BlockView block = record.block(i);
    EXPECT_LE(block.header.entries, block.elements);
    EXPECT_EQ(block.scales.size(), scale_count(block.header.values, block.header.entries));
    EXPECT_EQ(block.scales.size() + block.values.size(),
              value_bytes(block.header.values, block.header.entries));
    if (block.header.positions != 0) {
      std::vector<uint16_t> positions(block.header.entries);
      EXPECT_TRUE(read_positions(block.positions, block.header.positions, block.elements,
                                 block.header.entries, positions.data()));
    }
    for (const Bytes part : {block.positions, block.scales, block.values})
      for (const std::byte byte : part) sum += std::to_integer<uint64_t>(byte);
    entries += block.header.entries;
    elements += block.elements;
  }
  EXPECT_EQ(entries, record.entries());
  EXPECT_EQ(elements, record.header().elements);
  return sum;
}

// A copy of exactly the right size.
Result<RecordView> parse_copy(Bytes bytes, std::unique_ptr<std::byte[]>& memory) {
  memory = std::make_unique<std::byte[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), memory.get());
  return RecordView::parse(Bytes(memory.get(), bytes.size()));
}

// Lines "OFFSET  HEX HEX ...  meaning"; the offsets must add up.
Record bytes_of_document() {
  std::ifstream file(SCANT_DOCUMENT);
  EXPECT_TRUE(file.good()) << SCANT_DOCUMENT;
  Record bytes;
  std::string line;
  while (std::getline(file, line) && line != "<!-- example: record -->") continue;
  std::getline(file, line);
  while (std::getline(file, line) && line != "```") {
    EXPECT_EQ(std::stoul(line.substr(0, 2)), bytes.size()) << line;
    const size_t end = std::min(line.find("  ", 4), line.size());
    std::istringstream hex(line.substr(4, end - 4));
    for (std::string pair; hex >> pair;)
      bytes.push_back(static_cast<std::byte>(std::stoul(pair, nullptr, 16)));
  }
  return bytes;
}

TEST(Record, ExampleOfTheDocument) {
  const std::vector<uint16_t> positions = {3, 12};
  const PositionChoice choice = choose_positions(positions, 16);
  TestBlock block{{.values = ValueKind::bf16,
                   .positions = choice.kind,
                   .entries = 2,
                   .position_bytes = choice.bytes},
                  {}};
  append_positions(positions, 16, choice, block.payload);
  for (const int byte : {0xC0, 0x3F, 0x80, 0xBE})  // 1.5, -0.25
    block.payload.push_back(static_cast<std::byte>(byte));
  const Record record = build({.tensor = 7,
                               .block_elements = kSparseBlockElements,
                               .shape = {.rows = 2, .columns = 8},
                               .elements = 16},
                              std::span(&block, 1));
  const Record document = bytes_of_document();
  EXPECT_EQ(document.size(), 81u);
  EXPECT_EQ(record, document);
  const auto parsed = RecordView::parse(record);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed.value().entries(), 2u);
}

TEST(Record, IsReadAsWritten) {
  base::Rng rng = printed_rng(31);
  for (const uint64_t elements : {1u, 63u, 64u, 257u, 4096u, 4099u, 65536u, 131101u}) {
    for (const uint32_t block_elements : {1u, 17u, 4096u, 65536u}) {
      if (elements / block_elements > 500) continue;
      const Record bytes = random_record(rng, elements, block_elements);
      std::unique_ptr<std::byte[]> memory;
      const auto record = parse_copy(bytes, memory);
      ASSERT_TRUE(record.ok()) << record.error().message;
      EXPECT_EQ(record.value().bytes(), bytes.size());
      EXPECT_EQ(record.value().header().elements, elements);
      EXPECT_EQ(record.value().header().shape, (Shape{.rows = 3, .columns = elements}));
      walk(record.value());
      Record again = bytes;
      seal(again, record.value().header());
      EXPECT_EQ(again, bytes);
    }
  }
}

TEST(Record, BlocksAreReadAsWritten) {
  base::Rng rng = printed_rng(32);
  for (int kind = 0; kind < kValueKindCount; ++kind) {
    const auto values = static_cast<ValueKind>(kind);
    std::vector<TestBlock> blocks = {dense_block(rng, values, 1000)};
    for (const uint8_t positions_kind : testing::sparse_kinds()) {
      const auto positions = random_positions(rng, 1000, 0.03);
      blocks.push_back(sparse_block(rng, values, 1000, positions,
                                    testing::counted(positions, 1000, positions_kind)));
    }
    const uint64_t elements = 1000 * blocks.size();
    const Record bytes =
        build({.block_elements = 1000, .shape = {1, elements}, .elements = elements}, blocks);
    const auto record = RecordView::parse(bytes);
    ASSERT_TRUE(record.ok()) << record.error().message;
    for (size_t i = 0; i < blocks.size(); ++i) {
      const BlockView view = record.value().block(i);
      EXPECT_EQ(view.header.values, values);
      EXPECT_EQ(int{view.header.positions}, int{blocks[i].header.positions});
      EXPECT_EQ(view.header.scale_base, blocks[i].header.scale_base);
      Record payload(view.positions.begin(), view.positions.end());
      payload.insert(payload.end(), view.scales.begin(), view.scales.end());
      payload.insert(payload.end(), view.values.begin(), view.values.end());
      EXPECT_EQ(payload, blocks[i].payload) << name(values) << ", block " << i;
    }
  }
}

TEST(Record, SizesAreThoseOfTheDocument) {
  EXPECT_EQ(value_bytes(ValueKind::f32, 3), 12u);
  EXPECT_EQ(value_bytes(ValueKind::bf16, 3), 6u);
  EXPECT_EQ(value_bytes(ValueKind::q8, 65), 2u + 65u);
  EXPECT_EQ(value_bytes(ValueKind::q4, 257), 5u + 129u);
  EXPECT_EQ(value_bytes(ValueKind::q3, 259), 5u + 98u);
  EXPECT_EQ(value_bytes(ValueKind::q1, 9), 1u + 2u);
  EXPECT_EQ(value_bytes(ValueKind::q2, 0), 0u);
  EXPECT_EQ(value_bytes(ValueKind::f32, uint64_t{1} << 60), uint64_t{1} << 62);
  EXPECT_EQ(dense_record_bytes(0, ValueKind::q4), 64u);
  EXPECT_EQ(dense_record_bytes(4097, ValueKind::q4), 64u + 24u + 65u + 2049u);
  const uint64_t many = uint64_t{1} << 24;
  EXPECT_LE(static_cast<double>(dense_record_bytes(many, ValueKind::q4)),
            0.54 * static_cast<double>(many));
  EXPECT_LE(static_cast<double>(dense_record_bytes(many, ValueKind::q2)),
            0.29 * static_cast<double>(many));
}

// Counted on real positions: the sizes that an entry may take at 1 %.
TEST(Record, EntriesAtOnePercentAreSmall) {
  base::Rng rng = printed_rng(33);
  for (const auto& [values, limit] : {std::pair{ValueKind::bf16, 4.1}, {ValueKind::q4, 2.1}}) {
    std::vector<TestBlock> blocks;
    for (int i = 0; i < 8; ++i)
      blocks.push_back(sparse_block(rng, values, 65536, random_positions(rng, 65536, 0.01)));
    const Record bytes =
        build({.block_elements = 65536, .shape = {8, 65536}, .elements = 8 * 65536}, blocks);
    const auto record = RecordView::parse(bytes);
    ASSERT_TRUE(record.ok()) << record.error().message;
    EXPECT_LE(static_cast<double>(bytes.size()),
              limit * static_cast<double>(record.value().entries()));
  }
}

TEST(Record, EmptyRange) {
  for (const Shape shape : {Shape{1, 0}, Shape{0, 5}, Shape{4, 4}}) {
    const RecordHeader header{.shape = shape, .first = shape.elements()};
    const Record bytes = build(header, {});
    const auto record = RecordView::parse(bytes);
    ASSERT_TRUE(record.ok()) << record.error().message;
    EXPECT_EQ(record.value().block_count(), 0u);
    EXPECT_EQ(record.value().entries(), 0u);
  }
}

TEST(Record, RangeOfAnEnormousTensor) {
  base::Rng rng = printed_rng(34);
  const uint64_t elements = 3 * 65536 + 11;
  const RecordHeader header{.block_elements = 65536,
                            .shape = {.rows = 1u << 20, .columns = 1u << 20},
                            .first = uint64_t{1} << 39,
                            .elements = elements};
  std::vector<TestBlock> blocks;
  for (const uint32_t covered : {65536u, 65536u, 65536u, 11u}) {
    const std::vector<uint16_t> positions = {static_cast<uint16_t>(covered - 1)};
    blocks.push_back(sparse_block(rng, ValueKind::q4, covered, positions));
  }
  const Record bytes = build(header, blocks);
  const auto record = RecordView::parse(bytes);
  ASSERT_TRUE(record.ok()) << record.error().message;
  EXPECT_EQ(record.value().header().first, uint64_t{1} << 39);
  EXPECT_EQ(record.value().entries(), 4u);
  EXPECT_EQ(record.value().block(3).elements, 11u);
}

// More than 2^32 elements in one record need 65537 blocks of nothing.
TEST(Record, MoreThan32BitsOfElements) {
  const uint64_t elements = (uint64_t{1} << 32) + 5;
  const std::vector<TestBlock> blocks(65537, TestBlock{{.positions = 2}, {}});
  const Record bytes =
      build({.block_elements = 65536, .shape = {1, elements}, .elements = elements}, blocks);
  const auto record = RecordView::parse(bytes);
  ASSERT_TRUE(record.ok()) << record.error().message;
  EXPECT_EQ(record.value().block_count(), 65537u);
  EXPECT_EQ(record.value().block(65536).elements, 5u);
  walk(record.value());
}

TEST(ValueKind, NamesAreReadAsWritten) {
  for (int kind = 0; kind < kValueKindCount; ++kind)
    EXPECT_EQ(value_kind(name(static_cast<ValueKind>(kind))), static_cast<ValueKind>(kind));
  for (const char* wrong : {"", "f", "F32", "q5", "q40", "unknown"})
    EXPECT_EQ(value_kind(wrong), std::nullopt) << wrong;
}

TEST(Record, NonfiniteIsCounted) {
  const auto record_of = [](ValueKind values, const std::vector<uint32_t>& numbers,
                            uint32_t nonfinite) {
    TestBlock block{{.values = values, .entries = static_cast<uint32_t>(numbers.size())}, {}};
    for (const uint32_t number : numbers)
      for (unsigned i = 0; i < bits(values); i += 8)
        block.payload.push_back(static_cast<std::byte>(number >> i));
    return build({.shape = {1, numbers.size()}, .elements = numbers.size(), .nonfinite = nonfinite},
                 std::span(&block, 1));
  };
  const std::vector<std::pair<ValueKind, std::vector<uint32_t>>> cases = {
      {ValueKind::f32, {0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x00000001, 0}},
      {ValueKind::bf16, {0x7F80, 0xFF80, 0x7FC0, 0x7F7F, 1, 0}},
      {ValueKind::f16, {0x7C00, 0xFC00, 0x7E00, 0x7BFF, 1, 0}}};
  for (const auto& [values, numbers] : cases) {
    for (uint32_t claimed = 0; claimed < 6; ++claimed) {
      const Record bytes = record_of(values, numbers, claimed);
      EXPECT_EQ(RecordView::parse(bytes).ok(), claimed == 3) << name(values) << " " << claimed;
    }
    EXPECT_FALSE(RecordView::parse(record_of(values, numbers, 0xFFFFFFFF)).ok());
  }
}

}  // namespace
}  // namespace scant::codec
