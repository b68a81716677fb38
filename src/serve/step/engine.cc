#include "serve/step/engine.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <sys/eventfd.h>
#include <utility>

#include "base/fault.h"

namespace scant::serve {
namespace {

// Steps whose events wait for poll(): some seconds of answers.
constexpr size_t kEventsMax = 1024;
constexpr size_t kCommandsMax = 4096;

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

Result<std::unique_ptr<Engine>> Engine::start(const Model& model, EngineOptions options) {
  const Description& description = model.description();
  if (options.threads == 0) return base::invalid("threads: 0 threads run nothing");
  if (options.context > description.context) {
    return base::invalid("context: the model knows at most " + std::to_string(description.context) +
                         " tokens");
  }
  if (options.running_max == 0 || options.step_tokens < options.running_max)
    return base::invalid("step_tokens: less than a token for each sequence of a step");
  const uint64_t page = kv_page_bytes(description, options.kv);
  const uint32_t context = options.context > 0 ? options.context : description.context;
  // More than all sequences could hold is never used.
  const uint64_t useful =
      uint64_t{options.running_max} * ((context + kPageTokens - 1) / kPageTokens);
  const uint64_t pages = std::min({options.kv_bytes / page, useful + 1, uint64_t{UINT32_MAX}});
  if (pages == 0) {
    return base::invalid("kv_bytes: 16 tokens of this model take " + std::to_string(page) +
                         " bytes");
  }
  auto decoder = Decoder::create(model, options.kv, static_cast<uint32_t>(pages), options.threads,
                                 options.kernels);
  if (!decoder) return decoder.error();
  const SchedulerOptions limits = {.vocabulary = description.vocabulary,
                                   .context = context,
                                   .step_tokens = options.step_tokens,
                                   .running_max = options.running_max,
                                   .waiting_max = options.running_max + options.waiting_max};
  std::unique_ptr<Engine> engine(
      new Engine(std::move(decoder).value(), options, limits, static_cast<uint32_t>(pages)));
  engine->told_ = base::Descriptor(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!engine->told_.open())
    return Error{ErrorCode::resource, errno, kNoRank, "no descriptor for the engine's events"};
  Engine* const self = engine.get();
  if (auto started = self->thread_.start("scant-engine", [self] { self->run(); }); !started)
    return started.error();
  return engine;
}

Engine::Engine(std::unique_ptr<Decoder> decoder, const EngineOptions& options,
               SchedulerOptions limits, uint32_t pages)
    : decoder_(std::move(decoder)),
      limits_(limits),
      scheduler_(limits, pages),
      choice_({.threads = options.threads,
               .choose_threads = options.choose_threads,
               .step_tokens = options.step_tokens,
               .answer_wait_s = options.answer_wait_s}),
      pages_(pages),
      commands_(kCommandsMax),
      events_(kEventsMax) {}

Engine::~Engine() {
  close();
  events_.close();
  thread_.join();
}

Result<void> Engine::submit(Request request) {
  if (auto fault = request_fault(request, limits_, pages_)) return *fault;
  if (open_.fetch_add(1, std::memory_order_relaxed) >= limits_.waiting_max) {
    open_.fetch_sub(1, std::memory_order_relaxed);
    return Error{.code = ErrorCode::resource,
                 .message = std::to_string(limits_.waiting_max) + " requests are open already"};
  }
  if (!commands_.push({.submit = std::move(request)})) {
    open_.fetch_sub(1, std::memory_order_relaxed);
    return base::closed("the engine is closed");
  }
  return {};
}

void Engine::cancel(uint64_t request) {
  // If the engine is closed, then the request is over.
  static_cast<void>(commands_.push({.submit = std::nullopt, .cancel = request}));
}

std::vector<Event> Engine::poll(Duration timeout) {
  eventfd_t ignored = 0;
  // Before the events are taken: what comes in between is heard in the next turn.
  static_cast<void>(eventfd_read(told_.get(), &ignored));
  std::vector<Event> all;
  auto first = events_.pop(timeout);
  if (!first) return all;
  all = std::move(*first);
  for (auto& more : events_.drain()) std::ranges::move(more, std::back_inserter(all));
  return all;
}

void Engine::close() { commands_.close(); }

bool Engine::closed() const { return commands_.closed(); }

void Engine::run() {
  while (true) {
    const bool idle = scheduler_.running() == 0 && scheduler_.waiting() == 0;
    if (idle) {
      auto command = commands_.pop();
      if (!command) break;  // closed
      obey(std::move(*command));
    }
    for (Command& command : commands_.drain()) obey(std::move(command));
    if (commands_.closed()) break;
    scheduler_.expire(clock_.now());
    run_step();
    if (!tell()) break;
  }
  while (auto command = commands_.try_pop()) obey(std::move(*command));
  scheduler_.cancel_all();
  static_cast<void>(tell());
  events_.close();
  static_cast<void>(eventfd_write(told_.get(), 1));
}

void Engine::obey(Command command) {
  if (!command.submit) {
    scheduler_.cancel(command.cancel, Finish::cancelled);
    return;
  }
  const uint64_t number = command.submit->number;
  if (auto added = scheduler_.add(std::move(*command.submit)); !added) {
    // submit() has looked already; this is for what it could not see.
    static_cast<void>(events_.push({{.request = number,
                                     .choice = std::nullopt,
                                     .finish = Finish::failed,
                                     .message = added.error().to_string()}}));
    open_.fetch_sub(1, std::memory_order_relaxed);
  }
}

void Engine::run_step() {
  const uint32_t answering = scheduler_.answering();
  const uint32_t prompts = choice_.prompt_tokens(answering);
  if (answering > 0) beside_ = prompts;
  const Step& step = scheduler_.plan(prompts);
  if (step.planned.empty()) return;
  const Time began = clock_.now();
  for (const PageCopy& copy : step.copies) decoder_->copy_page(copy.from, copy.to);
  pieces_.clear();
  StepShape shape;
  for (const Planned& one : step.planned) {
    pieces_.push_back({.tokens = one.tokens,
                       .position = one.position,
                       .pages = one.pages,
                       .outputs = one.outputs,
                       .vectors = one.vectors});
    shape.tokens += static_cast<uint32_t>(one.tokens.size());
    if (one.tokens.size() > 1) shape.kind = StepKind::prompts;
  }
  const size_t threads = choice_.threads(shape);
  decoder_->use_threads(threads);
  try {
    const Time computing = clock_.now();
    const auto logits = decoder_->run(pieces_);
    if (logits) {
      choice_.took(shape, threads, seconds(clock_.now() - computing));
      scheduler_.take(logits.value(), decoder_->vectors());
    } else {
      scheduler_.fail(logits.error());
    }
  } catch (const std::bad_alloc&) {
    scheduler_.fail({.code = ErrorCode::resource, .message = "no memory for a step"});
  }
  const double took = seconds(clock_.now() - began);
  step_s_ += took;
  if (shape.kind == StepKind::answers) {
    answer_s_ += took;
    ++answer_steps_;
  }
}

// False: nobody will poll any more.
bool Engine::tell() {
  publish();
  std::vector<Event> events = scheduler_.events();
  if (events.empty()) return true;
  const auto over = static_cast<uint32_t>(std::ranges::count_if(
      events, [](const Event& event) { return event.finish != Finish::none; }));
  open_.fetch_sub(over, std::memory_order_relaxed);  // first: who hears of an end finds room
  const bool told = events_.push(std::move(events));
  static_cast<void>(eventfd_write(told_.get(), 1));  // fails only where it is readable already
  return told;
}

void Engine::publish() {
  const SchedulerCounts& counts = scheduler_.counts();
  const auto set = [](auto& to, auto value) { to.store(value, std::memory_order_relaxed); };
  set(published_.steps, counts.steps);
  set(published_.prompt_tokens, counts.prompt_tokens);
  set(published_.answer_tokens, counts.answer_tokens);
  set(published_.cached_tokens, counts.cached_tokens);
  set(published_.paused, counts.paused);
  set(published_.vectors, counts.vectors);
  set(published_.requests, counts.requests);
  set(published_.running, scheduler_.running());
  set(published_.waiting, scheduler_.waiting());
  set(published_.pages_held, scheduler_.pool().held());
  set(published_.step_s, step_s_);
  set(published_.answer_s, answer_s_);
  set(published_.answer_steps, answer_steps_);
  set(published_.memory_bytes, decoder_->memory_bytes());
  const Work work = decoder_->work();
  set(published_.products, work.products);
  set(published_.attention, work.attention);
  set(published_.seen, work.seen);
  set(published_.beside, beside_);
  publish(choice_.last(StepKind::answers), published_.answers);
  publish(choice_.last(StepKind::prompts), published_.prompts);
}

void Engine::publish(const std::optional<StepChoice::Row>& row, Published::Chosen& to) {
  if (!row) return;
  to.threads.store(row->threads, std::memory_order_relaxed);
  to.to_plain.store(row->to_plain, std::memory_order_relaxed);
  to.compared.store(row->compared, std::memory_order_relaxed);
}

EngineStats Engine::stats() const {
  const auto get = [](const auto& from) { return from.load(std::memory_order_relaxed); };
  const auto chosen = [&get](const Published::Chosen& from) -> EngineStats::Chosen {
    return {.threads = get(from.threads),
            .to_plain = get(from.to_plain),
            .compared = get(from.compared)};
  };
  return {.counts = {.steps = get(published_.steps),
                     .prompt_tokens = get(published_.prompt_tokens),
                     .answer_tokens = get(published_.answer_tokens),
                     .vectors = get(published_.vectors),
                     .cached_tokens = get(published_.cached_tokens),
                     .paused = get(published_.paused),
                     .requests = get(published_.requests)},
          .running = get(published_.running),
          .waiting = get(published_.waiting),
          .pages = pages_,
          .pages_held = get(published_.pages_held),
          .step_s = get(published_.step_s),
          .answer_steps = get(published_.answer_steps),
          .answer_s = get(published_.answer_s),
          .memory_bytes = get(published_.memory_bytes),
          .work = {.products = get(published_.products),
                   .attention = get(published_.attention),
                   .seen = get(published_.seen)},
          .answers = chosen(published_.answers),
          .prompts = chosen(published_.prompts),
          .prompt_tokens_beside = get(published_.beside)};
}

}  // namespace scant::serve
