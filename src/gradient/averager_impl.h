// The inside of Averager, shared by averager.cc (calls and the thread), averager_needs.cc (averages
// of single tensors) and average_jobs.cc (what the jobs of a step do). Owner: the thread
// scant-grad, but for what is said to be the user's.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/buffer.h"
#include "base/queue.h"
#include "base/thread.h"
#include "gradient/averager.h"
#include "gradient/messages.h"
#include "gradient/step_core.h"

namespace scant::gradient {

inline Error invalid(std::string message) {
  return Error{.code = ErrorCode::invalid_argument, .message = std::move(message)};
}

class Averager::Impl {
 public:
  Impl(Communicator& communicator, Layout layout, std::span<float> arena,
       const AveragerOptions& options);
  ~Impl();
  Result<void> start();

  // averager.cc: the user's side
  Result<void> set_plan(const FusionPlan& plan);
  Result<void> ready(uint32_t tensor);
  Result<void> finish(uint64_t parameters_hash);
  std::optional<Result<StepReport>> wait(Duration limit);
  // averager_needs.cc: likewise
  std::optional<Result<bool>> wait_for(std::span<const uint32_t> tensors, Duration limit);
  [[nodiscard]] std::vector<uint32_t> arrived() const;
  [[nodiscard]] std::vector<AveragedBuffer> averaged() const;
  void on_thread(const std::function<void()>& body);  // averager.cc; between two of its jobs
  void ask_to_save();
  [[nodiscard]] std::vector<std::byte> saved();  // any thread
  // averager_state.cc: on the thread
  [[nodiscard]] std::vector<std::byte> save() const;
  [[nodiscard]] size_t saved_bytes_max() const;
  Result<void> restore(Bytes saved);
  void scale_residuals(float factor);
  [[nodiscard]] double residual_energy() const;
  [[nodiscard]] size_t memory_bytes() const;

  bool curves_wanted = false;  // the user's, between steps

  Communicator& communicator;
  const Layout layout;
  const AveragerOptions options;
  const std::span<float> arena;
  FusionPlan plan;
  uint64_t plan_hash = 0;

 private:
  enum class Leg : uint8_t { first, second, verdict };
  struct TensorReady {
    uint32_t tensor = 0;
  };
  struct Finish {
    uint64_t parameters_hash = 0;
  };
  struct OperationDone {
    Leg leg = Leg::first;
    uint32_t buffer = 0;
  };
  struct Task {
    const std::function<void()>* body = nullptr;  // the caller waits until it has run
  };
  struct Asked {};  // the user waits for wanted_
  struct Save {};   // somebody will wait for saves_
  struct Stop {};
  using Event = std::variant<TensorReady, Finish, OperationDone, Task, Asked, Save, Stop>;

  // What an operation's callback gets; lives as long as the operation.
  struct Callback {
    Impl* impl = nullptr;
    OperationDone event;
  };
  struct BufferMemory {
    SliceSpan slices;
    std::vector<Message> outgoing;   // by owner; gather: one
    std::vector<Message> incoming;   // by rank, first leg; the own place stays empty
    Message average;                 // split: what this owner sends back
    std::vector<Message> averages;   // by owner, second leg; the own place stays empty
    std::vector<uint64_t> received;  // by rank, of the leg that is under way
    Work first;
    Work second;
    Callback first_callback;
    Callback second_callback;
  };
  struct SliceState {
    // Made when first needed: a plan of all_reduce alone takes no memory for residuals.
    std::unique_ptr<codec::Encoder> worker;
    std::unique_ptr<codec::Encoder> owner;  // on the owner
    bool worker_dirty = false;              // may have a residual that is not zero
    bool owner_dirty = false;
  };
  enum class Phase : uint8_t { idle, running, finishing };
  using Clock = std::chrono::steady_clock;
  static constexpr double kNotAsked = -1;
  static double seconds_between(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
  }

  // averager_needs.cc: the user's side
  [[nodiscard]] bool has_arrived(uint32_t tensor) const;
  void begin_stall();
  void end_stall();
  void note_needed(uint32_t tensor);
  void tell_needs(StepReport& report);

  [[nodiscard]] int ranks() const { return layout.ranks(); }
  [[nodiscard]] Rank rank() const { return rank_; }
  [[nodiscard]] double seconds() const;  // since the step began
  [[nodiscard]] std::span<float> floats(uint32_t tensor, const codec::Range& range);

  // averager.cc: the thread
  void loop();
  void on_event(const Event& event);
  void begin_step();
  void tensor_ready(uint32_t tensor, bool present);
  void finish_backward(uint64_t parameters_hash);
  void begin_verdict();
  void operation_done(const OperationDone& done);
  void verdict_done();
  [[nodiscard]] std::optional<Error> check_presence() const;
  void fail(Error error);
  void end_if_over();
  void finished(const StepCore::Job& job);
  void answer();  // the user who waits for some tensors
  static void on_operation_done(void* context);
  void submit_done(Callback& callback, const Work& work, Leg leg, uint32_t buffer);

  // average_jobs.cc
  Result<void> prepare(uint32_t buffer);
  void run(const StepCore::Job& job);
  Result<void> encode(uint32_t buffer, uint32_t part);
  Result<void> look_at(uint32_t part);
  void fold_residual(uint32_t part);
  void fold_owner_residual(uint32_t slice, std::span<float> gradient);
  void move_residual(codec::Encoder& from, float weight, std::span<float> to);
  void count_nonfinite(uint32_t part);
  void begin_first(uint32_t buffer);
  void begin_second(uint32_t buffer);
  Result<void> add(uint32_t buffer);
  Result<void> add_slice(uint32_t buffer, uint32_t slice, std::vector<SortedRecords>& by_rank);
  Result<void> decode(uint32_t buffer);
  void note_presence(const SortedRecords& records, SliceSpan span, Rank owner, Rank sender);
  [[nodiscard]] codec::Encoder& worker(uint32_t slice);
  [[nodiscard]] codec::Encoder& owner(uint32_t slice);
  [[nodiscard]] codec::Encoder make_encoder(uint32_t slice, uint64_t stream) const;
  [[nodiscard]] uint64_t capacity(SliceSpan span, Rank owner) const;

  // averager_state.cc
  Result<void> take(codec::Encoder saved, bool of_owner);
  Result<void> take_part(const codec::Encoder& saved, bool of_owner, uint32_t slice);

  Rank rank_ = kNoRank;
  GroupId first_group_ = kWorldGroup;
  GroupId second_group_ = kWorldGroup;
  GroupId verdict_group_ = kWorldGroup;
  codec::Workspace workspace_;
  codec::RecordBuffer record_;
  std::vector<float> scratch_;
  std::vector<SliceState> slices_;
  std::vector<BufferMemory> buffers_;
  StepCore core_;
  Phase phase_ = Phase::idle;
  std::vector<bool> present_;              // by tensor, in this step
  std::vector<std::vector<bool>> seen_;    // by rank and tensor: a record came
  std::vector<std::vector<bool>> missed_;  // or one was looked for that did not
  std::vector<Verdict> by_rank_;
  Clock::time_point begun_;
  double finish_at_ = 0;
  StepReport report_;
  uint64_t nonfinite_ = 0;
  std::vector<bool> not_finite_;  // by tensor
  std::vector<std::byte> verdict_own_;
  std::vector<std::byte> verdict_all_;
  Work verdict_;
  Callback verdict_callback_;
  bool verdict_begun_ = false;
  bool verdict_over_ = false;
  uint64_t parameters_hash_ = 0;
  size_t parts_to_encode_ = 0;
  size_t operations_ = 0;  // under way
  std::optional<Error> error_;
  bool asked_ = false;  // the user waits for wanted_

  // The user's: a plan that was replaced after its step, for averaged().
  struct Replaced {
    FusionPlan plan;
    std::vector<BufferMemory> buffers;
  };
  void open_step();
  std::optional<Replaced> replaced_;

  // The user's: which tensors were told of in this step, and whether a step is open.
  std::vector<bool> told_;
  bool step_open_ = false;
  bool finish_told_ = false;
  bool broken_ = false;
  uint64_t steps_over_ = 0;
  Clock::time_point finish_told_at_;
  double stalled_s_ = 0;                     // in this step
  std::optional<Clock::time_point> stalls_;  // since then
  std::vector<double> needed_;               // by tensor; below 0: not asked for
  std::vector<uint32_t> wanted_;             // read by the thread until it answers
  std::vector<uint32_t> buffer_of_part_;     // by the plan

  // Of each buffer the last step in which it arrived: written by the thread, read by the user.
  std::vector<std::atomic<uint64_t>> arrived_in_;
  base::BoundedQueue<Event> events_;
  base::BoundedQueue<Result<StepReport>> outcomes_{1};
  base::BoundedQueue<bool> answers_{1};
  base::BoundedQueue<bool> tasks_done_{1};
  base::BoundedQueue<std::vector<std::byte>> saves_{1};  // ~Impl closes it: who waits gets nothing
  base::Thread thread_;
};

}  // namespace scant::gradient
