#include "serve/step/scheduler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/fault.h"

namespace scant::serve {
namespace {

// Logits of prompts that are echoed, in a step: they are memory that stays.
constexpr uint32_t kEchoValues = 4 << 20;

uint32_t pages_for(size_t tokens) {
  return static_cast<uint32_t>((tokens + kPageTokens - 1) / kPageTokens);
}

}  // namespace

struct Scheduler::Sequence {
  Request request;
  uint64_t order = 0;
  std::vector<uint32_t> text;  // the prompt and the answer
  uint32_t done = 0;           // tokens whose keys and values are in the pages
  std::vector<uint32_t> pages{};
  uint32_t known_pages = 0;  // of these, which the pool knows by their text
  PagePool::Prefix prefix = PagePool::kNothing;
  uint32_t planned = 0;  // tokens in the step
  uint32_t cached = 0;
  uint32_t echoed = 0;        // tokens of the prompt that were told
  std::vector<double> sum{};  // of vectors
  Finish finish = Finish::none;

  [[nodiscard]] uint32_t left() const { return static_cast<uint32_t>(text.size()) - done; }
  [[nodiscard]] size_t answered() const { return text.size() - request.prompt.size(); }
  [[nodiscard]] bool wants_vector() const { return request.wanted != Wanted::answer; }
  [[nodiscard]] bool echoes() const { return request.echo && echoed < request.prompt.size(); }
  // Place of the first token whose output is wanted: a token of the prompt is told with the output
  // of the one before.
  [[nodiscard]] uint32_t first_output() const {
    if (request.wanted == Wanted::mean_vector) return 0;
    const auto last = static_cast<uint32_t>(text.size() - 1);
    return echoes() ? std::min(last, std::max(echoed, 1U) - 1) : last;
  }
  [[nodiscard]] uint32_t outputs() const {
    const uint32_t end = done + planned;
    return end - std::clamp(first_output(), done, end);
  }
};

const char* name(Finish finish) {
  switch (finish) {
    case Finish::none:
      return "none";
    case Finish::stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::cancelled:
      return "cancelled";
    case Finish::deadline:
      return "deadline";
    case Finish::failed:
      return "error";
  }
  return "?";
}

Scheduler::Scheduler(SchedulerOptions options, uint32_t pages)
    : options_(options),
      echo_rows_(std::max(
          1U, std::min(kEchoValues / std::max(options.vocabulary, 1U), options.running_max))),
      pool_(pages) {
  SCANT_CHECK(options.step_tokens >= options.running_max && options.running_max > 0);
}
Scheduler::~Scheduler() = default;

std::optional<Error> request_fault(const Request& request, const SchedulerOptions& options,
                                   uint32_t pages) {
  const size_t prompt = request.prompt.size();
  if (prompt == 0) return base::invalid("prompt: it has no token");
  for (const uint32_t token : request.prompt) {
    if (token >= options.vocabulary)
      return base::invalid("prompt: there is no token " + std::to_string(token));
  }
  const bool answers = request.wanted == Wanted::answer;
  if (answers && request.tokens_max == 0 && !request.echo)
    return base::invalid("max_tokens: 0 tokens are no answer");
  if (!answers && (request.tokens_max > 0 || request.echo))
    return base::invalid("max_tokens: who wants a vector gets no tokens");
  if (prompt + std::min(request.tokens_max, 1U) > options.context) {
    return base::invalid("prompt: " + std::to_string(prompt) +
                         " tokens leave no room in a context of " +
                         std::to_string(options.context));
  }
  const uint64_t all = std::min<uint64_t>(uint64_t{prompt} + request.tokens_max, options.context);
  if (pages_for(all) > pages) {
    return base::invalid("max_tokens: prompt and answer may come to " + std::to_string(all) +
                         " tokens, and all keys and values that fit are of " +
                         std::to_string(pages * kPageTokens));
  }
  if (const auto fault = sampling_fault(request.sampling, options.vocabulary))
    return base::invalid(*fault);
  return std::nullopt;
}

Result<void> Scheduler::add(Request request) {
  if (auto fault = request_fault(request, options_, pool_.pages())) return *fault;
  if (waiting_.size() >= options_.waiting_max) {
    return Error{.code = ErrorCode::resource,
                 .message = std::to_string(waiting_.size()) + " requests wait already"};
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->text = request.prompt;
  sequence->request = std::move(request);
  sequence->order = next_order_++;
  waiting_.push_back(std::move(sequence));
  return {};
}

bool Scheduler::cancel(uint64_t request, Finish why) {
  SCANT_CHECK(in_step_.empty(), "nothing is cancelled within a step");
  for (Sequences* const list : {&running_, &waiting_}) {
    const auto found = std::ranges::find_if(
        *list, [&](const auto& one) { return one->request.number == request; });
    if (found == list->end()) continue;
    end(**found, why, {});
    list->erase(found);
    return true;
  }
  return false;
}

void Scheduler::cancel_all() {
  SCANT_CHECK(in_step_.empty(), "nothing is cancelled within a step");
  for (Sequences* const list : {&running_, &waiting_}) {
    for (const auto& one : *list) end(*one, Finish::cancelled, {});
    list->clear();
  }
}

void Scheduler::expire(Time now) {
  SCANT_CHECK(in_step_.empty(), "nothing expires within a step");
  for (Sequences* const list : {&running_, &waiting_}) {
    std::erase_if(*list, [&](const auto& one) {
      if (one->request.deadline > now) return false;
      end(*one, Finish::deadline, {});
      return true;
    });
  }
}

Time Scheduler::next_deadline() const {
  Time next = kNever;
  for (const Sequences* const list : {&running_, &waiting_}) {
    for (const auto& one : *list) next = std::min(next, one->request.deadline);
  }
  return next;
}

uint32_t Scheduler::answering() const {
  return static_cast<uint32_t>(
      std::ranges::count_if(running_, [](const auto& one) { return one->left() == 1; }));
}

const Step& Scheduler::plan(uint32_t prompt_tokens) {
  SCANT_CHECK(in_step_.empty(), "the last step has not ended");
  step_.copies.clear();
  step_.planned.clear();
  Room room{.tokens = options_.step_tokens,
            .prompt_tokens = std::min(prompt_tokens, options_.step_tokens - answering()),
            .echo_rows = echo_rows_};
  plan_running(room);
  admit(room);
  for (const Sequence* const one : in_step_) {
    step_.planned.push_back({.tokens = std::span(one->text).subspan(one->done, one->planned),
                             .position = one->done,
                             .pages = one->pages,
                             .outputs = one->outputs(),
                             .vectors = one->wants_vector()});
  }
  if (!in_step_.empty()) ++counts_.steps;
  return step_;
}

// The oldest first. Whoever answers gets a token; prompts share what is left of the step. If pages
// are short, the youngest is paused, which may be the sequence itself.
void Scheduler::plan_running(Room& room) {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& one = *running_[i];
    const uint32_t tokens = tokens_for(one, room);
    if (tokens == 0) continue;
    while (i < running_.size() && !give_pages(one, tokens)) pause(running_.size() - 1);
    if (i == running_.size()) break;
    add_to_step(one, tokens, room);
  }
}

uint32_t Scheduler::tokens_for(const Sequence& sequence, const Room& room) {
  if (sequence.left() == 1) return std::min(room.tokens, 1U);
  const uint32_t tokens = std::min({sequence.left(), room.prompt_tokens, room.tokens});
  return sequence.echoes() ? std::min(tokens, room.echo_rows) : tokens;
}

// In the order of arrival: who comes later waits for who came before.
void Scheduler::admit(Room& room) {
  while (!waiting_.empty() && running_.size() < options_.running_max && room.tokens > 0) {
    Sequence& one = *waiting_.front();
    if (one.left() > 1 && tokens_for(one, room) == 0) return;
    if (!place(one)) return;
    const uint32_t tokens = tokens_for(one, room);
    const bool given = give_pages(one, tokens);
    SCANT_CHECK(given, "place() has seen that there are pages");
    add_to_step(one, tokens, room);
    running_.push_back(std::move(waiting_.front()));
    waiting_.erase(waiting_.begin());
    std::ranges::sort(running_, {}, [](const auto& of) { return of->order; });
  }
}

// Whether a sequence whose prompt is running begins with the same tokens: its pages will be known
// when it has run.
bool Scheduler::begun_by_another(const Sequence& sequence, uint32_t tokens) const {
  return std::ranges::any_of(running_, [&](const auto& one) {
    return one->done < tokens && tokens <= one->text.size() &&
           std::equal(one->text.begin(), one->text.begin() + tokens, sequence.text.begin());
  });
}

// Takes the pages that are known by the sequence's text. False: it cannot run yet, and holds
// nothing.
bool Scheduler::place(Sequence& sequence) {
  const std::span<const uint32_t> text = sequence.text;
  // A token whose output is wanted runs in any case.
  const uint32_t most = sequence.first_output();
  std::optional<PagePool::Part> part;
  while (true) {
    const auto rest = text.subspan(sequence.done, std::min(kPageTokens, most - sequence.done));
    const auto next = rest.size() == kPageTokens ? pool_.find(sequence.prefix, rest) : std::nullopt;
    if (!next) {
      part = pool_.find_part(sequence.prefix, rest);
      break;
    }
    pool_.hold(next->page);
    sequence.pages.push_back(next->page);
    sequence.prefix = next->prefix;
    ++sequence.known_pages;
    sequence.done += kPageTokens;
  }
  const uint32_t next_page = sequence.done + kPageTokens;
  const uint32_t wanted = pages_for(text.size() + 1) - sequence.known_pages;
  // Each sequence that runs may need one more page soon.
  const size_t spare = running_.size();
  if ((next_page <= most && begun_by_another(sequence, next_page)) ||
      (!running_.empty() && pool_.free() < wanted + spare + 1)) {
    unplace(sequence);
    return false;
  }
  if (part && pool_.free() > wanted) {
    pool_.hold(part->page);
    copied_from_.push_back(part->page);
    sequence.pages.push_back(*pool_.take());
    step_.copies.push_back({part->page, sequence.pages.back()});
    sequence.done += part->tokens;
  }
  if (sequence.answered() == 0) sequence.cached = sequence.done;
  counts_.cached_tokens += sequence.done;
  return true;
}

void Scheduler::unplace(Sequence& sequence) {
  // The last page first: when memory is short, the ends of texts are forgotten before what is
  // before them.
  for (size_t i = sequence.pages.size(); i-- > 0;) pool_.release(sequence.pages[i]);
  sequence.pages.clear();
  sequence.known_pages = 0;
  sequence.prefix = PagePool::kNothing;
  sequence.done = 0;
  sequence.sum.clear();
}

// False: not all of them are there. What was given stays.
bool Scheduler::give_pages(Sequence& sequence, uint32_t tokens) {
  while (sequence.pages.size() < pages_for(sequence.done + tokens)) {
    const auto page = pool_.take();
    if (!page) return false;
    sequence.pages.push_back(*page);
  }
  return true;
}

void Scheduler::pause(size_t index) {
  Sequence& one = *running_[index];
  SCANT_CHECK(one.planned == 0, "what is in the step is older than what is paused");
  unplace(one);
  ++counts_.paused;
  const auto place =
      std::ranges::upper_bound(waiting_, one.order, {}, [](const auto& of) { return of->order; });
  waiting_.insert(place, std::move(running_[index]));
  running_.erase(running_.begin() + static_cast<ptrdiff_t>(index));
}

void Scheduler::add_to_step(Sequence& sequence, uint32_t tokens, Room& room) {
  if (sequence.left() > 1) room.prompt_tokens -= std::min(tokens, room.prompt_tokens);
  if (sequence.echoes()) room.echo_rows -= std::min(tokens, room.echo_rows);
  sequence.planned = tokens;
  room.tokens -= tokens;
  in_step_.push_back(&sequence);
}

void Scheduler::take(std::span<const float> logits, std::span<const float> vectors) {
  size_t vector_rows = 0;
  for (const Sequence* const one : in_step_)
    vector_rows += one->wants_vector() ? one->outputs() : 0;
  const size_t width = vector_rows > 0 ? vectors.size() / vector_rows : 0;
  size_t row = 0;
  size_t vector_row = 0;
  for (Sequence* const one : in_step_) {
    const uint32_t outputs = one->outputs();
    const bool prompt = one->answered() == 0 || one->planned > 1;
    (prompt ? counts_.prompt_tokens : counts_.answer_tokens) += one->planned;
    one->done += one->planned;
    if (one->wants_vector()) {
      sum_up(*one, vectors.subspan(width * vector_row, width * outputs), width);
      vector_row += outputs;
      continue;
    }
    remember(*one);
    for (uint32_t i = 0; i < outputs; ++i) {
      const auto of = logits.subspan(options_.vocabulary * row++, options_.vocabulary);
      if (one->finish != Finish::none) continue;  // an output before was no number
      const uint32_t place = one->done - outputs + i;
      if (place + 1 < one->text.size()) {
        echo(*one, place, of);
      } else {
        choose(*one, of);
      }
    }
  }
  SCANT_CHECK(row * options_.vocabulary == logits.size() && vector_rows * width == vectors.size());
  end_step();
}

void Scheduler::fail(const Error& error) {
  for (Sequence* const one : in_step_) end(*one, Finish::failed, error.to_string());
  end_step();
}

void Scheduler::end_step() {
  for (Sequence* const one : in_step_) one->planned = 0;
  in_step_.clear();
  for (const uint32_t page : copied_from_) pool_.release(page);
  copied_from_.clear();
  std::erase_if(running_, [](const auto& one) { return one->finish != Finish::none; });
}

void Scheduler::remember(Sequence& sequence) {
  while ((sequence.known_pages + 1) * kPageTokens <= sequence.done) {
    const auto tokens =
        std::span(sequence.text).subspan(sequence.known_pages * kPageTokens, kPageTokens);
    sequence.prefix = pool_.remember(sequence.prefix, sequence.pages[sequence.known_pages], tokens);
    ++sequence.known_pages;
  }
}

// The prompt's next token, by the logits of the one at this place; before the first one nothing
// was said that could tell its logprob.
void Scheduler::echo(Sequence& sequence, uint32_t place, std::span<const float> logits) {
  const std::vector<uint32_t>& prompt = sequence.request.prompt;
  if (sequence.echoed == 0) {
    tell(sequence, {.token = prompt[0], .logprob = std::numeric_limits<float>::quiet_NaN()},
         Finish::none);
  }
  auto told = Sampler::tell(logits, prompt[place + 1], sequence.request.sampling.logprobs);
  if (!told) {
    end(sequence, Finish::failed, told.error().to_string());
    return;
  }
  sequence.echoed = place + 2;
  tell(sequence, std::move(told).value(), Finish::none);
}

// Sums in the order of the tokens, so that a cut of the prompt changes no bit.
void Scheduler::sum_up(Sequence& sequence, std::span<const float> rows, size_t width) {
  sequence.sum.resize(width);
  for (size_t i = 0; i < rows.size(); ++i) sequence.sum[i % width] += rows[i];
  if (sequence.left() > 0) return;
  double squares = 0;
  for (const double one : sequence.sum) squares += one * one;
  if (!(squares > 0) || !std::isfinite(squares)) {
    end(sequence, Finish::failed, "the text's vector is no finite direction");
    return;
  }
  std::vector<float> vector;
  for (const double one : sequence.sum)
    vector.push_back(static_cast<float>(one / std::sqrt(squares)));
  end(sequence, Finish::stop, {});
  events_.back().vector = std::move(vector);
  ++counts_.vectors;
}

void Scheduler::choose(Sequence& sequence, std::span<const float> logits) {
  const Request& request = sequence.request;
  if (sequence.echoes() && request.prompt.size() == 1)
    tell(sequence, {.token = request.prompt[0], .logprob = std::numeric_limits<float>::quiet_NaN()},
         Finish::none);
  sequence.echoed = static_cast<uint32_t>(request.prompt.size());
  if (request.tokens_max == 0) {  // only the prompt was to be told
    end(sequence, Finish::length, {});
    return;
  }
  const std::span<const uint32_t> text = sequence.text;
  auto chosen = sampler_.choose(logits, request.prompt, text.subspan(request.prompt.size()),
                                request.sampling);
  if (!chosen) {
    end(sequence, Finish::failed, chosen.error().to_string());
    return;
  }
  const uint32_t token = chosen.value().token;
  sequence.text.push_back(token);
  Finish finish = Finish::none;
  if (std::ranges::count(request.stop_tokens, token) > 0) {
    finish = Finish::stop;
  } else if (sequence.answered() == request.tokens_max ||
             sequence.text.size() == options_.context) {
    finish = Finish::length;
  }
  if (finish != Finish::none) {
    end(sequence, finish, {});
    events_.pop_back();  // it is told with the token
  }
  tell(sequence, std::move(chosen).value(), finish);
}

void Scheduler::tell(const Sequence& sequence, Choice choice, Finish finish) {
  events_.push_back({.request = sequence.request.number,
                     .choice = std::move(choice),
                     .finish = finish,
                     .message = {},
                     .prompt_tokens = static_cast<uint32_t>(sequence.request.prompt.size()),
                     .cached_tokens = sequence.cached});
}

void Scheduler::end(Sequence& sequence, Finish why, std::string message) {
  unplace(sequence);
  sequence.finish = why;
  ++counts_.requests;
  events_.push_back({.request = sequence.request.number,
                     .choice = std::nullopt,
                     .finish = why,
                     .message = std::move(message),
                     .prompt_tokens = static_cast<uint32_t>(sequence.request.prompt.size()),
                     .cached_tokens = sequence.cached});
}

std::vector<Event> Scheduler::events() { return std::exchange(events_, {}); }

}  // namespace scant::serve
