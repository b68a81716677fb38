#include "gradient/averager.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/check.h"
#include "gradient/averager_impl.h"

namespace scant::gradient {
namespace {

// At most one event of each kind for each tensor and operation is under way in a step.
size_t events_max(const Layout& layout) {
  return layout.tensors().size() + 2 * layout.parts().size() + 8;
}

}  // namespace

Averager::Impl::Impl(Communicator& with, Layout given, std::span<float> memory,
                     const AveragerOptions& how)
    : communicator(with),
      layout(std::move(given)),
      options(how),
      arena(memory),
      arrived_in_(layout.parts().size()),
      events_(events_max(layout)) {
  const size_t tensors = layout.tensors().size();
  told_.assign(tensors, false);
  needed_.assign(tensors, kNotAsked);
  verdict_own_.resize(verdict_bytes(tensors));
  verdict_all_.resize(verdict_bytes(tensors) * static_cast<size_t>(ranks()));
  slices_.resize(layout.slices().size());
}

Averager::Impl::~Impl() {
  saves_.close();
  if (!thread_.running()) return;
  // What is under way reads and writes this object's memory: it must end first.
  for (const GroupId group : {first_group_, second_group_, verdict_group_}) {
    static_cast<void>(communicator.release_group(group));
  }
  events_.push(Stop{});
  thread_.join();
}

Result<void> Averager::Impl::start() {
  std::vector<Rank> members = options.members;
  if (members.empty()) {
    members.resize(static_cast<size_t>(communicator.size()));
    std::iota(members.begin(), members.end(), 0);
  }
  const auto self = std::ranges::find(members, communicator.rank());
  if (members.size() != static_cast<size_t>(ranks()) || self == members.end()) {
    return invalid("members: the layout is for " + std::to_string(ranks()) +
                   " ranks and this rank is one of them; got " + std::to_string(members.size()) +
                   " members");
  }
  rank_ = static_cast<Rank>(self - members.begin());
  struct Wanted {
    const char* suffix;
    GroupId* group;
  };
  for (const Wanted wanted : {Wanted{".first", &first_group_}, Wanted{".second", &second_group_},
                              Wanted{".verdict", &verdict_group_}}) {
    Result<GroupId> made = communicator.make_group(members, options.key + wanted.suffix);
    if (!made) return made.error();
    *wanted.group = made.value();
  }
  if (Result<void> started = workspace_.start(options.workers); !started) return started;
  return thread_.start("scant-grad", [this] { loop(); });
}

Result<void> Averager::Impl::set_plan(const FusionPlan& wanted) {
  if (step_open_) return invalid("a plan can only be set between steps");
  if (Result<void> valid = validate(wanted, layout); !valid) return valid;
  const uint64_t hash = hash_of(serialise(wanted, layout));
  if (plan == wanted) return {};
  Replaced before{std::exchange(plan, wanted), std::exchange(buffers_, {})};
  buffers_.resize(plan.buffers.size());
  for (uint32_t i = 0; i < buffers_.size(); ++i) {
    Result<void> prepared = prepare(i);
    if (prepared) continue;
    plan = std::move(before.plan);
    buffers_ = std::move(before.buffers);
    return prepared;
  }
  if (!replaced_) replaced_ = std::move(before);
  plan_hash = hash;
  buffer_of_part_.clear();
  for (uint32_t i = 0; i < plan.buffers.size(); ++i) {
    buffer_of_part_.insert(buffer_of_part_.end(), plan.buffers[i].parts, i);
  }
  return {};
}

Result<void> Averager::Impl::ready(uint32_t tensor) {
  if (broken_) return invalid("a step has failed: no other can follow it");
  if (plan.buffers.empty()) return invalid("no plan is set");
  if (tensor >= told_.size()) return invalid("no tensor " + std::to_string(tensor));
  if (finish_told_) return invalid("the step is finished: wait() for it first");
  if (told_[tensor]) {
    const std::string name = tensor < options.names.size() ? "'" + options.names[tensor] + "'"
                                                           : "tensor " + std::to_string(tensor);
    return invalid(name + " got a second gradient in one step");
  }
  told_[tensor] = true;
  open_step();
  SCANT_CHECK(events_.push(TensorReady{tensor}));
  return {};
}

Result<void> Averager::Impl::finish(uint64_t parameters_hash) {
  if (broken_) return invalid("a step has failed: no other can follow it");
  if (plan.buffers.empty()) return invalid("no plan is set");
  if (finish_told_) return invalid("the step is finished already");
  open_step();
  finish_told_ = true;
  finish_told_at_ = Clock::now();
  SCANT_CHECK(events_.push(Finish{parameters_hash}));
  return {};
}

void Averager::Impl::open_step() {
  step_open_ = true;
  replaced_.reset();
}

// The thread sleeps between steps, and what it wrote came with the step's outcome.
std::vector<AveragedBuffer> Averager::Impl::averaged() const {
  std::vector<AveragedBuffer> all;
  if (step_open_ || broken_ || steps_over_ == 0) return all;
  const FusionPlan& of = replaced_ ? replaced_->plan : plan;
  const std::vector<BufferMemory>& buffers = replaced_ ? replaced_->buffers : buffers_;
  for (size_t i = 0; i < of.buffers.size(); ++i) {
    const BufferPlan& known = of.buffers[i];
    const BufferMemory& memory = buffers[i];
    AveragedBuffer one{.path = known.path, .first_part = known.first_part, .parts = known.parts};
    for (Rank rank = 0; rank < ranks() && known.path != Path::all_reduce; ++rank) {
      const auto place = static_cast<size_t>(rank);
      const bool split = known.path == Path::split;
      const Message& own = split ? memory.average : memory.outgoing[0];
      const Message& other = (split ? memory.averages : memory.incoming)[place];
      one.messages.push_back((rank == rank_ ? own : other).view());
    }
    all.push_back(std::move(one));
  }
  return all;
}

std::optional<Result<StepReport>> Averager::Impl::wait(Duration limit) {
  if (!finish_told_) return Result<StepReport>(invalid("finish() the step first"));
  const bool one_by_one =
      std::ranges::any_of(needed_, [](double needed) { return needed != kNotAsked; });
  begin_stall();
  std::optional<Result<StepReport>> outcome = outcomes_.pop(limit);
  if (!outcome) return std::nullopt;
  if (one_by_one && outcome->ok()) tell_needs(outcome->value());
  end_stall();
  if (one_by_one && outcome->ok()) outcome->value().exposed_s = stalled_s_;
  if (!wanted_.empty()) {  // nobody came back for the answer
    static_cast<void>(answers_.pop());
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

void Averager::Impl::on_thread(const std::function<void()>& body) {
  SCANT_CHECK(events_.push(Task{&body}));
  static_cast<void>(tasks_done_.pop());
}

// What was asked for earlier, and nobody came for, is of another time.
void Averager::Impl::ask_to_save() {
  static_cast<void>(saves_.drain());
  SCANT_CHECK(events_.push(Save{}));
}

std::vector<std::byte> Averager::Impl::saved() {
  std::optional<std::vector<std::byte>> bytes = saves_.pop();
  return bytes ? std::move(*bytes) : std::vector<std::byte>();
}

double Averager::Impl::seconds() const { return seconds_between(begun_, Clock::now()); }

void Averager::Impl::loop() {
  for (;;) {
    std::optional<Event> event = events_.try_pop();
    if (!event && phase_ != Phase::idle && !error_) {
      if (const auto job = core_.next()) {
        run(*job);
        end_if_over();
        answer();
        continue;
      }
    }
    if (!event) event = events_.pop();
    if (!event || (std::holds_alternative<Stop>(*event) && operations_ == 0)) return;
    if (std::holds_alternative<Stop>(*event)) {
      fail(Error{.code = ErrorCode::closed, .message = "the gradients' averager was closed"});
      static_cast<void>(communicator.release_group(verdict_group_));
      while (operations_ > 0) on_event(*events_.pop());
      return;
    }
    on_event(*event);
    end_if_over();
    answer();
  }
}

void Averager::Impl::on_event(const Event& event) {
  if (const auto* ready_event = std::get_if<TensorReady>(&event)) {
    if (phase_ == Phase::idle) begin_step();
    tensor_ready(ready_event->tensor, true);
  } else if (const auto* finish_event = std::get_if<Finish>(&event)) {
    if (phase_ == Phase::idle) begin_step();
    finish_backward(finish_event->parameters_hash);
  } else if (const auto* done = std::get_if<OperationDone>(&event)) {
    operation_done(*done);
  } else if (const auto* task = std::get_if<Task>(&event)) {
    (*task->body)();
    tasks_done_.push(true);
  } else if (std::holds_alternative<Asked>(event)) {
    asked_ = true;
  } else if (std::holds_alternative<Save>(event)) {
    static_cast<void>(saves_.try_push(save()));
  }
}

void Averager::Impl::finished(const StepCore::Job& job) {
  core_.finished(job);
  if (!core_.is_done(job.buffer)) return;
  arrived_in_[job.buffer].store(report_.step, std::memory_order_release);
}

// Every tensor that the user may ask for was present here, so it has an average whatever the
// verdict says of the others. After the step nobody has to wait.
void Averager::Impl::answer() {
  if (!asked_) return;
  const bool failed = error_.has_value();
  const auto here = [this](uint32_t tensor) { return has_arrived(tensor); };
  if (!failed && phase_ != Phase::idle && !std::ranges::all_of(wanted_, here)) return;
  asked_ = false;
  answers_.push(!failed);
}

void Averager::Impl::begin_step() {
  const size_t tensors = layout.tensors().size();
  const auto count = static_cast<size_t>(ranks());
  phase_ = Phase::running;
  begun_ = Clock::now();
  const uint64_t step = report_.step + 1;
  report_ = StepReport{};
  report_.step = step;
  report_.plan_hash = plan_hash;
  report_.buffers.resize(plan.buffers.size());
  report_.parts.resize(layout.parts().size());
  if (std::exchange(curves_wanted, false)) report_.curves.resize(layout.parts().size());
  present_.assign(tensors, false);
  seen_.assign(count, std::vector<bool>(tensors));
  missed_.assign(count, std::vector<bool>(tensors));
  nonfinite_ = 0;
  not_finite_.assign(tensors, false);
  parts_to_encode_ = layout.parts().size();
  verdict_begun_ = false;
  verdict_over_ = false;
  for (BufferMemory& memory : buffers_) {
    for (Message& message : memory.outgoing) message.clear();
    memory.average.clear();
  }
  core_.begin(plan);
}

void Averager::Impl::tensor_ready(uint32_t tensor, bool present) {
  const TensorLayout& known = layout.tensors()[tensor];
  present_[tensor] = present;
  if (error_) return;
  for (uint32_t part = known.first_part; part < known.first_part + known.parts; ++part) {
    core_.part_ready(part);
    report_.parts[part].ready = seconds();
    BufferTimes& times = report_.buffers[core_.buffer_of(part)];
    times.ready = std::max(times.ready, report_.parts[part].ready);
  }
}

void Averager::Impl::finish_backward(uint64_t parameters_hash) {
  phase_ = Phase::finishing;
  finish_at_ = seconds();
  report_.backward_s = finish_at_;
  parameters_hash_ = parameters_hash;
  for (uint32_t tensor = 0; tensor < layout.tensors().size(); ++tensor) {
    if (!present_[tensor]) tensor_ready(tensor, false);
  }
  begin_verdict();
}

// Once everything is encoded, so that it can count what is not finite; or once something failed, so
// that all ranks learn of it.
void Averager::Impl::begin_verdict() {
  if (phase_ != Phase::finishing || verdict_begun_) return;
  if (!error_ && parts_to_encode_ > 0) return;
  verdict_begun_ = true;
  write_verdict(Verdict{.step = report_.step,
                        .plan_hash = plan_hash,
                        .nonfinite = nonfinite_,
                        .parameters_hash = parameters_hash_,
                        .failure = error_ ? static_cast<uint64_t>(error_->code) + 1 : 0,
                        .present = present_,
                        .not_finite = not_finite_},
                verdict_own_);
  std::vector<MutableBytes> parts;
  for (size_t i = 0; i < static_cast<size_t>(ranks()); ++i) {
    parts.push_back(
        MutableBytes(verdict_all_).subspan(i * verdict_own_.size(), verdict_own_.size()));
  }
  verdict_ = communicator.all_gather(verdict_own_, std::move(parts), DType::u8,
                                     {.group = verdict_group_, .timeout = options.timeout});
  submit_done(verdict_callback_, verdict_, Leg::verdict, 0);
}

void Averager::Impl::submit_done(Callback& callback, const Work& work, Leg leg, uint32_t buffer) {
  ++operations_;
  callback = Callback{this, OperationDone{leg, buffer}};
  work.on_done(&on_operation_done, &callback);
}

void Averager::Impl::on_operation_done(void* context) {
  const auto* callback = static_cast<const Callback*>(context);
  static_cast<void>(callback->impl->events_.try_push(callback->event));
}

void Averager::Impl::operation_done(const OperationDone& done) {
  --operations_;
  const Work& work = done.leg == Leg::verdict ? verdict_
                     : done.leg == Leg::first ? buffers_[done.buffer].first
                                              : buffers_[done.buffer].second;
  const Result<void> outcome = work.wait();
  if (done.leg == Leg::verdict) verdict_over_ = true;
  if (!outcome) return fail(outcome.error());
  if (done.leg == Leg::verdict) return verdict_done();
  if (error_) return;
  BufferTimes& times = report_.buffers[done.buffer];
  const bool first = done.leg == Leg::first;
  (first ? times.first_end : times.second_end) = seconds();
  finished({first ? StepCore::Kind::begin_first : StepCore::Kind::begin_second, done.buffer, 0});
  if (first && plan.buffers[done.buffer].path == Path::all_reduce) times.done = times.first_end;
}

void Averager::Impl::verdict_done() {
  std::vector<Verdict> by_rank;
  const size_t tensors = layout.tensors().size();
  for (size_t i = 0; i < static_cast<size_t>(ranks()); ++i) {
    by_rank.push_back(read_verdict(
        Bytes(verdict_all_).subspan(i * verdict_own_.size(), verdict_own_.size()), tensors));
  }
  Result<Judgement> judgement =
      judge(by_rank, {.missing_as_zeros = options.missing_as_zeros, .names = options.names});
  if (!judgement) {
    fail(judgement.error());
    // What all ranks say goes before what this one met, unless they say that this one failed.
    const bool about_this =
        judgement.error().code == error_->code && judgement.error().peer == rank_;
    if (!about_this) error_ = judgement.error();
    return;
  }
  report_.present = std::move(judgement.value().present);
  report_.nonfinite = judgement.value().nonfinite;
  report_.not_finite = std::move(judgement.value().not_finite);
  by_rank_ = std::move(by_rank);
}

// A message that lacks a tensor which its sender had, or holds one that it had not, is damaged.
std::optional<Error> Averager::Impl::check_presence() const {
  for (size_t sender = 0; sender < by_rank_.size(); ++sender) {
    for (size_t tensor = 0; tensor < present_.size(); ++tensor) {
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

// The first error is the step's, unless the verdict tells more. Legs that are under way end, here
// and on the other ranks.
void Averager::Impl::fail(Error error) {
  if (error_) return;
  error_ = std::move(error);
  for (const GroupId group : {first_group_, second_group_}) {
    static_cast<void>(communicator.release_group(group));
  }
}

void Averager::Impl::end_if_over() {
  begin_verdict();
  if (operations_ > 0 || phase_ != Phase::finishing || !verdict_over_) return;
  if (!error_ && !core_.done()) return;
  phase_ = Phase::idle;
  if (!error_) error_ = check_presence();
  report_.end_s = seconds();
  report_.exposed_s = report_.end_s - finish_at_;
  outcomes_.push(error_ ? Result<StepReport>(*error_) : Result<StepReport>(report_));
}

Averager::Averager(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Averager::~Averager() = default;

Result<std::unique_ptr<Averager>> Averager::create(Communicator& communicator, Layout layout,
                                                   std::span<float> arena,
                                                   const AveragerOptions& options) {
  if (arena.size() != layout.arena_elements()) {
    return invalid("arena: the layout needs " + std::to_string(layout.arena_elements()) +
                   " elements, got " + std::to_string(arena.size()));
  }
  if (!(options.decay >= 0.0f && options.decay <= 1.0f)) return invalid("decay must lie in 0 to 1");
  if (options.workers < 1 || options.workers > base::WorkerPool::kWorkersMax) {
    return invalid("workers must lie in 1 to " + std::to_string(base::WorkerPool::kWorkersMax));
  }
  auto impl = std::make_unique<Impl>(communicator, std::move(layout), arena, options);
  if (Result<void> started = impl->start(); !started) return started.error();
  return std::unique_ptr<Averager>(new Averager(std::move(impl)));
}

const Layout& Averager::layout() const { return impl_->layout; }
Result<void> Averager::set_plan(const FusionPlan& plan) { return impl_->set_plan(plan); }
void Averager::ask_for_curves() { impl_->curves_wanted = true; }
uint64_t Averager::plan_hash() const { return impl_->plan_hash; }
Result<void> Averager::ready(uint32_t tensor) { return impl_->ready(tensor); }
Result<void> Averager::finish(uint64_t parameters_hash) { return impl_->finish(parameters_hash); }
std::optional<Result<bool>> Averager::wait_for(std::span<const uint32_t> tensors, Duration limit) {
  return impl_->wait_for(tensors, limit);
}
std::vector<uint32_t> Averager::arrived() const { return impl_->arrived(); }
std::optional<Result<StepReport>> Averager::wait(Duration limit) { return impl_->wait(limit); }
void Averager::ask_to_save() { impl_->ask_to_save(); }
std::vector<std::byte> Averager::saved() { return impl_->saved(); }
std::vector<AveragedBuffer> Averager::averaged() const { return impl_->averaged(); }
std::vector<std::byte> Averager::save() const {
  std::vector<std::byte> saved;
  impl_->on_thread([&] { saved = impl_->save(); });
  return saved;
}
Result<void> Averager::restore(Bytes saved) {
  Result<void> outcome;
  impl_->on_thread([&] { outcome = impl_->restore(saved); });
  return outcome;
}
void Averager::scale_residuals(float factor) {
  impl_->on_thread([&] { impl_->scale_residuals(factor); });
}
double Averager::residual_energy() const {
  double energy = 0;
  impl_->on_thread([&] { energy = impl_->residual_energy(); });
  return energy;
}
size_t Averager::memory_bytes() const {
  size_t bytes = 0;
  impl_->on_thread([&] { bytes = impl_->memory_bytes(); });
  return bytes;
}

}  // namespace scant::gradient
