// Submission, the running of steps, outcomes and timers. The other parts of the engine:
// engine_impl.h.
#include "collective/engine/engine.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "collective/engine/engine_impl.h"
#include "collective/reduce/reduce.h"

namespace scant::collective {
namespace {

// Above this size the agreement on cost parameters goes by recursive doubling: direct would be P²
// messages.
constexpr int kAgreementDirectMax = 16;
// Collectives between an agreement and the first that uses it, at most: nobody waits for it in
// ordinary traffic.
constexpr uint32_t kAgreementLead = 32;

// Whether an outcome that this collective needs is still to come.
bool held(const Group& group, uint32_t sequence) {
  return std::any_of(group.preludes.begin(), group.preludes.end(),
                     [sequence](const Prelude& p) { return p.from <= sequence && !p.ended; });
}

base::Counter& outcome_counter(OpKind kind, const std::optional<Error>& error) {
  constexpr size_t kKinds = static_cast<size_t>(kLastOpKind) + 1;
  constexpr size_t kOutcomes = size_t{kErrorCodeCount} + 1;
  static std::array<std::array<std::atomic<base::Counter*>, kOutcomes>, kKinds> counters{};
  const size_t outcome = error ? static_cast<size_t>(error->code) + 1 : 0;
  std::atomic<base::Counter*>& slot = counters[static_cast<size_t>(kind)][outcome];
  base::Counter* counter = slot.load(std::memory_order_acquire);  // pairs with the store below
  if (counter == nullptr) {
    const std::string labels = std::string("{kind=\"") + name(kind) + "\",outcome=\"" +
                               (error ? name(error->code) : "ok") + "\"}";
    counter =
        &base::counter("scant_engine_operations_total", "Operations by kind and outcome", labels);
    slot.store(counter, std::memory_order_release);
  }
  return *counter;
}

}  // namespace

EngineCounters::EngineCounters()
    : stale(base::counter("scant_engine_stale_frames_total", "Frames of an older epoch, dropped")),
      late(base::counter("scant_engine_late_frames_total", "Frames of operations that had ended")),
      mismatches(
          base::counter("scant_engine_mismatches_total", "Calls that differed between ranks")),
      eager(base::counter("scant_engine_eager_frames_total", "Data frames sent on credit")),
      request(
          base::counter("scant_engine_request_frames_total", "Requests for permission to send")),
      ready(base::counter("scant_engine_ready_frames_total", "Permissions to send given")),
      credit(base::counter("scant_engine_credit_frames_total", "Frames that only return credit")),
      cancel(base::counter("scant_engine_cancel_frames_total", "Cancellations sent")),
      probes(base::counter("scant_engine_probes_total", "Operations that asked who delays them")),
      unexpected_max(base::counter("scant_engine_unexpected_bytes_max",
                                   "Most payload held at once for operations not begun")) {}

Engine::Impl::Impl(const EngineOptions& given, CostModel model)
    : options(given),
      initial_model(std::move(model)),
      self(given.rank),
      membership(given.rank, static_cast<size_t>(given.size), given.epoch) {
  SCANT_CHECK(given.size >= 1 && given.rank >= 0 && given.rank < given.size,
              "the engine's rank lies outside its size");
  SCANT_CHECK(given.segment_bytes >= 1 && given.segment_bytes <= net::kFramePayloadBytesMax,
              "a segment must fit into a frame");
  for (Rank rank = 0; rank < given.size; ++rank) {
    station_of.push_back(rank);
    rank_of.push_back(rank);
    peers.emplace_back();
  }
  SCANT_CHECK(add_group(kWorldGroup, station_of).ok());
}

Group* Engine::Impl::find_group(GroupId id) {
  const auto found = groups.find(id);
  return found == groups.end() ? nullptr : found->second.get();
}

Operation* Engine::Impl::find_active(const OpKey& key) {
  const auto found = active.find(key);
  return found == active.end() ? nullptr : found->second;
}

Operation& Engine::Impl::new_operation(Call call, Done done) {
  if (free_operations.empty()) {
    operations.push_back(std::make_unique<Operation>());
    free_operations.push_back(operations.back().get());
  }
  Operation& op = *free_operations.back();
  free_operations.pop_back();
  op.age = ++ages;
  op.state = OpState::deferred;
  op.call = std::move(call);
  op.done = std::move(done);
  op.group = nullptr;
  op.plan = nullptr;
  op.key = OpKey{};
  op.begun = now;
  op.error.reset();
  op.source = kNoRank;
  op.sends_busy = op.receives_busy = 0;
  op.internal = false;
  const Duration timeout =
      op.call.timeout > Duration::zero() ? op.call.timeout : options.operation_timeout;
  op.deadline = timeout < kNever - now ? now + timeout : kNever;
  op.in_flight_index = in_flight.size();
  in_flight.push_back(&op);
  return op;
}

void Engine::Impl::submit(Call call, Done done) {
  Operation& op = new_operation(std::move(call), std::move(done));
  Group* group = find_group(op.call.group);
  if (group == nullptr) {
    return fail(op,
                Error{ErrorCode::invalid_argument, 0, self,
                      "group " + std::to_string(op.call.group) + " does not exist in this epoch"},
                Notify::nobody);
  }
  op.group = group;
  if (op.point_to_point()) {
    const Result<void> valid = validate(op.call, group->rank, group->size());
    if (!valid) return fail(op, valid.error(), Notify::nobody);
    fill_descriptor(op, group->rank, group->size());
    return submit_point_to_point(*group, op);
  }
  submit_collective(*group, op);
}

// Every collective takes its sequence, even one that fails here, or the ranks would no longer count
// alike.
void Engine::Impl::submit_collective(Group& group, Operation& op) {
  if (!op.internal && group.size() > 1) submit_preludes(group);
  op.key = OpKey{group.id, group.next_sequence++, 0, kNoRank, false};
  const Result<void> valid = validate(op.call, group.rank, group.size());
  if (valid) fill_descriptor(op, group.rank, group.size());
  const bool waits = !group.deferred.empty() || held(group, op.key.sequence);
  if (waits) {
    group.deferred.push_back(&op);
  } else {
    group.next_start = group.next_sequence;
  }
  if (!valid) {
    Error error = valid.error();
    error.peer = self;
    return fail(op, std::move(error), Notify::group);
  }
  if (group.lost) return fail(op, *group.lost, Notify::group);
  if (!waits) return begin(op);
  arm(op, op.deadline, false);
}

// What comes before the collective that is about to be submitted; the same on every rank.
void Engine::Impl::submit_preludes(Group& group) {
  if (options.agree_first == 0) return;
  while (group.next_sequence < options.measure_first) {
    Operation& op = new_operation(Call{}, nullptr);
    op.call.kind = OpKind::barrier;
    op.call.group = group.id;
    submit_prelude(group, op, 1);
  }
  if (agrees_before(group.next_sequence)) submit_agreement(group);
}

bool Engine::Impl::agrees_before(uint32_t sequence) const {
  if (sequence >= options.agree_every) return sequence % options.agree_every == 0;
  return sequence >= options.agree_first && sequence % options.agree_first == 0 &&
         std::has_single_bit(sequence / options.agree_first);
}

uint32_t Engine::Impl::preludes_before(uint32_t sequence) const {
  if (options.agree_first == 0 || sequence == 0) return 0;
  uint32_t count = std::min(options.measure_first, sequence);
  for (uint64_t at = options.agree_first; at < std::min(sequence, options.agree_every); at *= 2) {
    if (at >= options.measure_first) ++count;
  }
  return count + (sequence - 1) / options.agree_every;
}

void Engine::Impl::submit_agreement(Group& group) {
  Operation& op = new_operation(Call{}, nullptr);
  const CostParameters measured = group.model.measured();
  op.agreement = {measured.alpha_s, measured.beta_s_per_byte, measured.gamma_s_per_byte};
  op.call.kind = OpKind::all_reduce;
  op.call.dtype = DType::f64;
  op.call.reduce = ReduceOp::average;
  op.call.group = group.id;
  const MutableBytes values = std::as_writable_bytes(std::span(op.agreement));
  op.call.inputs = {values};
  op.call.outputs = {values};
  submit_prelude(group, op, std::min(group.next_sequence, kAgreementLead));
}

// Collectives from `lead` after it on wait for it.
void Engine::Impl::submit_prelude(Group& group, Operation& op, uint32_t lead) {
  op.group = &group;
  op.internal = true;
  group.preludes.push_back({group.next_sequence, group.next_sequence + lead, false, {}, {}});
  op.done = [this, &op, id = group.id, epoch = epoch_now()](const Result<void>&, Rank) {
    Group* still = epoch == epoch_now() ? find_group(id) : nullptr;
    if (still != nullptr) finish_prelude(op, *still);
  };
  submit_collective(group, op);
}

void Engine::Impl::finish_prelude(const Operation& op, Group& group) {
  const auto prelude =
      std::find_if(group.preludes.begin(), group.preludes.end(),
                   [&op](const Prelude& p) { return p.sequence == op.key.sequence; });
  SCANT_CHECK(prelude != group.preludes.end());
  prelude->ended = true;
  if (op.error) {
    prelude->error = op.error;
    Rank& culprit = prelude->error->peer;
    if (culprit != kNoRank) culprit = station_of[static_cast<size_t>(culprit)];
  } else if (op.call.kind == OpKind::all_reduce) {
    prelude->adopt = CostParameters{op.agreement[0], op.agreement[1], op.agreement[2]};
  }
  start_deferred(group);
}

void Engine::Impl::start_deferred(Group& group) {
  while (!group.deferred.empty()) {
    Operation* op = group.deferred.front();
    if (op != nullptr && held(group, op->key.sequence)) return;
    group.deferred.pop_front();
    ++group.next_start;
    if (op != nullptr) begin(*op);
  }
}

// Collectives of a group begin in their order, so each outcome is taken by the first that needs it.
void Engine::Impl::take_preludes(Group& group, uint32_t sequence) {
  while (!group.preludes.empty() && group.preludes.front().from <= sequence) {
    Prelude& prelude = group.preludes.front();
    SCANT_CHECK(prelude.ended);
    if (prelude.adopt) group.model.set_agreed(*prelude.adopt);
    if (prelude.error && !group.prelude_error) group.prelude_error = prelude.error;
    group.preludes.pop_front();
  }
}

void Engine::Impl::begin(Operation& op) {
  Group& group = *op.group;
  op.begun = now;
  if (!op.point_to_point()) {
    if (group.late_mismatch) {
      const Error error = *std::exchange(group.late_mismatch, std::nullopt);
      return fail(op, error, Notify::group);
    }
    if (group.lost) return fail(op, *group.lost, Notify::group);
    take_preludes(group, op.key.sequence);
    if (group.prelude_error) return fail(op, *group.prelude_error, Notify::group);
  }
  std::optional<Early> heard = early.take(op.key);
  if (heard) {
    for (const HeldFrame& frame : heard->frames) unexpected_bytes -= frame.header.length;
    if (heard->cancelled) {
      for (HeldFrame& frame : heard->frames) release(frame);
      return fail(op, *heard->cancelled, Notify::group);
    }
  }
  choose_algorithm(op, group);
  op.prepare(plans.get(schedule_input(op, group.rank, group.size(), options.segment_bytes)));
  if (op.plan->scratch_bytes > 0) {
    Result<base::Buffer> scratch = pool.take(op.plan->scratch_bytes);
    if (!scratch) {
      if (heard) {
        for (HeldFrame& frame : heard->frames) release(frame);
      }
      return fail(op, no_memory(scratch.error()), Notify::group);
    }
    op.scratch = std::move(scratch).value();
  }
  for (uint32_t i = 0; i < op.plan->peers.size(); ++i) {
    const PeerPlan& peer_plan = op.plan->peers[i];
    op.channels[i].reset(&op, i, group.stations[static_cast<size_t>(peer_plan.rank)], peer_plan);
  }
  op.state = OpState::running;
  active.emplace(op.key, &op);
  if (op.steps_left == 0) return end_well(op);
  if (!op.plan->peers.empty()) {
    arm(op, op.deadline, false);
    arm(op, now + options.probe_after, true);
  }
  const bool outermost = !std::exchange(working, true);
  for (const uint32_t step : op.plan->ready_at_start) make_ready(op, step);
  send_readies(op);
  if (outermost) {
    working = false;
    run_work();
  }
  if (heard) replay(op, std::move(*heard));
  if (op.state == OpState::running) fail_if_unreachable(op);
}

void Engine::Impl::choose_algorithm(Operation& op, const Group& group) {
  if (op.internal && op.call.kind == OpKind::all_reduce) {
    op.algorithm =
        group.size() <= kAgreementDirectMax ? Algorithm::direct : Algorithm::recursive_doubling;
  } else if (op.point_to_point() || op.is_exchange() || parts_may_differ(op.call.kind)) {
    op.algorithm = Algorithm::direct;  // no rank knows all sizes, so nothing else would be agreed
  } else {
    op.algorithm = group.model.choose(op.call.kind, group.size(), op.descriptor.bytes);
  }
  op.descriptor.algorithm = static_cast<uint8_t>(op.algorithm);
}

void Engine::Impl::replay(Operation& op, Early heard) {
  for (HeldFrame& frame : heard.frames) {
    if (op.state == OpState::running) {
      deliver_to(op, std::move(frame));
    } else {
      release(frame);
    }
  }
}

void Engine::Impl::send_readies(Operation& op) {
  for (uint32_t i = 0; i < op.plan->peers.size(); ++i) {
    if (op.plan->peers[i].receive_bytes > options.eager_bytes) send_ready(op, op.channels[i]);
  }
}

void Engine::Impl::make_ready(Operation& op, uint32_t index) {
  const Step& step = op.plan->steps[index];
  op.steps[index] = StepState::ready;
  switch (step.kind) {
    case Step::Kind::send: {
      Channel& channel = op.channels[op.plan->peer_of_step[index]];
      if (op.beyond_part(step)) {
        --channel.sends_left;
        return complete(op, index);
      }
      channel.push(index);
      if (channel.listing == Channel::Listing::none) list(channel, Channel::Listing::runnable);
      return;
    }
    case Step::Kind::copy:
      if (const uint64_t bytes = op.bytes_of(step); bytes > 0)
        std::memmove(op.address(step.destination), op.address(step.a), bytes);
      return complete(op, index);
    case Step::Kind::reduce:
      if (step.bytes > 0) combine(op, step, op.address(step.a), op.address(step.b));
      return complete(op, index);
    case Step::Kind::receive:
    case Step::Kind::receive_reduce:
      break;
  }
  for (size_t i = 0; i < op.held.size(); ++i) {
    if (op.held[i].step != index) continue;
    HeldPayload payload = std::move(op.held[i]);
    op.held[i] = std::move(op.held.back());
    op.held.pop_back();
    consume(op, index, payload.buffer.data(), step.bytes);
    if (payload.buffer.data() != nullptr) pool.give(std::move(payload.buffer));
    discharge(payload.station, payload.charge);
    return complete(op, index);
  }
}

void Engine::Impl::complete(Operation& op, uint32_t step) {
  work.emplace_back(&op, step);
  if (!working) run_work();
}

void Engine::Impl::run_work() {
  working = true;
  while (!work.empty()) {
    const auto [op, step] = work.back();
    work.pop_back();
    if (op->state != OpState::running) continue;
    op->steps[step] = StepState::complete;
    const Plan& plan = *op->plan;
    for (uint32_t at = plan.successor_begin[step]; at < plan.successor_begin[step + 1]; ++at) {
      const uint32_t next = plan.successors[at];
      if (--op->waiting[next] != 0) continue;
      // A payload that came early is marked held; make_ready finds and consumes it.
      make_ready(*op, next);
    }
    if (--op->steps_left == 0) end_well(*op);
  }
  working = false;
}

void Engine::Impl::record(Group& group, const Operation& op, std::optional<Error> error) {
  if (op.key.station != kNoRank || op.point_to_point()) return;
  group.history[op.key.sequence % kHistoryRecords] =
      HistoryRecord{op.key.sequence, op.descriptor, op.parts_hash, std::move(error)};
}

void Engine::Impl::end_well(Operation& op) {
  Group& group = *op.group;
  record(group, op, std::nullopt);
  active.erase(op.key);
  const bool agreement = op.internal && op.call.kind == OpKind::all_reduce;
  if (op.is_exchange()) op.tell_received();
  if (!agreement && !op.point_to_point() && !op.is_exchange() && !parts_may_differ(op.call.kind)) {
    const double seconds = std::chrono::duration<double>(now - op.begun).count();
    group.model.observe(op.call.kind, op.algorithm, group.size(), op.descriptor.bytes, seconds);
  }
  op.state = OpState::draining;
  end(op);
}

// The transport touches nothing of the operation any more: its outcome may be told.
void Engine::Impl::end(Operation& op) {
  if (op.scratch.data() != nullptr) pool.give(std::move(op.scratch));
  op.scratch = base::Buffer{};
  if (op.plan != nullptr) --op.plan->users;
  op.plan = nullptr;
  in_flight[op.in_flight_index] = in_flight.back();
  in_flight.back()->in_flight_index = op.in_flight_index;
  in_flight.pop_back();
  op.state = OpState::ended;
  outcome_counter(op.call.kind, op.error).add();
  ended.push_back(&op);
}

void Engine::Impl::report_outcomes() {
  for (size_t i = 0; i < ended.size(); ++i) {
    Operation& op = *ended[i];
    const Done done = std::move(op.done);
    if (done) done(op.error ? Result<void>(*op.error) : Result<void>(), op.source);
    op.age = 0;
    op.call = Call{};
    op.done = nullptr;
    op.group = nullptr;
    free_operations.push_back(&op);
  }
  ended.clear();
  while (!shrink_outcomes.empty()) {
    auto outcome = std::move(shrink_outcomes.back());
    shrink_outcomes.pop_back();
    if (outcome.first) outcome.first(std::move(outcome.second));
  }
  if (!ended.empty()) report_outcomes();
}

}  // namespace scant::collective
