// The operations of a round: what is submitted when, and what their ends mean.
#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "collective/schedules/cost_model.h"
#include "gradient/gradient_step.h"

namespace scant::gradient {

std::optional<Transmit> GradientStep::poll_transmit(Time now) {
  if (phase_ == Phase::idle) return std::nullopt;
  if (opening_ && !aborted_) {
    ++operations_;
    return Transmit{{.round = report_.step, .leg = Leg::verdict, .opening = true},
                    *std::exchange(opening_, std::nullopt)};
  }
  if (owner_change_is_due()) return begin_owner_change();
  if (!error_ && !verdict_is_due()) {
    try {
      if (auto leg = begin_leg(now)) return leg;
    } catch (const std::bad_alloc&) {
      fail_for_memory();
    }
  }
  if (!verdict_is_due()) return std::nullopt;
  return begin_verdict();
}

Transmit GradientStep::begin_verdict() {
  // A job that failed and was not told of as finished would fail this rank alone.
  if (job_ && !job_outcome_) fail_with(job_outcome_.error());
  if (!error_) {
    if (const Result<void> prepared = prepare_rest(); !prepared) fail_for_memory();
  }
  own_.failure = error_ ? static_cast<uint64_t>(error_->code) + 1 : 0;
  own_.residual_energy = residuals_.worker_energy() + owner_energy_;
  nobody_applies_ = nobody_applies_ || error_.has_value();
  write_verdict(own_, verdict_own_);
  ++operations_;
  return {{.round = report_.step, .leg = Leg::verdict}, *std::exchange(verdict_, std::nullopt)};
}

// Once everything is encoded, so that it can count what is not finite; or once something failed, so
// that all members learn of it.
bool GradientStep::verdict_is_due() const {
  if (phase_ != Phase::finishing || !verdict_ || aborted_ || !opening_over_) return false;
  if (error_) return true;
  return options_.verdict_last ? core_.done() : parts_to_encode_ == 0;
}

std::optional<Transmit> GradientStep::begin_leg(Time now) {
  const std::optional<StepCore::Job> leg = core_.next_leg();
  if (!leg) return std::nullopt;
  const bool first = leg->kind == StepCore::Kind::begin_first;
  const bool basis = leg->stage == Stage::basis;
  BufferTimes& times = report_.buffers[leg->buffer];
  if (!basis) (first ? times.first_begin : times.second_begin) = seconds(now);
  if (basis && first) times.basis_begin = seconds(now);
  Result<Operation> operation = steadily([&] { return Result<Operation>(operation_of(*leg)); });
  Transmit transmit{{.round = report_.step, .leg = leg_of(*leg), .buffer = leg->buffer},
                    std::move(operation).value()};
  uint64_t bytes = 0;
  for (const Bytes message : transmit.operation.sent) bytes += message.size();
  if (plan_.buffers[leg->buffer].path == Path::all_reduce) bytes = times.first_bytes;
  if (basis) times.basis_bytes += bytes;
  if (!basis) (first ? times.first_bytes : times.second_bytes) = bytes;
  report_.sent_bytes += bytes;
  ++operations_;
  return transmit;
}

Leg GradientStep::leg_of(const StepCore::Job& job) {
  const bool first = job.kind == StepCore::Kind::begin_first;
  if (job.stage == Stage::basis) return first ? Leg::basis_first : Leg::basis_second;
  return first ? Leg::first : Leg::second;
}

Stage GradientStep::stage_of(Leg leg) {
  return leg == Leg::basis_first || leg == Leg::basis_second ? Stage::basis : Stage::values;
}

Operation GradientStep::operation_of(const StepCore::Job& leg) {
  if (plan_.buffers[leg.buffer].path == Path::all_reduce) return all_reduce(leg.buffer);
  return leg.kind == StepCore::Kind::begin_first ? first_swap(leg.buffer, leg.stage)
                                                 : second_swap(leg.buffer, leg.stage);
}

Operation GradientStep::all_reduce(uint32_t index) {
  const BufferPlan& buffer = plan_.buffers[index];
  const PartLayout& first = layout_.parts()[buffer.first_part];
  const PartLayout& last = layout_.parts()[buffer.first_part + buffer.parts - 1];
  const uint64_t begin = layout_.arena_offset(first.tensor, first.range);
  const uint64_t end = layout_.arena_offset(last.tensor, last.range) + last.range.elements;
  const MutableBytes bytes = std::as_writable_bytes(arena_.subspan(begin, end - begin));
  report_.buffers[index].first_bytes = static_cast<uint64_t>(
      collective::all_reduce_sent_bytes(static_cast<double>(bytes.size()), seat_.ranks()));
  return {.kind = Operation::Kind::all_reduce,
          .lane = {slot_, Leg::first},
          .round = report_.step,
          .dtype = DType::f32,
          .op = memory_of_stage(index, Stage::values).mean ? ReduceOp::average : ReduceOp::sum,
          .span = bytes,
          .timeout = options_.timeout};
}

Operation GradientStep::swap_of(uint32_t index, Stage stage, Leg leg, const Delivery& delivery) {
  Operation swap{.kind = Operation::Kind::swap,
                 .lane = {slot_, leg},
                 .round = report_.step,
                 .received = memory_of_stage(index, stage).received,
                 .delivery = delivery,
                 .timeout = options_.timeout};
  swap.sent.reserve(static_cast<size_t>(seat_.ranks()));
  swap.room.reserve(static_cast<size_t>(seat_.ranks()));
  return swap;
}

Operation GradientStep::first_swap(uint32_t index, Stage stage) {
  const bool split = plan_.buffers[index].path == Path::split;
  BufferMemory& memory = memory_of_stage(index, stage);
  const Leg leg = stage == Stage::basis ? Leg::basis_first : Leg::first;
  Operation swap = swap_of(index, stage, leg, split ? options_.first_leg : Delivery{});
  for (size_t to = 0; to < memory.incoming.size(); ++to) {
    const Message& message = memory.outgoing[split ? to : 0];
    const bool self = to == static_cast<size_t>(seat_.rank());
    swap.sent.push_back(self ? Bytes{} : message.view());
    swap.room.push_back(memory.incoming[to].room());
  }
  if (!swap.delivery.exact) swap.pieces = memory.outgoing_pieces;
  return swap;
}

Operation GradientStep::second_swap(uint32_t index, Stage stage) {
  BufferMemory& memory = memory_of_stage(index, stage);
  const Leg leg = stage == Stage::basis ? Leg::basis_second : Leg::second;
  Operation swap = swap_of(index, stage, leg, options_.second_leg);
  for (size_t to = 0; to < memory.averages.size(); ++to) {
    const bool self = to == static_cast<size_t>(seat_.rank());
    swap.sent.push_back(self ? Bytes{} : std::as_const(memory.average).view());
    swap.room.push_back(memory.averages[to].room());
    if (!swap.delivery.exact) swap.pieces.push_back(memory.average_pieces);
  }
  return swap;
}

void GradientStep::on_done(const Ticket& ticket, const Outcome& outcome, Time now) {
  SCANT_CHECK(operations_ > 0 && ticket.round == report_.step, "an operation is done once");
  --operations_;
  if (ticket.leg == Leg::verdict) (ticket.opening ? opening_over_ : verdict_over_) = true;
  if (ticket.opening && !outcome.result) leave_verdicts();
  try {
    if (!outcome.result) return fail_with(outcome.result.error());
    if (ticket.opening) return opening_done();
    if (ticket.leg == Leg::owners) return owner_change_done();
    if (ticket.leg == Leg::verdict) return verdict_done();
    if (!error_) leg_done(ticket, outcome.missing, now);
  } catch (const std::bad_alloc&) {
    fail_for_memory();
  }
}

// An opening that this member never sent is one operation less in the lane: others would take its
// verdict for it.
void GradientStep::leave_verdicts() {
  verdict_.reset();
  verdict_over_ = true;
  nobody_applies_ = true;
  to_cancel_[static_cast<size_t>(Leg::verdict)] = true;
}

void GradientStep::leg_done(const Ticket& ticket, const std::vector<Missing>& missing, Time now) {
  if (!missing.empty()) {
    const Result<void> taken = steadily([&] { return take_missing(ticket, missing); });
    if (!taken) return fail(taken.error());
  }
  const bool basis = stage_of(ticket.leg) == Stage::basis;
  const bool first = !is_second(ticket.leg);
  BufferTimes& times = report_.buffers[ticket.buffer];
  (basis ? times.basis_end : first ? times.first_end : times.second_end) = seconds(now);
  if (first && plan_.buffers[ticket.buffer].path == Path::all_reduce) times.done = times.first_end;
  core_.finished({first ? StepCore::Kind::begin_first : StepCore::Kind::begin_second, ticket.buffer,
                  0, basis ? Stage::basis : Stage::values});
  note_arrival(ticket.buffer);
}

// Room for it was made when the round began.
void GradientStep::note_arrival(uint32_t buffer) {
  if (core_.is_done(buffer)) arrived_.push_back(buffer);
}

Result<void> GradientStep::take_missing(const Ticket& ticket, const std::vector<Missing>& missing) {
  const bool first = !is_second(ticket.leg);
  const bool split = plan_.buffers[ticket.buffer].path == Path::split;
  const Delivery& delivery = first ? options_.first_leg : options_.second_leg;
  const auto possible = [&](const Missing& one) { return is_possible(one, ticket); };
  if (!split || delivery.exact || !std::ranges::all_of(missing, possible)) {
    const Missing& one = missing.front();
    return Error{.code = ErrorCode::corrupt,
                 .peer = one.sender,
                 .message = "the exchange says that elements of slice " +
                            std::to_string(one.slice) + " from rank " + std::to_string(one.sender) +
                            " to rank " + std::to_string(one.receiver) +
                            " are missing, which cannot be in this leg of buffer " +
                            std::to_string(ticket.buffer)};
  }
  BufferMemory& memory = memory_of_stage(ticket.buffer, stage_of(ticket.leg));
  auto& taken = first ? memory.first_missing : memory.second_missing;
  taken = missing;
  std::ranges::stable_sort(taken, {}, &Missing::slice);
  for (const Missing& one : taken) {
    if (table_.is_factor(one.slice) && one.sender == seat_.rank()) note_lost_factor(one);
  }
  return {};
}

bool GradientStep::is_possible(const Missing& one, const Ticket& ticket) const {
  const auto in = [&](Rank rank) { return rank >= 0 && rank < seat_.ranks(); };
  if (one.round != ticket.round || one.leg != ticket.leg || one.slice >= table_.size() ||
      !in(one.sender) || !in(one.receiver)) {
    return false;
  }
  const Rank owner = seat_.duties[table_.owned_like(one.slice)].owner;
  if (owner != (is_second(ticket.leg) ? one.sender : one.receiver)) return false;
  const auto& slices = memory_[ticket.buffer][static_cast<size_t>(stage_of(ticket.leg))]
                           .slices[static_cast<size_t>(owner)];
  return std::ranges::binary_search(slices, one.slice) &&
         !codec::ranges_fault(one.elements, table_.record_of(one.slice).range);
}

// What all say goes before what this one met, unless they say that this one failed, or that lanes
// were cancelled, and this one knows why. Of one kind, what this one met may tell more.
void GradientStep::fail_as_said(const Error& said) {
  if (!error_) return fail(said);
  const bool same = said.code == error_->code;
  const bool less = said.code == ErrorCode::closed && !same;
  if (less || (same && said.peer == seat_.rank())) return;
  Error all = said;
  if (same) all.message.append("; here: ").append(error_->message);
  error_ = std::move(all);
}

std::vector<Verdict> GradientStep::read_all(Bytes all) const {
  std::vector<Verdict> by_rank;
  const size_t bytes = verdict_own_.size();
  for (size_t at = 0; at < all.size(); at += bytes) {
    by_rank.push_back(read_verdict(all.subspan(at, bytes), layout_.tensors().size()));
  }
  return by_rank;
}

void GradientStep::opening_done() {
  const Result<void> alike = compare_openings(read_all(opening_all_));
  if (!alike) fail_as_said(alike.error());
}

void GradientStep::verdict_done() {
  std::vector<Verdict> by_rank;
  Result<Judgement> judgement = steadily([&] {
    by_rank = read_all(verdict_all_);
    return judge(by_rank, {.missing_as_zeros = options_.missing_as_zeros, .names = options_.names});
  });
  if (!judgement) {
    nobody_applies_ = true;
    return fail_as_said(judgement.error());
  }
  report_.present = std::move(judgement.value().present);
  report_.nonfinite = judgement.value().nonfinite;
  report_.not_finite = std::move(judgement.value().not_finite);
  report_.accounts = std::move(judgement.value().accounts);
  by_rank_ = std::move(by_rank);
}

}  // namespace scant::gradient
