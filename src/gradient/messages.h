// Messages of records between ranks: written by appending, read by sorting what came to the slices
// that it is about. Plain values, one owner thread. docs/gradients.md, "Order of operations".
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "codec/record/record.h"
#include "gradient/slice_table.h"
#include "scant/base/result.h"

namespace scant::gradient {

class Message {
 public:
  // Room for `capacity` bytes; of memory only what is written is used. After an error it is as it
  // was.
  Result<void> reserve(size_t capacity);
  void clear() { size_ = 0; }
  void append(Bytes record);
  [[nodiscard]] Bytes view() const { return memory_.view().first(size_); }
  [[nodiscard]] size_t capacity() const { return memory_.size(); }
  // A message that is received: the room, and how much of it was used.
  [[nodiscard]] MutableBytes room() { return memory_.view(); }
  void received(size_t size) { size_ = size; }

 private:
  base::Buffer memory_;
  size_t size_ = 0;
};

// By slice of a list: its record, or none where the sender has no gradient.
using SortedRecords = std::vector<std::optional<codec::RecordView>>;

// Checks all of a message from rank `from`: that it holds records of these slices, which ascend,
// each at most once. ErrorCode::corrupt names rank and tensor.
[[nodiscard]] Result<SortedRecords> sort_records(Bytes message, const SliceTable& table,
                                                 std::span<const uint32_t> slices, Rank from);

}  // namespace scant::gradient
