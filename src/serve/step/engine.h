// A model that answers requests, on a thread of its own. Any thread submits and cancels; one thread
// polls. docs/serve.md, "Requests".
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/descriptor.h"
#include "base/queue.h"
#include "base/thread.h"
#include "serve/model/decoder.h"
#include "serve/step/choice.h"
#include "serve/step/scheduler.h"

namespace scant::serve {

struct EngineOptions {
  size_t threads = 1;  // at most, or always
  bool choose_threads = false;
  double answer_wait_s = 0.15;  // that a token of an answer may wait for prompts; 0: no limit
  KernelChoice kernels = best_kernels();
  KvKind kv = KvKind::bf16;
  uint64_t kv_bytes = uint64_t{1} << 30;  // of keys and values, at most
  uint32_t context = 0;                   // of a prompt and its answer; 0: the model's
  uint32_t step_tokens = 512;
  uint32_t running_max = 64;
  uint32_t waiting_max = 256;
};

// What it did since it started. Times are of steps, without waiting for requests.
struct EngineStats {
  SchedulerCounts counts;
  uint64_t running = 0;
  uint64_t waiting = 0;
  uint64_t pages = 0;
  uint64_t pages_held = 0;
  double step_s = 0;
  uint64_t answer_steps = 0;  // those in which each sequence ran one token
  double answer_s = 0;
  uint64_t memory_bytes = 0;  // of keys, values and activations
  Work work;
  // Of the last step of each kind, by its row of the cost table.
  struct Chosen {
    uint64_t threads = 0;   // held; 0: there was no such step
    double to_plain = 1;    // time ÷ that with all threads
    uint64_t compared = 0;  // pairs that tell so
  };
  Chosen answers;
  Chosen prompts;
  uint64_t prompt_tokens_beside = 0;  // of prompts, that may run beside answers
};

class Engine {
 public:
  // The model outlives it. ErrorCode::invalid_argument: options; resource: no memory.
  [[nodiscard]] static Result<std::unique_ptr<Engine>> start(const Model& model,
                                                             EngineOptions options);
  // Ends all requests.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. Its number must be new. ErrorCode::invalid_argument: it can never run;
  // resource: too many requests are open; closed: close() was called.
  [[nodiscard]] Result<void> submit(Request request);
  // Any thread. Does nothing if the request is over.
  void cancel(uint64_t request);
  // What happened, in order; waits for something to happen. Nothing: the time is over, or the
  // engine is closed and all was told. If nobody polls, the engine stops after a while.
  [[nodiscard]] std::vector<Event> poll(Duration timeout);
  // Can be read while poll() has something to tell, so that an event loop hears it. Any thread.
  [[nodiscard]] int fd() const { return told_.get(); }
  // Ends all requests, as cancelled; poll() tells the rest. Any thread.
  void close();
  [[nodiscard]] bool closed() const;

  [[nodiscard]] const SchedulerOptions& limits() const { return limits_; }
  [[nodiscard]] EngineStats stats() const;
  // Requests that are not over.
  [[nodiscard]] uint32_t open() const { return open_.load(std::memory_order_relaxed); }

 private:
  struct Command {
    std::optional<Request> submit;
    uint64_t cancel = 0;
  };
  Engine(std::unique_ptr<Decoder> decoder, const EngineOptions& options, SchedulerOptions limits,
         uint32_t pages);
  void run();
  void obey(Command command);
  void run_step();
  bool tell();
  void publish();

  // Written by the engine's thread, read by any.
  struct Published {
    std::atomic<uint64_t> steps{0}, prompt_tokens{0}, answer_tokens{0}, cached_tokens{0}, paused{0},
        vectors{0}, requests{0}, running{0}, waiting{0}, pages_held{0}, answer_steps{0},
        memory_bytes{0}, products{0}, attention{0}, seen{0}, beside{0};
    std::atomic<double> step_s{0}, answer_s{0};
    struct Chosen {
      std::atomic<uint64_t> threads{0}, compared{0};
      std::atomic<double> to_plain{1};
    };
    Chosen answers, prompts;
  };
  static void publish(const std::optional<StepChoice::Row>& row, Published::Chosen& to);

  std::unique_ptr<Decoder> decoder_;  // the engine's thread
  SchedulerOptions limits_;
  Scheduler scheduler_;  // the engine's thread
  StepChoice choice_;    // the engine's thread
  const uint32_t pages_;
  base::MonotonicClock clock_;
  double step_s_ = 0;
  double answer_s_ = 0;
  uint64_t answer_steps_ = 0;
  uint32_t beside_ = 0;
  std::vector<Piece> pieces_;
  Published published_;
  std::atomic<uint32_t> open_{0};
  base::BoundedQueue<Command> commands_;
  base::BoundedQueue<std::vector<Event>> events_;
  base::Descriptor told_;
  base::Thread thread_;
};

}  // namespace scant::serve
