#include "gradient/averager.h"

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "base/fault.h"

namespace scant::gradient {
namespace {

using base::invalid;

}  // namespace

Averager::Averager(std::unique_ptr<Exchange> owned, Exchange& exchange, Layout layout,
                   const AveragerOptions& options)
    : owned_(std::move(owned)),
      exchange_(exchange),
      layout_(std::move(layout)),
      names_(options.names),
      slot_(options.slot),
      timeout_(options.timeout),
      told_(layout_.tensors().size(), false),
      needed_(layout_.tensors().size(), kNotAsked) {}

Averager::~Averager() = default;

Result<void> Averager::start(Members members, std::span<float> arena,
                             const AveragerOptions& options) {
  if (arena.size() != layout_.arena_elements()) {
    return invalid("arena: the layout needs " + std::to_string(layout_.arena_elements()) +
                   " elements, got " + std::to_string(arena.size()));
  }
  StepOptions how{.residual = options.residual,
                  .decay = options.decay,
                  .seed = options.seed,
                  .workers = options.workers,
                  .missing_as_zeros = options.missing_as_zeros,
                  .names = options.names,
                  .timeout = options.timeout,
                  .encoders = options.encoders,
                  .device = options.device};
  auto step = GradientStep::create(layout_, std::move(how), std::move(members), options.slot);
  if (!step) return step.error();
  thread_ = std::make_unique<StepThread>(exchange_, std::move(step).value(), arena,
                                         options.gradients, options.slot);
  return thread_->start();
}

Result<std::unique_ptr<Averager>> Averager::create(Exchange& exchange, Members members,
                                                   Layout layout, std::span<float> arena,
                                                   const AveragerOptions& options) {
  std::unique_ptr<Averager> averager(new Averager(nullptr, exchange, std::move(layout), options));
  Result<void> started = averager->start(std::move(members), arena, options);
  if (!started) return started.error();
  return averager;
}

Result<std::unique_ptr<Averager>> Averager::create(std::unique_ptr<Exchange> exchange,
                                                   Members members, Layout layout,
                                                   std::span<float> arena,
                                                   const AveragerOptions& options) {
  Exchange& used = *exchange;
  std::unique_ptr<Averager> averager(
      new Averager(std::move(exchange), used, std::move(layout), options));
  Result<void> started = averager->start(std::move(members), arena, options);
  if (!started) return started.error();
  return averager;
}

Result<std::unique_ptr<Averager>> Averager::create(Communicator& communicator, Layout layout,
                                                   std::span<float> arena,
                                                   const AveragerOptions& options) {
  if (options.joins) return join(communicator, layout, arena, options);
  auto exchange =
      CommunicatorExchange::create(communicator, {.key = options.key, .ranks = options.members});
  if (!exchange) return exchange.error();
  Members members = exchange.value()->members();
  if (members.size() != layout.ranks()) {
    return invalid("members: the layout is for " + std::to_string(layout.ranks()) +
                   " ranks and this rank is one of them; got " + std::to_string(members.size()) +
                   " members");
  }
  CommunicatorExchange* const used = exchange.value().get();
  if (Result<void> made = make_lanes(*used, members, options.slot); !made) return made.error();
  auto averager =
      create(std::move(exchange).value(), std::move(members), std::move(layout), arena, options);
  if (averager) averager.value()->on_communicator_ = used;
  return averager;
}

// The members that it begins with are nobody's: what cannot be is refused before others count on
// it.
Result<std::unique_ptr<Averager>> Averager::join(Communicator& communicator, const Layout& layout,
                                                 std::span<float> arena,
                                                 const AveragerOptions& options) {
  auto exchange = CommunicatorExchange::newcomer(options.key);
  CommunicatorExchange* const used = exchange.get();
  auto made = create(std::move(exchange), everyone(layout.ranks(), 0), layout, arena, options);
  if (!made) return made;
  made.value()->on_communicator_ = used;
  const Result<Members> members = made.value()->continue_on(communicator, options.members);
  if (!members) return members.error();
  return made;
}

// In one order on all members: averagers may have the same key.
Result<void> Averager::make_lanes(CommunicatorExchange& exchange, const Members& members,
                                  uint32_t slot) {
  for (const Leg leg :
       {Leg::first, Leg::second, Leg::verdict, Leg::owners, Leg::basis_first, Leg::basis_second}) {
    Result<void> made = exchange.make(members, {slot, leg});
    if (!made) return made;
  }
  return {};
}

void Averager::begin_at(uint64_t step) {
  thread_->run([&](GradientStep&) { thread_->begin_at(step); });
  steps_over_ = step - 1;
}

Result<void> Averager::set_plan(const FusionPlan& plan) {
  if (step_open_) return invalid("a plan can only be set between steps");
  Result<void> outcome;
  thread_->run([&](GradientStep& step) {
    outcome = step.set_plan(plan);
    plan_hash_ = step.plan_hash();
  });
  if (!outcome) return outcome;
  buffer_of_part_.clear();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    buffer_of_part_.insert(buffer_of_part_.end(), plan.buffers[i].parts, i);
  }
  return {};
}

Result<void> Averager::set_members(const Members& members, uint64_t next_step) {
  if (step_open_) return invalid("members can only be set between steps");
  if (next_step != 0 && next_step <= steps_over_) {
    return invalid("members: step " + std::to_string(next_step) + " is over on this rank, which " +
                   "can go on with step " + std::to_string(steps_over_ + 1));
  }
  Result<void> outcome;
  thread_->run([&](GradientStep& step) {
    if (broken_ && members.epoch <= step.seat().members.epoch) {
      outcome = invalid("a step has failed: only members of a later epoch than " +
                        std::to_string(step.seat().members.epoch) + " can go on");
      return;
    }
    outcome = step.set_members(members);
  });
  if (!outcome) return outcome;
  broken_ = false;
  if (next_step != 0) begin_at(next_step);
  return {};
}

Result<Members> Averager::continue_on(Communicator& next, const std::vector<Rank>& ranks) {
  if (step_open_) return invalid("members can only be set between steps");
  if (on_communicator_ == nullptr) {
    return invalid("members: this averager was created on an exchange; set_members() changes them");
  }
  const CommunicatorExchange::ContinueOptions how{
      .ranks = ranks, .steps = steps_over_, .layout_ranks = layout_.ranks(), .timeout = timeout_};
  std::optional<Result<Meeting>> meeting;
  Result<void> outcome;
  thread_->run([&](GradientStep&) {
    try {
      meeting = on_communicator_->continue_on(next, how);
      if (*meeting) outcome = make_lanes(*on_communicator_, meeting->value().members, slot_);
    } catch (const std::bad_alloc&) {
      outcome = Error{.code = ErrorCode::resource, .message = "members: no memory for them"};
    }
  });
  if (meeting && !*meeting) return meeting->error();
  if (outcome) outcome = set_members(meeting->value().members, meeting->value().next_step);
  if (outcome) return std::move(*meeting).value().members;
  broken_ = true;
  return outcome.error();
}

Result<void> Averager::may_step() const {
  if (broken_) {
    return invalid(
        "a step has failed: continue_on() or set_members() first, on all ranks that go on");
  }
  if (buffer_of_part_.empty()) return invalid("no plan is set");
  return {};
}

Result<void> Averager::ready(uint32_t tensor) {
  if (Result<void> may = may_step(); !may) return may;
  if (tensor >= told_.size()) return invalid("no tensor " + std::to_string(tensor));
  if (finish_told_) return invalid("the step is finished: wait() for it first");
  if (told_[tensor]) {
    const std::string name =
        tensor < names_.size() ? "'" + names_[tensor] + "'" : "tensor " + std::to_string(tensor);
    return invalid(name + " got a second gradient in one step");
  }
  told_[tensor] = true;
  open_step();
  thread_->ready(tensor);
  return {};
}

Result<void> Averager::finish(uint64_t parameters_hash, uint64_t samples) {
  if (Result<void> may = may_step(); !may) return may;
  if (finish_told_) return invalid("the step is finished already");
  open_step();
  finish_told_ = true;
  finish_told_at_ = exchange_.now();
  thread_->finish(parameters_hash, samples);
  return {};
}

// Where the step could not begin, wait() says why.
Result<void> Averager::change_owners(std::vector<SliceDuty> duties) {
  if (Result<void> may = may_step(); !may) return may;
  if (finish_told_) return invalid("owners change before finish() of a step");
  open_step();
  Result<void> outcome;
  thread_->run([&](GradientStep& step) {
    if (!step.idle()) outcome = step.change_owners(std::move(duties));
  });
  return outcome;
}

void Averager::open_step() {
  if (std::exchange(step_open_, true)) return;
  thread_->begin(std::exchange(curves_wanted_, false));
}

std::optional<Result<StepReport>> Averager::wait(Duration limit) {
  if (!finish_told_) return Result<StepReport>(invalid("finish() the step first"));
  const bool one_by_one =
      std::ranges::any_of(needed_, [](double needed) { return needed != kNotAsked; });
  begin_stall();
  std::optional<Result<StepReport>> outcome = thread_->outcome(limit);
  if (!outcome) return std::nullopt;
  if (one_by_one && outcome->ok()) tell_needs(outcome->value());
  end_stall();
  if (one_by_one && outcome->ok()) outcome->value().exposed_s = stalled_s_;
  if (!wanted_.empty()) {  // nobody came back for the answer
    static_cast<void>(thread_->answer(Duration::max()));
    wanted_.clear();
  }
  stalled_s_ = 0;
  ++steps_over_;
  std::fill(told_.begin(), told_.end(), false);
  std::fill(needed_.begin(), needed_.end(), kNotAsked);
  step_open_ = false;
  finish_told_ = false;
  broken_ = !outcome->ok();
  return outcome;
}

// The thread sleeps between steps.
std::vector<AveragedBuffer> Averager::averaged() const {
  std::vector<AveragedBuffer> all;
  if (step_open_ || broken_) return all;
  thread_->run([&](GradientStep& step) { all = step.averaged(); });
  return all;
}

Result<std::vector<std::byte>> Averager::save() const {
  Result<std::vector<std::byte>> saved = std::vector<std::byte>();
  thread_->run([&](GradientStep& step) { saved = step.save(); });
  return saved;
}

Result<void> Averager::restore(Bytes saved) {
  Result<void> outcome;
  thread_->run([&](GradientStep& step) { outcome = step.restore(saved); });
  return outcome;
}

void Averager::scale_residuals(float factor) {
  thread_->run([&](GradientStep& step) { step.scale_residuals(factor); });
}

double Averager::residual_energy() const {
  double energy = 0;
  thread_->run([&](GradientStep& step) { energy = step.residuals().measured_energy(); });
  return energy;
}

size_t Averager::memory_bytes() const {
  size_t bytes = 0;
  thread_->run([&](GradientStep& step) { bytes = step.memory_bytes(); });
  return bytes;
}

}  // namespace scant::gradient
