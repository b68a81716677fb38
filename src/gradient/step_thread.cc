#include "gradient/step_thread.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"

namespace scant::gradient {
namespace {

// On the exchange's thread, which has nobody to tell that it found no memory.
Outcome copy_of(const Outcome& outcome) try { return outcome; } catch (const std::bad_alloc&) {
  return Outcome{.result = Error{.code = ErrorCode::resource, .message = {}}};
}

// At most one event of each kind for each tensor and operation is under way in a step, and one of
// all devices.
size_t events_max(const Layout& layout) {
  return layout.tensors().size() + 2 * layout.parts().size() + 16;
}

}  // namespace

StepThread::StepThread(Exchange& exchange, std::unique_ptr<GradientStep> step,
                       std::span<float> arena, codec::Placed<const float> gradients, uint32_t slot)
    : exchange_(exchange),
      events_(events_max(step->layout())),
      arrived_in_(step->layout().parts().size()),
      step_(std::move(step)),
      arena_(arena),
      gradients_(gradients),
      slot_(slot) {}

StepThread::~StepThread() {
  saves_.close();
  if (!thread_.running()) return;
  events_.push(Stop{});
  thread_.join();
}

Result<void> StepThread::start() {
  return thread_.start("scant-grad", [this] { loop(); });
}

void StepThread::begin(bool curves) { SCANT_CHECK(events_.push(Begin{curves})); }
void StepThread::ready(uint32_t tensor) { SCANT_CHECK(events_.push(TensorReady{tensor})); }
void StepThread::finish(uint64_t parameters_hash, uint64_t samples) {
  SCANT_CHECK(events_.push(Finish{parameters_hash, samples}));
}
std::optional<Result<StepReport>> StepThread::outcome(Duration limit) {
  return outcomes_.pop(limit);
}
void StepThread::ask_for(std::vector<uint32_t> buffers) {
  SCANT_CHECK(events_.push(Asked{std::move(buffers)}));
}
std::optional<bool> StepThread::answer(Duration limit) { return answers_.pop(limit); }

void StepThread::run(const std::function<void(GradientStep&)>& body) {
  SCANT_CHECK(events_.push(Task{&body}));
  static_cast<void>(tasks_done_.pop());
}

// What was asked for earlier, and nobody came for, is of another time.
void StepThread::ask_to_save() {
  static_cast<void>(saves_.drain());
  if (save_asked_.exchange(true, std::memory_order_acq_rel)) return;  // it is under way
  SCANT_CHECK(events_.push(Save{}));
}

std::vector<std::byte> StepThread::saved() {
  std::optional<std::vector<std::byte>> bytes = saves_.pop();
  return bytes ? std::move(*bytes) : std::vector<std::byte>();
}

// On a device's thread, which may neither wait nor take memory. The queue has room.
void StepThread::wake() {
  if (woken_.exchange(true, std::memory_order_acq_rel)) return;
  static_cast<void>(events_.try_push(Woken{}));
}

void StepThread::loop() {
  for (;;) {
    std::optional<Event> event = events_.try_pop();
    if (!event) {
      if (const auto job = step_->next()) {
        work(*job);
        advance();
        continue;
      }
      event = events_.pop();
    }
    if (!event || std::holds_alternative<Stop>(*event)) return stop();
    on_event(*event);
    advance();
  }
}

void StepThread::on_event(Event& event) {
  if (const auto* begun = std::get_if<Begin>(&event)) {
    begin_step(*begun);
  } else if (const auto* there = std::get_if<TensorReady>(&event)) {
    if (!refused_) step_->ready(there->tensor, exchange_.now());
  } else if (const auto* finish_event = std::get_if<Finish>(&event)) {
    finish_step(*finish_event);
  } else if (const auto* done = std::get_if<OperationDone>(&event)) {
    step_->on_done(done->ticket, done->outcome, exchange_.now());
  } else if (const auto* task = std::get_if<Task>(&event)) {
    (*task->body)(*step_);
    tasks_done_.push(true);
  } else if (auto* asked = std::get_if<Asked>(&event)) {
    asked_ = std::move(asked->buffers);
  } else if (std::holds_alternative<Save>(event)) {
    save_asked_.exchange(false, std::memory_order_acq_rel);
    Result<std::vector<std::byte>> saved = step_->save();
    static_cast<void>(saves_.try_push(saved ? std::move(saved).value() : std::vector<std::byte>()));
  } else if (std::holds_alternative<Woken>(event)) {
    woken_.exchange(false, std::memory_order_acq_rel);
  }
}

// Where this rank cannot begin, the others wait for it in vain: their step ends too.
void StepThread::begin_step(const Begin& event) {
  open_ = true;
  ++steps_begun_;
  Result<void> begun = begin_round(event);
  if (begun) return;
  refused_ = begun.error();
  leave_lanes();
}

Result<void> StepThread::begin_round(const Begin& event) try {
  const RoundSpec spec{.round = steps_begun_,
                       .arena = arena_,
                       .members = step_->seat().members,
                       .curves = event.curves,
                       .gradients = gradients_,
                       .wake = [this] { wake(); }};
  return step_->begin(spec, exchange_.now());
} catch (const std::bad_alloc&) {
  return Error{.code = ErrorCode::resource, .message = "out of memory"};
}

void StepThread::finish_step(const Finish& event) {
  if (!refused_) return step_->finish(event.parameters_hash, event.samples, exchange_.now());
  open_ = false;
  failed_ = true;
  outcomes_.push(Result<StepReport>(*std::exchange(refused_, std::nullopt)));
}

void StepThread::work(const GradientStep::Job& job) {
  const Time begin = exchange_.now();
  static_cast<void>(step_->run(job));
  step_->finished(job, begin, exchange_.now());
}

void StepThread::advance() {
  transmit();
  while (const auto buffer = step_->next_arrived()) {
    arrived_in_[*buffer].store(steps_begun_, std::memory_order_release);
  }
  if (auto outcome = step_->take_outcome(exchange_.now())) {
    open_ = false;
    failed_ = !outcome->ok();
    if (failed_) leave_lanes();
    outcomes_.push(*std::move(outcome));
  }
  give_answer();
}

void StepThread::transmit() {
  while (auto next = step_->poll_transmit(exchange_.now())) submit(*std::move(next));
  while (const auto lane = step_->next_cancelled()) cancel(*lane);
}

// Others may not have met the error: they shall not wait for this rank. An agreement has an owner
// of its own.
void StepThread::leave_lanes() {
  for (const Leg leg :
       {Leg::first, Leg::second, Leg::verdict, Leg::owners, Leg::basis_first, Leg::basis_second}) {
    cancel({slot_, leg});
  }
}

// Once more where there was no memory for it: without it the others wait until their timeout.
void StepThread::cancel(const Lane& lane) {
  for (int tries = 0; tries < 2; ++tries) {
    try {
      return exchange_.cancel(step_->seat().members, lane);
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): the next try follows
    }
  }
}

void StepThread::submit(Transmit next) {
  const Ticket ticket = next.ticket;
  try {
    exchange_.submit(step_->seat().members, std::move(next.operation),
                     [this, ticket](const Outcome& outcome) {
                       static_cast<void>(events_.try_push(OperationDone{ticket, copy_of(outcome)}));
                     });
  } catch (const std::bad_alloc&) {
    const Error error{.code = ErrorCode::resource, .message = "out of memory"};
    step_->on_done(ticket, Outcome{.result = error}, exchange_.now());
  }
}

// Every tensor that the user may ask for was present here, so it has an average whatever the
// verdict says of the others. After the step nobody has to wait.
void StepThread::give_answer() {
  if (!asked_) return;
  const bool failed = open_ ? refused_ || step_->failed() : failed_;
  const auto here = [this](uint32_t buffer) { return has_arrived(buffer, steps_begun_); };
  if (!failed && open_ && !std::ranges::all_of(*asked_, here)) return;
  asked_.reset();
  answers_.push(!failed);
}

// What is under way reads and writes the step's memory: it must end first. What devices work on
// ends with the step's encoders.
void StepThread::stop() {
  step_->abort(Error{.code = ErrorCode::closed, .message = "the gradients' averager was closed"});
  leave_lanes();
  while (step_->under_way() > 0) {
    const std::optional<Event> event = events_.pop();
    if (const auto* done = std::get_if<OperationDone>(&*event)) {
      step_->on_done(done->ticket, done->outcome, exchange_.now());
    }
  }
}

}  // namespace scant::gradient
