// The end of a round: what did not arrive, or what nobody applied, goes back to who sent it.
// docs/gradients.md, "What a round leaves".
#include <algorithm>
#include <new>
#include <utility>

#include "codec/accumulate.h"
#include "gradient/gradient_step.h"

namespace scant::gradient {

// What ran out of memory has changed nothing, so it can be tried once more.
Result<void> GradientStep::settle() {
  const bool all = error_ && nobody_applies_;
  const bool bounded = !options_.first_leg.exact || !options_.second_leg.exact;
  Result<void> outcome = settle_factors(all);
  if (!all && !bounded) return outcome;
  for (uint32_t buffer = 0; buffer < memory_.size(); ++buffer) {
    try {
      Result<std::vector<Returned>> returned = again([&] { return returned_of(buffer, all); });
      if (!returned) {
        outcome = returned.error();
        continue;
      }
      for (Returned& one : returned.value()) {
        Result<void> done = again([&] { return give_back(one); });
        if (!done) outcome = std::move(done);
      }
    } catch (const std::bad_alloc&) {
      outcome = Error{.code = ErrorCode::resource, .message = {}};
    }
  }
  return outcome;
}

Result<void> GradientStep::give_back(Returned& one) {
  if (one.record) {
    return residuals_.take_back(one.slice, one.of_owner, *one.record, one.ranges, workspace_);
  }
  return residuals_.subtract_from_owner(one.slice, one.average);
}

// Of one buffer: this rank's records, and its averages. `all`: whole, else what is missing.
Result<std::vector<GradientStep::Returned>> GradientStep::returned_of(uint32_t index, bool all) {
  BufferMemory& memory = memory_of_stage(index, Stage::values);
  std::vector<Returned> returned;
  const auto append = [&](const Message& message, const std::vector<uint32_t>& slices,
                          bool of_owner) -> Result<void> {
    Result<SortedRecords> sorted = sort_records(message.view(), table_, slices, seat_.rank());
    if (!sorted) return sorted.error();
    for (size_t i = 0; i < slices.size(); ++i) {
      if (!sorted.value()[i] || table_.is_factor(slices[i])) continue;
      std::vector<codec::Range> ranges{layout_.slices()[slices[i]].range};
      const auto& missing = of_owner ? memory.second_missing : memory.first_missing;
      if (!all) ranges = lost_ranges(missing, slices[i], seat_.rank(), kNoRank);
      if (ranges.empty()) continue;
      returned.push_back({slices[i], of_owner, *std::move(sorted.value()[i]), std::move(ranges)});
    }
    return {};
  };
  for (size_t i = 0; i < memory.outgoing.size(); ++i) {
    const bool any = all || !memory.first_missing.empty();
    if (!any) break;
    Result<void> done = append(memory.outgoing[i], memory.slices[i], false);
    if (!done) return done.error();
  }
  const bool averaged = plan_.buffers[index].path == Path::split &&
                        !memory.average.view().empty() && (all || !memory.second_missing.empty());
  if (!averaged) return returned;
  const auto& own = memory.slices[static_cast<size_t>(seat_.rank())];
  if (Result<void> done = append(memory.average, own, true); !done) return done.error();
  if (Result<void> done = all ? append_averages(index, returned) : Result<void>(); !done) {
    return done.error();
  }
  return returned;
}

// take_back() leaves the average in the owner's residual, and the members' own records return to
// them: it would count twice.
Result<void> GradientStep::append_averages(uint32_t index, std::vector<Returned>& returned) {
  BufferMemory& memory = memory_of_stage(index, Stage::values);
  const auto self = static_cast<size_t>(seat_.rank());
  const auto& slices = memory.slices[self];
  std::vector<SortedRecords> by_rank;
  for (size_t from = 0; from < memory.incoming.size(); ++from) {
    const Message& message = from == self ? memory.outgoing[self] : memory.incoming[from];
    Result<SortedRecords> sorted =
        sort_records(message.view(), table_, slices, static_cast<Rank>(from));
    if (!sorted) return sorted.error();
    by_rank.push_back(std::move(sorted).value());
  }
  const size_t encoded = returned.size();
  for (size_t k = 0; k < encoded; ++k) {
    if (!returned[k].of_owner) continue;
    const uint32_t slice = returned[k].slice;
    const auto at = static_cast<size_t>(std::ranges::lower_bound(slices, slice) - slices.begin());
    Returned one{.slice = slice, .of_owner = true};
    one.average.resize(layout_.slices()[slice].range.elements);
    Effort uncharged;
    Result<bool> summed = sum_of(index, Stage::values, at, by_rank, one.average, uncharged);
    if (!summed) return summed.error();
    returned.push_back(std::move(one));
  }
  return {};
}

}  // namespace scant::gradient
