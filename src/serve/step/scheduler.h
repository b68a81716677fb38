// Which tokens run in the next step, in which pages, and what comes of them: continuous batching as
// a state machine without a model, clock or thread. docs/serve.md, "Requests", has the table of
// states. One owner thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"
#include "serve/kv/page_pool.h"
#include "serve/step/sampler.h"

namespace scant::serve {

// What a request wants of its prompt: an answer; or a vector, which is the last token's, or the
// mean over all tokens.
enum class Wanted : uint8_t { answer, last_vector, mean_vector };

struct Request {
  uint64_t number = 0;  // differs from those of all requests that are not over
  std::vector<uint32_t> prompt;
  uint32_t tokens_max = 0;  // of the answer; 0 if there is none
  Sampling sampling;
  std::vector<uint32_t> stop_tokens{};  // the last one of the answer is one of these, or none is
  Time deadline = kNever;
  Wanted wanted = Wanted::answer;
  bool echo = false;  // the prompt's tokens are told first, with their logprobs
};

enum class Finish : uint8_t { none, stop, length, cancelled, deadline, failed };
[[nodiscard]] const char* name(Finish finish);

// A token of an answer or of a prompt that is echoed, or the end of a request, or both.
struct Event {
  uint64_t request = 0;
  std::optional<Choice> choice;
  Finish finish = Finish::none;
  std::string message{};  // why it failed
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;   // of the prompt: found in pages of earlier requests
  std::vector<float> vector{};  // of length 1; of a request that wants one, with its end
};

struct SchedulerOptions {
  uint32_t vocabulary = 0;
  uint32_t context = 0;        // tokens of a prompt and its answer, at most
  uint32_t step_tokens = 512;  // of all sequences in one step, at most
  uint32_t running_max = 64;   // sequences in one step
  uint32_t waiting_max = 256;
};

// Why a request can never run with so many pages; nothing if it can.
[[nodiscard]] std::optional<Error> request_fault(const Request& request,
                                                 const SchedulerOptions& options, uint32_t pages);

struct SchedulerCounts {
  uint64_t steps = 0;
  uint64_t prompt_tokens = 0;  // that ran; those of paused requests each time
  uint64_t answer_tokens = 0;
  uint64_t vectors = 0;        // requests that had one
  uint64_t cached_tokens = 0;  // that did not have to run
  uint64_t paused = 0;
  uint64_t requests = 0;  // that are over
};

// Of one sequence, in a step. Spans are valid until the next call.
struct Planned {
  std::span<const uint32_t> tokens;
  uint32_t position = 0;
  std::span<const uint32_t> pages;
  uint32_t outputs = 0;  // are wanted of so many of the last tokens
  bool vectors = false;  // they are vectors, not logits
};
struct PageCopy {
  uint32_t from = 0;
  uint32_t to = 0;
};
struct Step {
  std::vector<PageCopy> copies{};  // before anything runs
  std::vector<Planned> planned{};
};

class Scheduler {
 public:
  Scheduler(SchedulerOptions options, uint32_t pages);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // ErrorCode::invalid_argument: it can never run; the message begins with the option's name.
  // ErrorCode::resource: too many wait.
  [[nodiscard]] Result<void> add(Request request);
  // Not within a step. False: there is no such request.
  bool cancel(uint64_t request, Finish why);
  void cancel_all();
  // Ends all requests whose deadline has passed.
  void expire(Time now);
  [[nodiscard]] Time next_deadline() const;

  // Sequences that will get a token of their answer in the next step.
  [[nodiscard]] uint32_t answering() const;
  // Begins a step, if anything can run; else nothing is planned. Of prompts, at most so many tokens
  // run.
  [[nodiscard]] const Step& plan(uint32_t prompt_tokens = UINT32_MAX);
  // Ends it: a row for each output, in the order of the plan.
  void take(std::span<const float> logits, std::span<const float> vectors = {});
  // Ends it without logits: all requests in it fail.
  void fail(const Error& error);

  // What happened since the last call.
  [[nodiscard]] std::vector<Event> events();

  [[nodiscard]] size_t running() const { return running_.size(); }
  [[nodiscard]] size_t waiting() const { return waiting_.size(); }
  [[nodiscard]] const PagePool& pool() const { return pool_; }
  [[nodiscard]] const SchedulerCounts& counts() const { return counts_; }

 private:
  struct Sequence;
  using Sequences = std::vector<std::unique_ptr<Sequence>>;  // in the order of arrival

  // Of a step.
  struct Room {
    uint32_t tokens = 0;
    uint32_t prompt_tokens = 0;
    uint32_t echo_rows = 0;
  };

  void plan_running(Room& room);
  void admit(Room& room);
  [[nodiscard]] static uint32_t tokens_for(const Sequence& sequence, const Room& room);
  [[nodiscard]] bool begun_by_another(const Sequence& sequence, uint32_t tokens) const;
  [[nodiscard]] bool place(Sequence& sequence);
  void unplace(Sequence& sequence);
  [[nodiscard]] bool give_pages(Sequence& sequence, uint32_t tokens);
  void pause(size_t index);
  void add_to_step(Sequence& sequence, uint32_t tokens, Room& room);
  void remember(Sequence& sequence);
  void echo(Sequence& sequence, uint32_t place, std::span<const float> logits);
  void sum_up(Sequence& sequence, std::span<const float> rows, size_t width);
  void choose(Sequence& sequence, std::span<const float> logits);
  void tell(const Sequence& sequence, Choice choice, Finish finish);
  void end(Sequence& sequence, Finish why, std::string message);
  void end_step();

  SchedulerOptions options_;
  uint32_t echo_rows_;
  PagePool pool_;
  Sampler sampler_;
  Sequences running_;
  Sequences waiting_;
  Step step_;
  std::vector<Sequence*> in_step_;     // as planned
  std::vector<uint32_t> copied_from_;  // held until the copies are made
  std::vector<Event> events_;
  SchedulerCounts counts_;
  uint64_t next_order_ = 0;
};

}  // namespace scant::serve
