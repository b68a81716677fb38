// The record: one range of one tensor in few bytes. docs/record.md is its grammar; the names here
// are those of the document. Reading validates everything first: a RecordView that exists is safe
// to walk. No thread, no clock; a view borrows its bytes.
#pragma once

#include <span>
#include <vector>

#include "codec/point.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::codec {

inline constexpr uint32_t kRecordMagic = 0x44524353;  // "SCRD" in memory
inline constexpr uint8_t kRecordVersion = 1;
inline constexpr size_t kRecordHeaderBytes = 64;
inline constexpr size_t kBlockHeaderBytes = 12;

// Positions of a block's entries; packed widths are kPacked + 1 to kPacked + 15.
enum class PositionKind : uint8_t {
  dense = 0,
  bitmap = 1,
  delta8 = 2,
  position16 = 3,
  packed = 16
};
inline constexpr unsigned kPackedWidthMax = 15;

// A scale is the f32 of bits (scale_base + code) << 20. Up to this sum its products with levels of
// 128 or less are finite.
inline constexpr uint16_t kScaleBaseMax = 1792;
inline constexpr uint32_t kScaleSumMax = 1983;

struct RecordHeader {
  uint32_t tensor = 0;
  uint32_t block_elements = kDenseBlockElements;
  Shape shape;
  uint64_t first = 0;  // the range within the tensor: [first, first + elements)
  uint64_t elements = 0;
  uint32_t nonfinite = 0;  // NaN and infinities among the values; stays at 2^32 - 1
  [[nodiscard]] uint64_t block_count() const {
    return elements / block_elements + (elements % block_elements != 0 ? 1 : 0);
  }
};

struct BlockHeader {
  ValueKind values = ValueKind::f32;
  uint8_t positions = 0;    // a PositionKind, or kPacked + width
  uint16_t scale_base = 0;  // of the scales' codes; 0 without scales
  uint32_t entries = 0;
  uint32_t position_bytes = 0;
};

// Bytes that `entries` values of this kind take, scales included. Up to 2^60 entries.
[[nodiscard]] uint64_t value_bytes(ValueKind kind, uint64_t entries);
[[nodiscard]] constexpr uint64_t scale_count(ValueKind kind, uint64_t entries) {
  return quantised(kind) ? (entries + kGroupElements - 1) / kGroupElements : 0;
}
// Of a dense record with every block of one kind.
[[nodiscard]] uint64_t dense_record_bytes(uint64_t elements, ValueKind kind);
// No record of so many elements is longer, whatever its point and values.
[[nodiscard]] uint64_t record_bytes_max(uint64_t elements);

struct BlockView {
  BlockHeader header;
  uint32_t elements = 0;  // that the block covers
  Bytes positions;
  Bytes scales;  // one byte a group; empty unless quantised
  Bytes values;  // numbers or codes
};

class RecordView {
 public:
  // Takes the record at the front of `bytes`; what follows it is not looked at. ErrorCode::corrupt
  // names what is wrong and where; ErrorCode::unsupported: another version.
  static Result<RecordView> parse(Bytes bytes);

  [[nodiscard]] const RecordHeader& header() const { return header_; }
  [[nodiscard]] size_t bytes() const { return bytes_.size(); }
  [[nodiscard]] Bytes view() const { return bytes_; }
  [[nodiscard]] uint64_t entries() const { return entries_; }
  [[nodiscard]] size_t block_count() const { return payload_at_.size(); }
  [[nodiscard]] BlockView block(size_t index) const;

 private:
  RecordView() = default;
  Result<void> read_table();
  [[nodiscard]] Result<void> check_payloads() const;
  RecordHeader header_;
  Bytes bytes_;
  uint64_t entries_ = 0;
  std::vector<uint64_t> payload_at_;  // offset of each block's payload in bytes_
};

// All records of a message, one behind the other, each checked. An error names the record's number.
[[nodiscard]] Result<std::vector<RecordView>> parse_all(Bytes bytes);

// Writing. The caller fills payload and table; seal() writes header and checksum. `record` must
// hold the header, a table of header.block_count() entries, and the payloads in their order.
void write_block_header(MutableBytes record, uint64_t index, const BlockHeader& header);
[[nodiscard]] BlockHeader read_block_header(Bytes record, uint64_t index);
void seal(MutableBytes record, const RecordHeader& header);

}  // namespace scant::codec
