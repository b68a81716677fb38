// The messages of one buffer of a plan, which stay until the round ends, and what did not arrive.
// Plain values, one owner thread.
#pragma once

#include <vector>

#include "gradient/exchange.h"
#include "gradient/fusion_plan.h"
#include "gradient/messages.h"
#include "gradient/seat.h"
#include "gradient/slice_table.h"
#include "gradient/step_core.h"

namespace scant::gradient {

struct BufferMemory {
  bool mean = true;                           // all_reduce: every member counts 1 / P
  std::vector<std::vector<uint32_t>> slices;  // of a SliceTable; split: by owner; gather: all
  std::vector<Message> outgoing;              // by owner; gather: one
  std::vector<Message> incoming;              // by rank, first leg; the own place stays empty
  Message average;                            // split: what this owner sends back
  std::vector<Message> averages;              // by owner, second leg; the own place stays empty
  std::vector<uint64_t> received;             // by rank, of the leg that is under way
  // Where records lie in `outgoing`, of split; and in `average`, where the second leg is bounded.
  std::vector<std::vector<Operation::Piece>> outgoing_pieces;
  std::vector<Operation::Piece> average_pieces;
  size_t added = 0;  // split: slices of this owner whose averages are encoded
  // By slice.
  std::vector<Missing> first_missing;
  std::vector<Missing> second_missing;

  void clear();  // of records, for the next round
  // Of split: the records that `other` has for the same slices, whose owners are others there.
  // Needs no memory after reserve_pieces().
  void reserve_pieces();
  void take_records(const BufferMemory& other, const SliceTable& table,
                    std::span<const SliceDuty> duties);
  [[nodiscard]] size_t used_bytes() const;
};

// Of the missing, which are sorted by slice, the elements of one slice that lack for this sender or
// receiver (kNoRank: any): ascending, apart.
[[nodiscard]] std::vector<codec::Range> lost_ranges(std::span<const Missing> missing,
                                                    uint32_t slice, Rank sender, Rank receiver);

// The slices of the layout that a buffer is about.
[[nodiscard]] SliceSpan slices_of(const BufferPlan& buffer, const Layout& layout);

// Of one stage; of buffers without matrix parts that of the basis is empty. Of what is reserved,
// only what messages fill is ever touched.
[[nodiscard]] Result<BufferMemory> memory_for(const BufferPlan& buffer, const Layout& layout,
                                              const SliceTable& table, const Seat& seat,
                                              Stage stage);

}  // namespace scant::gradient
