// What a round takes memory for before anything depends on it: messages, the reserve, and what is
// needed after the verdict. docs/gradients.md, "Memory".
#include <algorithm>
#include <new>
#include <utility>

#include "gradient/gradient_step.h"

namespace scant::gradient {

Result<GradientStep::StageMemory> GradientStep::memory_of(const BufferPlan& buffer,
                                                          const SliceTable& table,
                                                          const Seat& seat) const {
  StageMemory stages;
  for (const Stage stage : {Stage::basis, Stage::values}) {
    Result<BufferMemory> memory = memory_for(buffer, layout_, table, seat, stage);
    if (!memory) return memory.error();
    stages[static_cast<size_t>(stage)] = std::move(memory).value();
  }
  return stages;
}

Result<std::vector<GradientStep::StageMemory>> GradientStep::memory_of(const FusionPlan& plan,
                                                                       const SliceTable& table,
                                                                       const Seat& seat) const {
  std::vector<StageMemory> all;
  all.reserve(plan.buffers.size());
  for (const BufferPlan& buffer : plan.buffers) {
    Result<StageMemory> memory = memory_of(buffer, table, seat);
    if (!memory) return memory.error();
    all.push_back(std::move(memory).value());
  }
  return all;
}

// What the last round decoded stays until the next begins.
void GradientStep::replace_memory(FusionPlan plan, std::vector<StageMemory> memory) {
  if (!replaced_) replaced_ = Replaced{std::move(plan_), seat_.rank(), std::move(memory_)};
  plan_ = std::move(plan);
  memory_ = std::move(memory);
}

// Untouched, so it takes room alone: for the lists of one job, and the largest record.
Result<void> GradientStep::keep_reserve() {
  constexpr uint64_t kSmall = uint64_t{1} << 18;
  constexpr uint64_t kOfSparseStep = 4;  // what its lists take, in largest records
  uint64_t largest = 0;
  for (const SliceLayout& slice : layout_.slices()) {
    largest = std::max(largest, slice.range.elements);
  }
  scratch_.reserve(largest);
  const auto ranks = static_cast<uint64_t>(seat_.ranks());
  uint64_t records = 0;  // that are sorted at a time
  for_each_memory([&](const BufferMemory& memory) {
    for (const auto& slices : memory.slices) records = std::max(records, ranks * slices.size());
    for (const auto& slices : memory.slices) {
      for (const uint32_t slice : slices) {
        largest = std::max(largest, table_.record_of(slice).range.elements);
      }
    }
  });
  const uint64_t bytes = kSmall + records * 2 * sizeof(SortedRecords::value_type) +
                         kOfSparseStep * codec::record_bytes_max(largest) +
                         factors_.scratch_elements(table_) * sizeof(float);
  if (reserve_.size() >= bytes) return {};
  Result<base::Buffer> made = base::Buffer::allocate(bytes);
  if (!made) return made.error();
  reserve_ = std::move(made).value();
  return {};
}

// What is left to do after the verdict is sent needs no other large memory than this.
Result<void> GradientStep::prepare_rest() try {
  if (options_.verdict_last) return {};
  uint64_t largest = 0;
  Result<void> made;
  for_each_memory([&](const BufferMemory& memory) {
    if (memory.averages.empty()) return;  // not split
    for (const uint32_t slice : memory.slices[static_cast<size_t>(seat_.rank())]) {
      const uint32_t tensor = layout_.parts()[table_.part_of(slice)].tensor;
      if (!own_.present[tensor] && !options_.missing_as_zeros) continue;
      if (!table_.is_factor(slice)) static_cast<void>(residuals_.owner(slice, seat_));
      if (made && table_.is_factor(slice)) made = make_workers(table_.part_of(slice));
      const uint64_t elements = table_.record_of(slice).range.elements;
      largest = std::max(largest, codec::record_bytes_max(elements));
    }
  });
  if (!made) return made;
  if (Result<void> prepared = workspace_.prepare(largest); !prepared) return prepared;
  const Result<MutableBytes> record = record_.resize(largest);
  return record ? Result<void>() : record.error();
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource, .message = {}};
}

}  // namespace scant::gradient
