#include "gradient/messages.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"

namespace scant::gradient {
namespace {

Error corrupt(Rank from, const std::string& what) {
  return Error{.code = ErrorCode::corrupt,
               .peer = from,
               .message = "rank " + std::to_string(from) + " sent " + what};
}

std::string range_text(const codec::RecordHeader& header) {
  return "elements " + std::to_string(header.first) + " to " +
         std::to_string(header.first + header.elements) + " of tensor " +
         std::to_string(header.tensor);
}

bool is_of(const codec::RecordHeader& header, const SliceRecord& known) {
  return known.tensor == header.tensor && known.shape == header.shape &&
         known.range == codec::Range{header.first, header.elements};
}

}  // namespace

Result<void> Message::reserve(size_t capacity) {
  if (memory_.size() < capacity) {
    Result<base::Buffer> larger = base::Buffer::allocate(capacity);
    if (!larger) return larger.error();
    memory_ = std::move(larger).value();
  }
  size_ = 0;
  return {};
}

void Message::append(Bytes record) {
  SCANT_CHECK(record.size() <= memory_.size() - size_);
  std::memcpy(memory_.data() + size_, record.data(), record.size());
  size_ += record.size();
}

Result<SortedRecords> sort_records(Bytes message, const SliceTable& table,
                                   std::span<const uint32_t> slices, Rank from) {
  Result<std::vector<codec::RecordView>> records = codec::parse_all(message);
  if (!records) return corrupt(from, "a damaged message: " + records.error().message);
  SortedRecords sorted(slices.size());
  for (codec::RecordView& record : records.value()) {
    const codec::RecordHeader& header = record.header();
    const auto before = [&](uint32_t slice, const codec::RecordHeader& wanted) {
      const SliceRecord known = table.record_of(slice);
      return known.tensor != wanted.tensor ? known.tensor < wanted.tensor
                                           : known.range.first < wanted.first;
    };
    const auto found = std::lower_bound(slices.begin(), slices.end(), header, before);
    if (found == slices.end() || !is_of(header, table.record_of(*found))) {
      return corrupt(from, range_text(header) + ", which do not belong here");
    }
    auto& place = sorted[static_cast<size_t>(found - slices.begin())];
    if (place) return corrupt(from, range_text(header) + " twice");
    place = std::move(record);
  }
  return sorted;
}

}  // namespace scant::gradient
