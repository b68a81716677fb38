// Records. What parses can be walked to its end within its bytes: positions are read exactly, and
// written again in the same kind they are the same bytes; sealed again the record is the same. A
// message parses when each of its records does. Input: mode, then a message, or a list of
// positions: kind, elements, entries, bytes.
#include <memory>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/record/positions.h"
#include "codec/record/record.h"
#include "fuzz_input.h"

using namespace scant;
using codec::PositionKind;
using codec::RecordView;

namespace {

constexpr uint8_t kSealed = 1;  // magic, version, length and checksum of each record are put right
constexpr uint8_t kPositions = 2;  // no record: positions alone
constexpr size_t kCrcAt = 60;
constexpr size_t kLengthAt = 48;

// A copy of exactly the right size, so that a sanitizer sees a step past it.
struct Exact {
  explicit Exact(Bytes bytes)
      : memory(std::make_unique<std::byte[]>(bytes.size())), size(bytes.size()) {
    std::copy(bytes.begin(), bytes.end(), memory.get());
  }
  [[nodiscard]] MutableBytes view() const { return {memory.get(), size}; }
  std::unique_ptr<std::byte[]> memory;
  size_t size;
};

void check_positions(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries) {
  const Exact copy(bytes);
  const bool valid = codec::check_positions(copy.view(), kind, elements, entries);
  const auto out = std::make_unique<uint16_t[]>(entries);
  SCANT_CHECK(codec::read_positions(copy.view(), kind, elements, entries, out.get()) == valid);
  if (!valid) return;
  const std::span<const uint16_t> positions(out.get(), entries);
  for (size_t i = 1; i < entries; ++i) SCANT_CHECK(positions[i - 1] < positions[i]);
  SCANT_CHECK(entries == 0 || positions.back() < elements);
  std::vector<std::byte> again;
  codec::append_positions(positions, elements, {kind, static_cast<uint32_t>(bytes.size())}, again);
  SCANT_CHECK(fuzz::equal(again, bytes));
  const auto choice = codec::choose_positions(positions, elements);
  SCANT_CHECK(choice.bytes <= bytes.size());
  again.clear();
  codec::append_positions(positions, elements, choice, again);
  SCANT_CHECK(codec::check_positions(again, choice.kind, elements, entries));
}

void check_record(const RecordView& record) {
  uint64_t entries = 0;
  uint64_t elements = 0;
  uint64_t bytes = codec::kRecordHeaderBytes + record.block_count() * codec::kBlockHeaderBytes;
  for (size_t i = 0; i < record.block_count(); ++i) {
    const codec::BlockView block = record.block(i);
    for (const Bytes part : {block.positions, block.scales, block.values}) {
      SCANT_CHECK(part.data() >= record.view().data() &&
                  part.data() + part.size() <= record.view().data() + record.bytes());
      bytes += part.size();
    }
    SCANT_CHECK(block.header.entries <= block.elements);
    entries += block.header.entries;
    elements += block.elements;
    if (block.header.positions != static_cast<uint8_t>(PositionKind::dense)) {
      SCANT_CHECK(codec::check_positions(block.positions, block.header.positions, block.elements,
                                         block.header.entries));
      check_positions(block.positions, block.header.positions, block.elements,
                      block.header.entries);
    }
  }
  SCANT_CHECK(entries == record.entries() && elements == record.header().elements &&
              bytes == record.bytes());
  const Exact again(record.view());
  codec::seal(again.view(), record.header());
  SCANT_CHECK(fuzz::equal(again.view(), record.view()));
}

// Makes records of whatever is there; a length that cannot be becomes all that is left.
void seal_all(MutableBytes message) {
  while (message.size() >= codec::kRecordHeaderBytes) {
    auto length = base::load_little<uint64_t>(message.data() + kLengthAt);
    if (length < codec::kRecordHeaderBytes || length > message.size()) length = message.size();
    const MutableBytes record = message.first(length);
    base::store_little(record.data(), codec::kRecordMagic);
    base::store_little(record.data() + 4, uint32_t{codec::kRecordVersion});
    base::store_little(record.data() + kLengthAt, length);
    const uint32_t crc = base::crc32c(record.subspan(codec::kRecordHeaderBytes),
                                      base::crc32c(Bytes(record).first(kCrcAt)));
    base::store_little(record.data() + kCrcAt, crc);
    message = message.subspan(length);
  }
}

void check_message(Bytes message) {
  const auto all = codec::parse_all(message);
  size_t parsed = 0;
  size_t at = 0;
  bool failed = false;
  for (; at < message.size() && !failed; ++parsed) {
    const auto record = RecordView::parse(message.subspan(at));
    failed = !record.ok();
    if (failed) {
      SCANT_CHECK(!record.error().message.empty() && !all.ok());
      SCANT_CHECK(record.error().code == all.error().code);
      break;
    }
    check_record(record.value());
    at += record.value().bytes();
  }
  SCANT_CHECK(all.ok() != failed);
  if (all.ok()) SCANT_CHECK(all.value().size() == parsed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  if ((mode & kPositions) != 0) {
    const uint8_t kind = input.byte();
    const uint32_t elements = uint32_t{input.half()} + 1;
    const uint32_t entries = input.half();
    check_positions(input.rest(), kind, elements, entries);
    return 0;
  }
  const Exact message(input.rest());
  if ((mode & kSealed) != 0) seal_all(message.view());
  check_message(message.view());
  return 0;
}
