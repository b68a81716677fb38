// The thread scant-grad: drives one GradientStep on an Exchange. Owner: that thread owns the step
// and submits its operations; the user's thread calls what is public here, the exchange's own
// thread tells of operations that are done, and a device's that it has encoded. Everything crosses
// through bounded queues, but for the buffers that have arrived, which are flags, and the one that
// keeps a device's calls to one event.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <variant>
#include <vector>

#include "base/queue.h"
#include "base/thread.h"
#include "gradient/exchange.h"
#include "gradient/gradient_step.h"

namespace scant::gradient {

class StepThread {
 public:
  // Exchange and arena outlive this object. The members are the step's until a body of run() sets
  // others. `gradients`: those of a device, or empty.
  StepThread(Exchange& exchange, std::unique_ptr<GradientStep> step, std::span<float> arena,
             codec::Placed<const float> gradients, uint32_t slot);
  // Ends a step that is under way, here and on the other members.
  ~StepThread();
  StepThread(const StepThread&) = delete;
  StepThread& operator=(const StepThread&) = delete;
  Result<void> start();

  // A step: begin, any number of tensors, finish, and then its outcome.
  void begin(bool curves);
  void ready(uint32_t tensor);
  void finish(uint64_t parameters_hash, uint64_t samples);
  // Nothing when the step is not over within `limit`.
  [[nodiscard]] std::optional<Result<StepReport>> outcome(Duration limit);

  // Whether the buffer's averages lie in the arena, in this step, counted from 1.
  [[nodiscard]] bool has_arrived(uint32_t buffer, uint64_t step) const {
    return arrived_in_[buffer].load(std::memory_order_acquire) == step;
  }
  // Asks for the averages of these buffers, and takes the answer: true when they are there, false
  // when the step has failed.
  void ask_for(std::vector<uint32_t> buffers);
  [[nodiscard]] std::optional<bool> answer(Duration limit);

  // Runs on the thread between two of its jobs; returns when it has.
  void run(const std::function<void(GradientStep&)>& body);
  // From within such a body: the number of the next step.
  void begin_at(uint64_t step) { steps_begun_ = step - 1; }
  void ask_to_save();
  // Any thread; nothing when this object goes, or where a device could not be read.
  [[nodiscard]] std::vector<std::byte> saved();

 private:
  struct Begin {
    bool curves = false;
  };
  struct TensorReady {
    uint32_t tensor = 0;
  };
  struct Finish {
    uint64_t parameters_hash = 0;
    uint64_t samples = 0;
  };
  struct OperationDone {
    Ticket ticket;
    Outcome outcome;
  };
  struct Task {
    const std::function<void(GradientStep&)>* body = nullptr;
  };
  struct Asked {
    std::vector<uint32_t> buffers;
  };
  struct Save {};
  struct Woken {};  // by a device
  struct Stop {};
  using Event =
      std::variant<Begin, TensorReady, Finish, OperationDone, Task, Asked, Save, Woken, Stop>;

  void wake();  // a device's thread
  void loop();
  void on_event(Event& event);
  void begin_step(const Begin& event);
  [[nodiscard]] Result<void> begin_round(const Begin& event);
  void finish_step(const Finish& event);
  void work(const GradientStep::Job& job);
  void advance();
  void transmit();
  void leave_lanes();
  void cancel(const Lane& lane);
  void submit(Transmit transmit);
  void give_answer();
  void stop();

  Exchange& exchange_;
  base::BoundedQueue<Event> events_;
  base::BoundedQueue<Result<StepReport>> outcomes_{1};
  base::BoundedQueue<bool> answers_{1};
  base::BoundedQueue<bool> tasks_done_{1};
  base::BoundedQueue<std::vector<std::byte>> saves_{1};
  // By buffer the last step in which it arrived: written by the thread (release), read by the user
  // (acquire).
  std::vector<std::atomic<uint64_t>> arrived_in_;
  // A Woken is in the queue. Set by devices' threads, taken back by the thread before it looks what
  // is done (both acquire and release), so that what comes later is another event.
  std::atomic<bool> woken_{false};
  std::atomic<bool> save_asked_{false};  // likewise a Save; set by the user

  // The thread's.
  const std::unique_ptr<GradientStep> step_;
  const std::span<float> arena_;
  const codec::Placed<const float> gradients_;
  const uint32_t slot_;
  uint64_t steps_begun_ = 0;
  std::optional<Error> refused_;                // the step could not begin
  bool open_ = false;                           // begun, and its outcome not told
  bool failed_ = false;                         // the last one
  std::optional<std::vector<uint32_t>> asked_;  // buffers that the user waits for
  base::Thread thread_;
};

}  // namespace scant::gradient
