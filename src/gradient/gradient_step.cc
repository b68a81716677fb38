#include "gradient/gradient_step.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/fault.h"

namespace scant::gradient {
namespace {

using base::invalid;

// The short text needs no memory of its own.
Error out_of_memory(uint64_t round) try {
  return Error{.code = ErrorCode::resource,
               .message = "step " + std::to_string(round) +
                          ": no memory for its messages; use smaller buffers, or fewer workers"};
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource, .message = "out of memory"};
}

}  // namespace

GradientStep::GradientStep(Layout layout, StepOptions options, Seat seat, uint32_t slot)
    : layout_(std::move(layout)),
      options_(std::move(options)),
      slot_(slot),
      seat_(std::move(seat)),
      residuals_(layout_,
                 {.residual = options_.residual,
                  .decay = options_.decay,
                  .seed = options_.seed,
                  .make = options_.encoders},
                 workspace_, record_) {}

GradientStep::~GradientStep() {
  SCANT_CHECK(operations_ == 0, "an operation that is under way uses the round's memory");
}

Result<std::unique_ptr<GradientStep>> GradientStep::create(Layout layout, StepOptions options,
                                                           Members members, uint32_t slot) {
  if (!(options.decay >= 0.0f && options.decay <= 1.0f)) return invalid("decay must lie in 0 to 1");
  if (options.workers < 1 || options.workers > base::WorkerPool::kWorkersMax) {
    return invalid("workers must lie in 1 to " + std::to_string(base::WorkerPool::kWorkersMax));
  }
  if (slot >= kSlotsMax) {
    return invalid("slot " + std::to_string(slot) + ": an exchange has slots 0 to " +
                   std::to_string(kSlotsMax - 1));
  }
  Result<Seat> seat = seat_for(layout, std::move(members), {});
  if (!seat) return seat.error();
  std::unique_ptr<GradientStep> step(
      new GradientStep(std::move(layout), std::move(options), std::move(seat).value(), slot));
  Result<void> started = step->workspace_.start(step->options_.workers);
  if (!started) return started.error();
  return step;
}

Result<void> GradientStep::set_plan(const FusionPlan& wanted) {
  if (phase_ != Phase::idle) return invalid("a plan can only be set between steps");
  if (Result<void> valid = validate(wanted, layout_); !valid) return valid;
  if (plan_ == wanted) return {};
  try {
    const uint64_t hash = hash_of(serialise(wanted, layout_));
    FusionPlan copy = wanted;
    SliceTable table(layout_, copy);
    Result<std::vector<StageMemory>> memory = memory_of(copy, table, seat_);
    if (!memory) return memory.error();
    if (Result<void> prepared = factors_.prepare(table); !prepared) return prepared;
    replace_memory(std::move(copy), std::move(memory).value());
    table_ = std::move(table);
    plan_hash_ = hash;
  } catch (const std::bad_alloc&) {
    return out_of_memory(report_.step + 1);
  }
  return {};
}

Result<void> GradientStep::set_members(Members members, std::vector<SliceDuty> duties) {
  if (phase_ != Phase::idle) return invalid("members can only be set between steps");
  const bool usual_stay = duties.empty() && duties_are_usual_ && !owners_changed_;
  if (members == seat_.members && usual_stay) return {};
  try {
    const bool usual = duties.empty();
    Result<Seat> seat = seat_for(layout_, std::move(members), std::move(duties));
    if (!seat) return seat.error();
    if (seat.value() != seat_ || owners_changed_) {
      Result<std::vector<StageMemory>> memory = memory_of(plan_, table_, seat.value());
      if (!memory) return memory.error();
      FusionPlan plan = plan_;
      if (Result<void> adopted = residuals_.adopt(seat.value()); !adopted) return adopted;
      replace_memory(std::move(plan), std::move(memory).value());
      seat_ = std::move(seat).value();
      owners_changed_ = false;
    }
    duties_are_usual_ = usual;
  } catch (const std::bad_alloc&) {
    return out_of_memory(report_.step + 1);
  }
  return {};
}

Result<void> GradientStep::begin(const RoundSpec& spec, Time now) {
  if (phase_ != Phase::idle) return invalid("the round before is not over");
  if (plan_.buffers.empty()) return invalid("no plan is set");
  if (spec.arena.size() != layout_.arena_elements()) {
    return invalid("arena: the layout needs " + std::to_string(layout_.arena_elements()) +
                   " elements, got " + std::to_string(spec.arena.size()));
  }
  if (auto fault = gradients_fault(spec)) return *std::move(fault);
  if (auto fault = weights_fault(spec.duties)) return *std::move(fault);
  if (failed_epoch_ > 0 && spec.members.epoch <= failed_epoch_) {
    return invalid("the round before failed: the next needs members of a later epoch than " +
                   std::to_string(failed_epoch_));
  }
  try {
    // A rank that does not begin takes the round from all others, which cannot know why.
    Result<void> prepared = again([&]() -> Result<void> {
      if (Result<void> set = set_members(spec.members, spec.duties); !set) return set;
      if (Result<void> made = factors_.prepare(table_); !made) return made;
      if (Result<void> kept = keep_reserve(); !kept) return kept;
      prepare_round(spec);
      return {};
    });
    if (!prepared) return prepared;
  } catch (const std::bad_alloc&) {
    return out_of_memory(spec.round);
  }
  replaced_.reset();
  for (StageMemory& stages : memory_) {
    for (BufferMemory& memory : stages) memory.clear();
  }
  factors_.begin();
  arena_ = spec.arena;
  gradients_ = spec.gradients;
  begun_ = now;
  phase_ = Phase::running;
  return {};
}

// What goes as it is goes from the host, and factors are made there.
std::optional<Error> GradientStep::gradients_fault(const RoundSpec& spec) const {
  if (spec.gradients.memory.empty()) return std::nullopt;
  if (spec.gradients.memory.size() != layout_.arena_elements()) {
    return invalid("gradients: the layout needs " + std::to_string(layout_.arena_elements()) +
                   " elements, got " + std::to_string(spec.gradients.memory.size()));
  }
  if (spec.gradients.place.kind != codec::Place::Kind::device) {
    return invalid("gradients: those of the host lie in the arena");
  }
  if (options_.device && options_.device->ordinal() != spec.gradients.place.ordinal) {
    return invalid("gradients: they lie on device " + std::to_string(spec.gradients.place.ordinal) +
                   ", but device " + std::to_string(options_.device->ordinal()) +
                   " was given to copy them");
  }
  if (options_.device) return std::nullopt;
  const auto unsupported = [](const std::string& what) {
    return Error{.code = ErrorCode::unsupported,
                 .message = "gradients: " + what + ", and no device was given that copies it"};
  };
  const auto plain = std::ranges::find(plan_.buffers, Path::all_reduce, &BufferPlan::path);
  if (plain != plan_.buffers.end()) {
    return unsupported("buffer " + std::to_string(plain - plan_.buffers.begin()) +
                       " of the plan goes as all_reduce, from the host");
  }
  if (table_.matrices().empty()) return std::nullopt;
  return unsupported("part " + std::to_string(table_.matrices().front().part) +
                     " of the plan sends factors, which are made on the host");
}

// A product of factors counts as a whole.
std::optional<Error> GradientStep::weights_fault(std::span<const SliceDuty> duties) const {
  if (duties.size() != layout_.slices().size()) return std::nullopt;
  for (const MatrixPart& matrix : table_.matrices()) {
    const PartLayout& part = layout_.parts()[matrix.part];
    for (uint32_t slice = part.first_slice + 1; slice < part.first_slice + part.slices; ++slice) {
      if (duties[slice].weight == duties[part.first_slice].weight) continue;
      return invalid("duties: part " + std::to_string(matrix.part) +
                     " of the plan sends factors, and its slices have different weights");
    }
  }
  return std::nullopt;
}

// All that may run out of memory, before anything of the last round is gone.
void GradientStep::prepare_round(const RoundSpec& spec) {
  const size_t tensors = layout_.tensors().size();
  const auto ranks = static_cast<size_t>(seat_.ranks());
  no_memory_ = out_of_memory(spec.round);
  StepReport report;
  report.step = spec.round;
  report.plan_hash = plan_hash_;
  report.members_hash = seat_.members.hash();
  report.buffers.resize(plan_.buffers.size());
  report.parts.resize(layout_.parts().size());
  if (spec.curves) report.curves.resize(layout_.parts().size());
  own_ = Verdict{.step = spec.round,
                 .plan_hash = plan_hash_,
                 .members_hash = report.members_hash,
                 .present = std::vector<bool>(tensors),
                 .not_finite = std::vector<bool>(tensors)};
  report_ = std::move(report);
  seen_.assign(ranks, std::vector<bool>(tensors));
  missed_.assign(ranks, std::vector<bool>(tensors));
  by_rank_.clear();
  prepare_verdict();
  core_.begin(plan_);
  SCANT_CHECK(at_devices_.empty(), "a round ends after what its devices work on");
  if (options_.encoders || options_.device) at_devices_.reserve(layout_.slices().size());
  if (options_.device && !spec.gradients.memory.empty() && !fetches_) {
    fetches_ = std::make_unique<codec::StreamCall[]>(layout_.parts().size());
  }
  wake_ = spec.wake;
  arrived_.clear();
  arrived_.reserve(plan_.buffers.size());
  arrived_told_ = 0;
  owner_changes_.reserve(kOwnerChangesMax);
  finish_at_ = 0;
  owner_energy_ = residuals_.owner_energy();
  parts_to_encode_ = layout_.parts().size() + table_.matrices().size();
  verdict_over_ = nobody_applies_ = aborted_ = false;
  error_.reset();
  to_cancel_ = {};
}

void GradientStep::prepare_verdict() {
  const size_t bytes = verdict_bytes(layout_.tensors().size());
  const auto ranks = static_cast<size_t>(seat_.ranks());
  verdict_own_.resize(bytes);
  verdict_all_.resize(bytes * ranks);
  verdict_ = all_tell(verdict_own_, verdict_all_);
  // Where verdicts wait for legs, ranks with other plans would wait for one another's.
  opening_over_ = !options_.verdict_last && table_.matrices().empty();
  if (opening_over_) return;
  opening_own_.resize(bytes);
  opening_all_.resize(bytes * ranks);
  write_verdict(own_, opening_own_);
  opening_ = all_tell(opening_own_, opening_all_);
}

Operation GradientStep::all_tell(const std::vector<std::byte>& own, std::vector<std::byte>& all) {
  Operation operation{.kind = Operation::Kind::all_gather,
                      .lane = {slot_, Leg::verdict},
                      .round = report_.step,
                      .sent = {own},
                      .timeout = options_.timeout};
  for (size_t at = 0; at < all.size(); at += own.size()) {
    operation.room.push_back(MutableBytes(all).subspan(at, own.size()));
  }
  return operation;
}

double GradientStep::seconds(Time now) const {
  return std::chrono::duration<double>(now - begun_).count();
}

std::span<float> GradientStep::floats(uint32_t tensor, const codec::Range& range) const {
  return arena_.subspan(layout_.arena_offset(tensor, range), range.elements);
}

// Whether what is sent of a part is made there, so that its gradient was copied.
bool GradientStep::works_in_arena(uint32_t part) const {
  const bool plain = plan_.buffers[core_.buffer_of(part)].path == Path::all_reduce;
  return !on_device() || plain || matrix_part(part) != nullptr;
}

codec::Placed<const float> GradientStep::gradient_of(const SliceLayout& slice) const {
  const uint32_t tensor = layout_.parts()[slice.part].tensor;
  if (works_in_arena(slice.part)) return {.memory = floats(tensor, slice.range)};
  const uint64_t at = layout_.arena_offset(tensor, slice.range);
  return {.memory = gradients_.memory.subspan(at, slice.range.elements), .place = gradients_.place};
}

void GradientStep::ready(uint32_t tensor, Time now) {
  SCANT_CHECK(phase_ == Phase::running && tensor < own_.present.size() && !own_.present[tensor],
              "a tensor is ready once in a round that is not finished");
  own_.present[tensor] = true;
  tensor_there(tensor, now);
}

void GradientStep::tensor_there(uint32_t tensor, Time now) {
  const TensorLayout& known = layout_.tensors()[tensor];
  for (uint32_t part = known.first_part; part < known.first_part + known.parts; ++part) {
    if (error_) return;
    try {
      core_.part_ready(part);
    } catch (const std::bad_alloc&) {
      return fail_for_memory();
    }
    report_.parts[part].ready = seconds(now);
    BufferTimes& times = report_.buffers[core_.buffer_of(part)];
    times.ready = std::max(times.ready, report_.parts[part].ready);
  }
}

void GradientStep::finish(uint64_t parameters_hash, uint64_t samples, Time now) {
  SCANT_CHECK(phase_ == Phase::running, "a round is finished once");
  phase_ = Phase::finishing;
  finish_at_ = seconds(now);
  report_.backward_s = finish_at_;
  own_.parameters_hash = parameters_hash;
  own_.samples = samples;
  for (uint32_t tensor = 0; tensor < own_.present.size(); ++tensor) {
    if (!own_.present[tensor]) tensor_there(tensor, now);
  }
}

// The first error is the round's, unless the verdict tells more. Legs that are under way end, here
// and on the other members.
void GradientStep::fail(Error error) {
  if (error_) return;
  error_ = std::move(error);
  to_cancel_[static_cast<size_t>(Leg::first)] = true;
  to_cancel_[static_cast<size_t>(Leg::second)] = true;
  to_cancel_[static_cast<size_t>(Leg::owners)] = true;
  to_cancel_[static_cast<size_t>(Leg::basis_first)] = true;
  to_cancel_[static_cast<size_t>(Leg::basis_second)] = true;
}

// Its text was made beforehand.
void GradientStep::fail_for_memory() { fail(std::move(no_memory_)); }

// An error without a text is that of memory that ran out.
void GradientStep::fail_with(const Error& error) {
  if (error.message.empty()) return fail_for_memory();
  try {
    fail(error);
  } catch (const std::bad_alloc&) {
    fail_for_memory();
  }
}

void GradientStep::abort(Error error) {
  if (phase_ == Phase::idle) return;
  fail(std::move(error));
  aborted_ = true;
  nobody_applies_ = nobody_applies_ || verdict_.has_value();  // ours was never sent
  to_cancel_[static_cast<size_t>(Leg::verdict)] = true;
}

std::optional<Lane> GradientStep::next_cancelled() {
  for (size_t leg = 0; leg < to_cancel_.size(); ++leg) {
    if (std::exchange(to_cancel_[leg], false)) return Lane{slot_, static_cast<Leg>(leg)};
  }
  return std::nullopt;
}

std::optional<uint32_t> GradientStep::next_arrived() {
  if (arrived_told_ == arrived_.size()) return std::nullopt;
  return arrived_[arrived_told_++];
}

bool GradientStep::is_over() const {
  if (phase_ == Phase::idle || operations_ > 0 || job_ || device_works()) return false;
  if (aborted_) return true;
  if (owner_change_is_due()) return false;
  return phase_ == Phase::finishing && verdict_over_ && (error_ || core_.done());
}

// A message that lacks a tensor which its sender had, or holds one that it had not, is damaged.
std::optional<Error> GradientStep::check_presence() const {
  for (size_t sender = 0; sender < by_rank_.size(); ++sender) {
    for (size_t tensor = 0; tensor < own_.present.size(); ++tensor) {
      const bool had = by_rank_[sender].present[tensor];
      if ((had && missed_[sender][tensor]) || (!had && seen_[sender][tensor])) {
        return Error{.code = ErrorCode::corrupt,
                     .peer = static_cast<Rank>(sender),
                     .message = "rank " + std::to_string(sender) + " sent " + (had ? "no" : "a") +
                                " record of tensor " + std::to_string(tensor) +
                                (had ? ", whose" : ", without a") + " gradient" +
                                (had ? " it had" : "")};
      }
    }
  }
  return std::nullopt;
}

std::optional<Result<StepReport>> GradientStep::take_outcome(Time now) {
  if (!is_over()) return std::nullopt;
  try {
    if (!error_) error_ = check_presence();
  } catch (const std::bad_alloc&) {
    fail_for_memory();
  }
  end_all();
  if (const Result<void> settled = settle(); !settled) fail_with(settled.error());
  forget_owner_changes();
  phase_ = Phase::idle;
  report_.end_s = seconds(now);
  report_.exposed_s = report_.end_s - finish_at_;
  ended_well_ = !error_;
  if (!error_) return Result<StepReport>(std::move(report_));
  failed_epoch_ = seat_.members.epoch;
  return Result<StepReport>(*std::exchange(error_, std::nullopt));
}

std::vector<AveragedBuffer> GradientStep::averaged() const {
  std::vector<AveragedBuffer> all;
  if (phase_ != Phase::idle || !ended_well_ || !options_.second_leg.exact) return all;
  const FusionPlan& plan = replaced_ ? replaced_->plan : plan_;
  const std::vector<StageMemory>& buffers = replaced_ ? replaced_->memory : memory_;
  const auto self = static_cast<size_t>(replaced_ ? replaced_->rank : seat_.rank());
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    const BufferPlan& known = plan.buffers[i];
    const auto messages_of = [&](Stage stage) {
      const BufferMemory& memory = buffers[i][static_cast<size_t>(stage)];
      const bool split = known.path == Path::split;
      std::vector<Bytes> messages;
      for (size_t rank = 0; rank < memory.incoming.size(); ++rank) {
        const Message& own = split ? memory.average : memory.outgoing[0];
        const Message& other = (split ? memory.averages : memory.incoming)[rank];
        messages.push_back((rank == self ? own : other).view());
      }
      return messages;
    };
    AveragedBuffer& one =
        all.emplace_back(AveragedBuffer{.path = known.path,
                                        .messages = messages_of(Stage::values),
                                        .basis_messages = messages_of(Stage::basis),
                                        .first_part = known.first_part,
                                        .parts = known.parts});
    for (uint32_t part = 0; part < known.points.size(); ++part) {
      const uint32_t rank = known.points[part].first.rank;
      if (rank > 0) one.matrices.push_back({known.first_part + part, rank});
    }
  }
  return all;
}

Result<void> GradientStep::restore(Bytes saved) {
  if (phase_ != Phase::idle) return invalid("residuals can only be restored between steps");
  try {
    return residuals_.restore(saved, seat_, factors_);
  } catch (const std::bad_alloc&) {
    return out_of_memory(report_.step + 1);
  }
}

Result<std::vector<std::byte>> GradientStep::save() const {
  return residuals_.save(seat_, factors_);
}

void GradientStep::scale_residuals(float factor) { residuals_.scale(factor); }

}  // namespace scant::gradient
