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

bool is_of(const codec::RecordHeader& header, const Layout& layout, uint32_t slice) {
  const SliceLayout& known = layout.slices()[slice];
  const uint32_t tensor = layout.parts()[known.part].tensor;
  return tensor == header.tensor && known.range == codec::Range{header.first, header.elements} &&
         layout.tensors()[tensor].shape == header.shape;
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

Result<SortedRecords> sort_records(Bytes message, const Layout& layout,
                                   std::span<const uint32_t> slices, Rank from) {
  Result<std::vector<codec::RecordView>> records = codec::parse_all(message);
  if (!records) return corrupt(from, "a damaged message: " + records.error().message);
  SortedRecords sorted(slices.size());
  for (codec::RecordView& record : records.value()) {
    const codec::RecordHeader& header = record.header();
    const auto before = [&](uint32_t slice, const codec::RecordHeader& wanted) {
      const SliceLayout& known = layout.slices()[slice];
      const uint32_t tensor = layout.parts()[known.part].tensor;
      return tensor != wanted.tensor ? tensor < wanted.tensor : known.range.first < wanted.first;
    };
    const auto found = std::lower_bound(slices.begin(), slices.end(), header, before);
    if (found == slices.end() || !is_of(header, layout, *found)) {
      return corrupt(from, range_text(header) + ", which do not belong here");
    }
    auto& place = sorted[static_cast<size_t>(found - slices.begin())];
    if (place) return corrupt(from, range_text(header) + " twice");
    place = std::move(record);
  }
  return sorted;
}

}  // namespace scant::gradient
