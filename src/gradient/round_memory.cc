#include "gradient/round_memory.h"

#include <algorithm>

#include "codec/accumulate.h"

namespace scant::gradient {
namespace {

// Those that travel in a stage, ascending.
std::vector<uint32_t> travelling(const BufferPlan& buffer, const Layout& layout,
                                 const SliceTable& table, Stage stage) {
  std::vector<uint32_t> all;
  const auto append = [&all](SliceSpan span) {
    for (uint32_t slice = span.first; slice < span.first + span.count; ++slice) {
      all.push_back(slice);
    }
  };
  for (uint32_t i = 0; stage == Stage::values && i < buffer.parts; ++i) {
    const PartLayout& part = layout.parts()[buffer.first_part + i];
    if (buffer.points[i].first.density > 0) append({part.first_slice, part.slices});
  }
  for (uint32_t i = 0; i < buffer.parts; ++i) {
    const auto number = table.matrix_of(buffer.first_part + i);
    if (!number) continue;
    const MatrixPart& matrix = table.matrices()[*number];
    append(stage == Stage::basis ? matrix.left : matrix.right);
  }
  return all;
}

}  // namespace

void BufferMemory::clear() {
  for (Message& message : outgoing) message.clear();
  average.clear();
  for (auto& pieces : outgoing_pieces) pieces.clear();
  average_pieces.clear();
  added = 0;
  first_missing.clear();
  second_missing.clear();
}

void BufferMemory::reserve_pieces() {
  for (size_t owner = 0; owner < slices.size(); ++owner) {
    outgoing_pieces[owner].reserve(slices[owner].size());
  }
}

void BufferMemory::take_records(const BufferMemory& other, const SliceTable& table,
                                std::span<const SliceDuty> duties) {
  for (size_t from = 0; from < other.outgoing.size(); ++from) {
    const Bytes records = other.outgoing[from].view();
    for (Operation::Piece piece : other.outgoing_pieces[from]) {
      const auto to = static_cast<size_t>(duties[table.owned_like(piece.slice)].owner);
      const Bytes record = records.subspan(piece.begin, piece.bytes);
      piece.begin = outgoing[to].view().size();
      outgoing[to].append(record);
      outgoing_pieces[to].push_back(piece);
    }
  }
}

size_t BufferMemory::used_bytes() const {
  size_t bytes = average.view().size();
  for (const Message& message : outgoing) bytes += message.view().size();
  for (const uint64_t size : received) bytes += size;
  return bytes;
}

std::vector<codec::Range> lost_ranges(std::span<const Missing> missing, uint32_t slice, Rank sender,
                                      Rank receiver) {
  std::vector<codec::Range> lost;
  auto at = std::ranges::lower_bound(missing, slice, {}, &Missing::slice);
  for (; at != missing.end() && at->slice == slice; ++at) {
    const Missing& one = *at;
    if (sender != kNoRank && one.sender != sender) continue;
    if (receiver != kNoRank && one.receiver != receiver) continue;
    lost.insert(lost.end(), one.elements.begin(), one.elements.end());
  }
  std::ranges::sort(lost, {}, &codec::Range::first);
  std::vector<codec::Range> merged;
  for (const codec::Range& range : lost) {
    if (merged.empty() || range.first > merged.back().first + merged.back().elements) {
      merged.push_back(range);
      continue;
    }
    codec::Range& last = merged.back();
    last.elements = std::max(last.first + last.elements, range.first + range.elements) - last.first;
  }
  return merged;
}

SliceSpan slices_of(const BufferPlan& buffer, const Layout& layout) {
  const PartLayout& first = layout.parts()[buffer.first_part];
  const PartLayout& last = layout.parts()[buffer.first_part + buffer.parts - 1];
  return {first.first_slice, last.first_slice + last.slices - first.first_slice};
}

// Rooms have one size on all members, as a swap wants it.
Result<BufferMemory> memory_for(const BufferPlan& buffer, const Layout& layout,
                                const SliceTable& table, const Seat& seat, Stage stage) {
  BufferMemory memory;
  const auto ranks = static_cast<size_t>(seat.ranks());
  if (buffer.path == Path::all_reduce) {
    const SliceSpan span = slices_of(buffer, layout);
    const float mean = codec::mean_weight(static_cast<uint32_t>(ranks));
    for (const SliceDuty& duty : std::span(seat.duties).subspan(span.first, span.count)) {
      memory.mean = memory.mean && duty.weight == mean;
    }
    return memory;
  }
  const std::vector<uint32_t> all = travelling(buffer, layout, table, stage);
  if (stage == Stage::basis && all.empty()) return memory;
  const bool split = buffer.path == Path::split;
  memory.slices.resize(split ? ranks : 1);
  std::vector<uint64_t> bytes(memory.slices.size(), 0);
  for (const uint32_t slice : all) {
    const SliceDuty& duty = seat.duties[table.owned_like(slice)];
    const size_t of = split ? static_cast<size_t>(duty.owner) : 0;
    memory.slices[of].push_back(slice);
    bytes[of] += codec::record_bytes_max(table.record_of(slice).range.elements);
  }
  const uint64_t room = *std::ranges::max_element(bytes);
  memory.received.assign(ranks, 0);
  memory.outgoing.resize(memory.slices.size());
  memory.outgoing_pieces.resize(memory.slices.size());
  memory.incoming.resize(ranks);
  memory.averages.resize(split ? ranks : 0);
  std::vector<Message*> messages;
  for (Message& message : memory.outgoing) messages.push_back(&message);
  if (split) messages.push_back(&memory.average);
  for (size_t from = 0; from < ranks; ++from) {
    if (from == static_cast<size_t>(seat.rank())) continue;
    messages.push_back(&memory.incoming[from]);
    if (split) messages.push_back(&memory.averages[from]);
  }
  for (Message* message : messages) {
    if (Result<void> reserved = message->reserve(room); !reserved) return reserved.error();
  }
  return memory;
}

}  // namespace scant::gradient
