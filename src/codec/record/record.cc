// Reading and sealing of records. Reading goes from the outside inwards: header, checksum, the
// table of blocks, and only then what the payloads hold. Memory grows with blocks that the bytes
// can hold, never with what a header claims. No state.
#include "codec/record/record.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "base/version.h"
#include "codec/quantise/levels.h"
#include "codec/record/positions.h"

namespace scant::codec {
namespace {

constexpr size_t kVersionAt = 4;
constexpr size_t kReservedAt = 5;
constexpr size_t kTensorAt = 8;
constexpr size_t kBlockElementsAt = 12;
constexpr size_t kRowsAt = 16;
constexpr size_t kColumnsAt = 24;
constexpr size_t kFirstAt = 32;
constexpr size_t kElementsAt = 40;
constexpr size_t kBytesAt = 48;
constexpr size_t kNonfiniteAt = 56;
constexpr size_t kCrcAt = 60;
constexpr uint64_t kTensorElementsMax = (uint64_t{1} << 63) - 1;
constexpr uint32_t kNonfiniteMax = std::numeric_limits<uint32_t>::max();

using base::corrupt;

Error corrupt_in(uint32_t tensor, const std::string& what) {
  return corrupt("record of tensor " + std::to_string(tensor) + ": " + what);
}

Error corrupt_block(uint32_t tensor, uint64_t block, const std::string& what) {
  return corrupt_in(tensor, "block " + std::to_string(block) + ": " + what);
}

uint32_t checksum(Bytes record) {
  return base::crc32c(record.subspan(kRecordHeaderBytes), base::crc32c(record.first(kCrcAt)));
}

uint32_t block_elements_at(const RecordHeader& header, uint64_t index) {
  const uint64_t left = header.elements - index * header.block_elements;
  return left < header.block_elements ? static_cast<uint32_t>(left) : header.block_elements;
}

RecordHeader load_header(Bytes record) {
  const std::byte* at = record.data();
  RecordHeader header;
  header.tensor = base::load_little<uint32_t>(at + kTensorAt);
  header.block_elements = base::load_little<uint32_t>(at + kBlockElementsAt);
  header.shape.rows = base::load_little<uint64_t>(at + kRowsAt);
  header.shape.columns = base::load_little<uint64_t>(at + kColumnsAt);
  header.first = base::load_little<uint64_t>(at + kFirstAt);
  header.elements = base::load_little<uint64_t>(at + kElementsAt);
  header.nonfinite = base::load_little<uint32_t>(at + kNonfiniteAt);
  return header;
}

// Nothing where the header keeps the rules; `record` ends where the header says.
const char* header_fault(const RecordHeader& header, Bytes record) {
  for (size_t at = kReservedAt; at < kTensorAt; ++at)
    if (record[at] != std::byte{0}) return "reserved bytes are not 0";
  if (header.block_elements == 0 || header.block_elements > kSparseBlockElements)
    return "a block covers 1 to 65536 elements";
  uint64_t total = 0;
  if (__builtin_mul_overflow(header.shape.rows, header.shape.columns, &total) ||
      total > kTensorElementsMax)
    return "a tensor of 2^63 elements or more";
  if (header.first > total || header.elements > total - header.first)
    return "the range leaves the tensor";
  if (header.block_count() > (record.size() - kRecordHeaderBytes) / kBlockHeaderBytes)
    return "more blocks than its bytes can hold";
  return nullptr;
}

const char* block_fault(const BlockHeader& block, uint32_t elements) {
  if (static_cast<int>(block.values) >= kValueKindCount) return "no kind of values";
  constexpr unsigned kPacked = static_cast<unsigned>(PositionKind::packed);
  if (block.positions > static_cast<unsigned>(PositionKind::position16) &&
      (block.positions <= kPacked || block.positions > kPacked + kPackedWidthMax))
    return "no kind of positions";
  if (block.scale_base > (quantised(block.values) ? kScaleBaseMax : 0))
    return "scale_base out of range";
  if (block.entries > elements) return "more entries than elements";
  if (block.positions == static_cast<uint8_t>(PositionKind::dense) &&
      (block.entries != elements || block.position_bytes != 0))
    return "dense, but not one entry an element";
  return nullptr;
}

// Exponents of all ones. Counts in lanes as wide as a value, of parts that such a lane can count.
template <typename T>
uint32_t count_exponents(Bytes values, T exponent) {
  constexpr size_t kPart = 32768;
  const size_t entries = values.size() / sizeof(T);
  uint32_t count = 0;
  for (size_t first = 0; first < entries; first += kPart) {
    const std::byte* from = values.data() + first * sizeof(T);
    const size_t part = std::min(kPart, entries - first);
    T in_part = 0;
    for (size_t i = 0; i < part; ++i) {
      const T bits = base::load_little<T>(from + i * sizeof(T));
      in_part = static_cast<T>(in_part + ((bits & exponent) == exponent ? 1 : 0));
    }
    count += in_part;
  }
  return count;
}

uint32_t count_nonfinite(ValueKind kind, Bytes values) {
  switch (kind) {
    case ValueKind::f32:
      return count_exponents<uint32_t>(values, 0x7F800000u);
    case ValueKind::bf16:
      return count_exponents<uint16_t>(values, 0x7F80);
    case ValueKind::f16:
      return count_exponents<uint16_t>(values, 0x7C00);
    default:
      return 0;
  }
}

constexpr bool levels_fit() {
  for (int kind = 0; kind < kValueKindCount; ++kind)
    for (const uint8_t level : levels(static_cast<ValueKind>(kind)))
      if (level > 128) return false;
  return true;
}
static_assert(levels_fit(), "kScaleSumMax expects levels of 128 or less");

// A product of any level and a scale must be finite.
bool scales_fit(const BlockView& block) {
  if (block.header.scale_base <= kScaleSumMax - std::numeric_limits<uint8_t>::max()) return true;
  uint8_t largest = 0;
  for (const std::byte scale : block.scales) {
    const auto code = std::to_integer<uint8_t>(scale);
    largest = code > largest ? code : largest;
  }
  return block.header.scale_base + uint32_t{largest} <= kScaleSumMax;
}

// Only the codes behind the last whole quad can leave a part of a byte over.
bool codes_end_clean(const BlockView& block) {
  const uint64_t bits_used = block.header.entries % kQuadElements * bits(block.header.values) % 8;
  return bits_used == 0 || std::to_integer<uint32_t>(block.values.back()) >> bits_used == 0;
}

const char* payload_fault(const BlockView& block) {
  if (block.header.positions != static_cast<uint8_t>(PositionKind::dense) &&
      !check_positions(block.positions, block.header.positions, block.elements,
                       block.header.entries))
    return "positions that are not as many ascending ones, within the block, as it has entries";
  if (!quantised(block.header.values)) return nullptr;
  if (!scales_fit(block)) return "a scale out of range";
  if (!codes_end_clean(block)) return "bits behind the last code";
  return nullptr;
}

}  // namespace

uint64_t value_bytes(ValueKind kind, uint64_t entries) {
  const unsigned width = bits(kind);
  return scale_count(kind, entries) + entries / 8 * width + (entries % 8 * width + 7) / 8;
}

uint64_t dense_record_bytes(uint64_t elements, ValueKind kind) {
  RecordHeader header;
  header.elements = elements;
  return kRecordHeaderBytes + header.block_count() * kBlockHeaderBytes +
         value_bytes(kind, elements);
}

// Positions take at most a bitmap, which the encoder counts too; values at most four bytes.
uint64_t record_bytes_max(uint64_t elements) {
  const uint64_t blocks =
      elements / kDenseBlockElements + (elements % kDenseBlockElements != 0 ? 1 : 0);
  return kRecordHeaderBytes + blocks * (kBlockHeaderBytes + 1) + elements / 8 +
         elements * sizeof(float);
}

void write_block_header(MutableBytes record, uint64_t index, const BlockHeader& header) {
  SCANT_CHECK(record.size() >= kRecordHeaderBytes &&
              index < (record.size() - kRecordHeaderBytes) / kBlockHeaderBytes);
  std::byte* at = record.data() + kRecordHeaderBytes + index * kBlockHeaderBytes;
  at[0] = static_cast<std::byte>(header.values);
  at[1] = static_cast<std::byte>(header.positions);
  base::store_little(at + 2, header.scale_base);
  base::store_little(at + 4, header.entries);
  base::store_little(at + 8, header.position_bytes);
}

BlockHeader read_block_header(Bytes record, uint64_t index) {
  SCANT_CHECK(record.size() >= kRecordHeaderBytes &&
              index < (record.size() - kRecordHeaderBytes) / kBlockHeaderBytes);
  const std::byte* at = record.data() + kRecordHeaderBytes + index * kBlockHeaderBytes;
  BlockHeader header;
  header.values = static_cast<ValueKind>(at[0]);
  header.positions = std::to_integer<uint8_t>(at[1]);
  header.scale_base = base::load_little<uint16_t>(at + 2);
  header.entries = base::load_little<uint32_t>(at + 4);
  header.position_bytes = base::load_little<uint32_t>(at + 8);
  return header;
}

void seal(MutableBytes record, const RecordHeader& header) {
  SCANT_CHECK(record.size() >= kRecordHeaderBytes);
  SCANT_CHECK(header.block_elements > 0 && header.block_elements <= kSparseBlockElements);
  SCANT_CHECK(header.block_count() <= (record.size() - kRecordHeaderBytes) / kBlockHeaderBytes);
  std::byte* at = record.data();
  base::store_little(at, kRecordMagic);
  base::store_little(at + kVersionAt, uint32_t{kRecordVersion});  // with the reserved bytes
  base::store_little(at + kTensorAt, header.tensor);
  base::store_little(at + kBlockElementsAt, header.block_elements);
  base::store_little(at + kRowsAt, header.shape.rows);
  base::store_little(at + kColumnsAt, header.shape.columns);
  base::store_little(at + kFirstAt, header.first);
  base::store_little(at + kElementsAt, header.elements);
  base::store_little(at + kBytesAt, uint64_t{record.size()});
  base::store_little(at + kNonfiniteAt, header.nonfinite);
  base::store_little(at + kCrcAt, checksum(record));
}

BlockView RecordView::block(size_t index) const {
  SCANT_CHECK(index < payload_at_.size());
  BlockView view;
  view.header = read_block_header(bytes_, index);
  view.elements = block_elements_at(header_, index);
  const uint64_t scales = scale_count(view.header.values, view.header.entries);
  const uint64_t values = value_bytes(view.header.values, view.header.entries) - scales;
  const Bytes payload = bytes_.subspan(payload_at_[index]);
  view.positions = payload.first(view.header.position_bytes);
  view.scales = payload.subspan(view.header.position_bytes, scales);
  view.values = payload.subspan(view.header.position_bytes + scales, values);
  return view;
}

Result<void> RecordView::read_table() {
  const uint64_t count = header_.block_count();
  payload_at_.reserve(count);
  uint64_t at = kRecordHeaderBytes + count * kBlockHeaderBytes;
  for (uint64_t i = 0; i < count; ++i) {
    const BlockHeader block = read_block_header(bytes_, i);
    if (const char* fault = block_fault(block, block_elements_at(header_, i)))
      return corrupt_block(header_.tensor, i, fault);
    // Far below 2^64: both counts have 32 bits.
    const uint64_t payload = block.position_bytes + value_bytes(block.values, block.entries);
    if (payload > bytes_.size() - at)
      return corrupt_block(header_.tensor, i, "its payload leaves the record");
    payload_at_.push_back(at);
    at += payload;
    entries_ += block.entries;
  }
  if (at != bytes_.size())
    return corrupt_in(header_.tensor,
                      std::to_string(bytes_.size() - at) + " bytes behind the last payload");
  return {};
}

Result<void> RecordView::check_payloads() const {
  uint64_t nonfinite = 0;
  for (size_t i = 0; i < payload_at_.size(); ++i) {
    const BlockView view = block(i);
    if (const char* fault = payload_fault(view)) return corrupt_block(header_.tensor, i, fault);
    nonfinite += count_nonfinite(view.header.values, view.values);
  }
  const uint64_t counted = nonfinite < kNonfiniteMax ? nonfinite : kNonfiniteMax;
  if (counted != header_.nonfinite)
    return corrupt_in(header_.tensor, "says that it holds " + std::to_string(header_.nonfinite) +
                                          " NaN or infinities, but holds " +
                                          std::to_string(counted));
  return {};
}

Result<RecordView> RecordView::parse(Bytes bytes) {
  if (bytes.size() < kRecordHeaderBytes)
    return corrupt("a record needs 64 bytes, " + std::to_string(bytes.size()) + " are there");
  if (base::load_little<uint32_t>(bytes.data()) != kRecordMagic)
    return corrupt("no record begins here: wrong magic");
  const auto version = std::to_integer<uint32_t>(bytes[kVersionAt]);
  if (version != kRecordVersion) return base::other_version("the record", version, kRecordVersion);
  const auto length = base::load_little<uint64_t>(bytes.data() + kBytesAt);
  if (length < kRecordHeaderBytes || length > bytes.size())
    return corrupt("record of " + std::to_string(length) + " bytes, " +
                   std::to_string(bytes.size()) + " are there");
  RecordView view;
  view.bytes_ = bytes.first(length);
  if (base::load_little<uint32_t>(bytes.data() + kCrcAt) != checksum(view.bytes_))
    return corrupt("the record's checksum does not fit");
  view.header_ = load_header(view.bytes_);
  if (const char* fault = header_fault(view.header_, view.bytes_))
    return corrupt_in(view.header_.tensor, fault);
  if (auto table = view.read_table(); !table) return table.error();
  if (auto payloads = view.check_payloads(); !payloads) return payloads.error();
  return view;
}

Result<std::vector<RecordView>> parse_all(Bytes bytes) {
  std::vector<RecordView> records;
  for (size_t at = 0; at < bytes.size(); at += records.back().bytes()) {
    auto record = RecordView::parse(bytes.subspan(at));
    if (!record) {
      Error error = record.error();
      error.message = "record " + std::to_string(records.size()) + " of the message, at byte " +
                      std::to_string(at) + ": " + error.message;
      return error;
    }
    records.push_back(std::move(record).value());
  }
  return records;
}

}  // namespace scant::codec
