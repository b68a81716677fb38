// Owners that change within a round: docs/gradients.md, "Other owners within a round". What the
// members agree on is the first turn that changes; all memory for it is there before they do.
#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/fault.h"
#include "base/rng.h"
#include "gradient/gradient_step.h"

namespace scant::gradient {
namespace {

Error invalid(const std::string& what) { return base::invalid("owners: " + what); }

}  // namespace

// Takes no memory of its own, so that a member which has none joins the agreement all the same.
Result<void> GradientStep::change_owners(std::vector<SliceDuty> duties) {
  if (phase_ == Phase::idle) return invalid("they change within a round, and none is under way");
  if (owner_changes_.size() == kOwnerChangesMax) {
    return invalid("they change at most " + std::to_string(kOwnerChangesMax) + " times in a round");
  }
  if (duties.size() != seat_.duties.size()) {
    return invalid(std::to_string(duties.size()) + " duties, the layout has " +
                   std::to_string(seat_.duties.size()) + " slices");
  }
  for (size_t i = 0; i < duties.size(); ++i) {
    if (duties[i].owner < 0 || duties[i].owner >= seat_.ranks()) {
      return invalid("that of slice " + std::to_string(i) + " is none of the " +
                     std::to_string(seat_.ranks()) + " members");
    }
    if (duties[i].weight != seat_.duties[i].weight) {
      return invalid("the weight of slice " + std::to_string(i) +
                     " is another than the round began with");
    }
  }
  owner_changes_.push_back(std::move(duties));
  return {};
}

// A member that has failed, or has no memory for it, says that all buffers have begun.
Transmit GradientStep::begin_owner_change() {
  owner_change_ = OwnerChange{.duties = std::move(owner_changes_[owner_changes_begun_++]),
                              .first = core_.next_first()};
  core_.hold();
  const bool prepared = !error_ && prepare_owner_change().ok();
  if (!prepared) {
    owner_change_->first = static_cast<uint32_t>(plan_.buffers.size());
    owner_change_->memory.clear();
  }
  const int64_t hash = owner_change_hash();
  owner_change_told_ = {owner_change_->first, hash, -hash};
  ++operations_;
  return {{.round = report_.step, .leg = Leg::owners},
          {.kind = Operation::Kind::all_reduce,
           .lane = {slot_, Leg::owners},
           .round = report_.step,
           .dtype = DType::i64,
           .op = ReduceOp::max,
           .span = std::as_writable_bytes(std::span(owner_change_told_)),
           .timeout = options_.timeout}};
}

// After this rank's verdict it has to hold what prepare_rest() promised, too.
Result<void> GradientStep::prepare_owner_change() try {
  OwnerChange& change = *owner_change_;
  if (duties_before_.empty()) duties_before_ = seat_.duties;
  owners_changed_ = true;
  const Seat seat{seat_.members, change.duties};
  for (uint32_t turn = change.first; turn < plan_.buffers.size(); ++turn) {
    const uint32_t buffer = buffer_at(plan_, turn);
    StageMemory& memory = change.memory.emplace_back();
    if (!gets_other_owners(buffer)) continue;
    Result<StageMemory> made = memory_of(plan_.buffers[buffer], table_, seat);
    if (!made) return made.error();
    memory = std::move(made).value();
    for (BufferMemory& stage : memory) stage.reserve_pieces();
  }
  if (Result<void> kept = keep_reserve(); !kept) return kept;
  return verdict_ ? Result<void>() : prepare_rest();
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource, .message = {}};
}

bool GradientStep::gets_other_owners(uint32_t buffer) const {
  if (plan_.buffers[buffer].path != Path::split) return false;
  const SliceSpan span = slices_of(plan_.buffers[buffer], layout_);
  for (uint32_t slice = span.first; slice < span.first + span.count; ++slice) {
    if (owner_change_->duties[slice].owner != seat_.duties[slice].owner) return true;
  }
  return false;
}

int64_t GradientStep::owner_change_hash() const {
  uint64_t hash = base::random_at(report_.step, plan_hash_, owner_changes_begun_);
  for (const SliceDuty& duty : owner_change_->duties) {
    hash = base::random_at(hash, static_cast<uint64_t>(duty.owner), 0);
  }
  return static_cast<int64_t>(hash >> 1);
}

void GradientStep::owner_change_done() {
  OwnerChange change = *std::exchange(owner_change_, std::nullopt);
  core_.release();
  const auto [first, most, least] =
      owner_change_told_;  // of the members' hashes; the least negated
  if (most != -least) {
    return fail(Error{.code = ErrorCode::mismatch,
                      .message = "step " + std::to_string(report_.step) +
                                 ": the members have changed its owners differently"});
  }
  SCANT_CHECK(first >= change.first, "the most that any member tells is not less than this one's");
  if (!error_) take_owners(change, static_cast<uint32_t>(first));
}

// Needs no memory: no member can be left alone with the old owners.
void GradientStep::take_owners(OwnerChange& change, uint32_t first) {
  for (uint32_t turn = first; turn < plan_.buffers.size(); ++turn) {
    StageMemory& next = change.memory[turn - change.first];
    if (next.back().slices.empty()) continue;
    const uint32_t buffer = buffer_at(plan_, turn);
    const SliceSpan span = slices_of(plan_.buffers[buffer], layout_);
    for (uint32_t slice = span.first; slice < span.first + span.count; ++slice) {
      seat_.duties[slice].owner = change.duties[slice].owner;
    }
    StageMemory& memory = memory_[buffer];
    for (size_t stage = 0; stage < kStageCount; ++stage) {
      next[stage].take_records(memory[stage], table_, seat_.duties);
    }
    memory = std::move(next);
    ++report_.changed_buffers;
  }
}

void GradientStep::forget_owner_changes() {
  owner_change_.reset();
  owner_changes_.clear();
  owner_changes_begun_ = 0;
  if (!duties_before_.empty()) seat_.duties = std::exchange(duties_before_, {});
}

}  // namespace scant::gradient
