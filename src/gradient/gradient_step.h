// The round of gradients: this rank's gradients become the average of all members', buffer by
// buffer. A protocol core without thread, clock or socket: its owner tells it what is ready, what
// operations ended and when, and asks for jobs and operations. docs/gradients.md, "The round".
//
//   begin() → ready() ... finish()      what backward does
//   poll_transmit() → on_done()         operations, to be given to an Exchange
//   next() → run() → finished()         work, one job at a time; again after a device's wake
//   next_cancelled()                    lanes to be cancelled
//   take_outcome()                      the end of the round
//
// One owner thread. Several rounds under way at once are several objects with slots of their own.
// Limits: one round at a time in one object; memory that an operation names stays untouched until
// on_done(), and gradients on a device until the end of the round. A failed allocation is
// ErrorCode::resource of the round, on all members, until the verdict is sent; what fails from then
// on is done once more with memory that was set aside.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "codec/device/stream_call.h"
#include "codec/device/tensor_encoder.h"
#include "codec/workspace.h"
#include "gradient/effort.h"
#include "gradient/exchange.h"
#include "gradient/fusion_plan.h"
#include "gradient/layout.h"
#include "gradient/members.h"
#include "gradient/residuals.h"
#include "gradient/round_factors.h"
#include "gradient/round_memory.h"
#include "gradient/seat.h"
#include "gradient/step_core.h"
#include "gradient/step_report.h"
#include "gradient/verdict.h"

namespace scant::gradient {

struct StepOptions {
  codec::ResidualKind residual = codec::ResidualKind::f32;
  float decay = 1.0f;                   // of residuals, each step
  uint64_t seed = 1;                    // of the codec's draws
  size_t workers = 1;                   // threads that encode and decode, the owner among them
  bool missing_as_zeros = false;        // a tensor without a gradient on some ranks is no error
  std::vector<std::string> names{};     // of the tensors, for messages; may be empty
  Duration timeout = Duration::zero();  // of each operation; zero: the exchange's
  // Makes the encoders of this rank's gradients, one for each slice, whose records lie on the host;
  // empty: of the host. What they stand on outlives the step.
  codec::MakeTensorEncoder encoders{};
  // Where gradients lie on it: copies to the arena what is worked on there, gradients of plain
  // buffers and of matrix parts, and where the report holds curves all others. Outlives the step.
  codec::Device* device = nullptr;
  // Of `split` buffers, the legs of the basis as well. All else is always exact.
  Delivery first_leg{};
  Delivery second_leg{};
  // The verdict goes when all averages have come instead of when all is encoded. A step takes a
  // round trip longer, and an error anywhere in it is an error on every rank. Plans are compared
  // when the round begins, for ranks with different ones would wait for each other's legs.
  bool verdict_last = false;
};

struct RoundSpec {
  uint64_t round = 0;               // the same on all members
  std::span<float> arena{};         // layout.arena_elements(); the gaps between tensors zero
  Members members{};                // self takes part
  std::vector<SliceDuty> duties{};  // empty: duties_for()
  bool curves = false;              // the report holds them
  // Gradients on a device, laid out like the arena, which then holds none of them. Empty: they lie
  // in the arena. ErrorCode::unsupported: the plan has plain buffers or matrix parts, and no device
  // copies them.
  codec::Placed<const float> gradients{};
  // Called when a device is done with something, on a thread of the device's: next() may have
  // another job, or the round be over. It must neither wait nor take memory.
  std::function<void()> wake{};
};

// Names an operation until it is done.
struct Ticket {
  uint64_t round = 0;
  Leg leg = Leg::first;
  uint32_t buffer = 0;
  bool opening = false;  // of the verdict's lane: what comes before the verdict
  friend bool operator==(const Ticket&, const Ticket&) = default;
};
struct Transmit {
  Ticket ticket;
  Operation operation;
};

class GradientStep {
 public:
  using Job = StepCore::Job;                     // encode, add or decode
  static constexpr size_t kOwnerChangesMax = 8;  // in a round

  // `members`: of the first round; they may be others by then.
  static Result<std::unique_ptr<GradientStep>> create(Layout layout, StepOptions options,
                                                      Members members, uint32_t slot = 0);
  ~GradientStep();
  GradientStep(const GradientStep&) = delete;
  GradientStep& operator=(const GradientStep&) = delete;

  // Between rounds; the same plan on all members.
  Result<void> set_plan(const FusionPlan& plan);
  // Between rounds; the same on all of them. What this rank owns no more goes to its own residuals.
  Result<void> set_members(Members members, std::vector<SliceDuty> duties = {});
  // After an error nothing has begun. After a round that failed, members are of a later epoch.
  Result<void> begin(const RoundSpec& spec, Time now);
  // The tensor's gradient lies in the arena; on a device, its stream was given all that makes it.
  // Once for each tensor in a round.
  void ready(uint32_t tensor, Time now);
  // Tensors that are not ready() have no gradient in this round. `samples`: how many this rank's
  // gradient is of.
  void finish(uint64_t parameters_hash, uint64_t samples, Time now);

  // `split` buffers whose first leg has begun on no member go to these owners; of others the duties
  // count for nothing. All members call it with the same duties, equally often in a round, each
  // before its round is over: before finish() that is sure. They agree on the first turn that
  // changes, and no first leg begins meanwhile. Where a member has no memory for it nothing changes
  // on any. The next round has the owners that it begins with. ErrorCode::invalid_argument, and
  // nothing has changed: no round is under way, or it had kOwnerChangesMax changes; duties that are
  // not one for each slice, with an owner among the members and the round's own weight.
  Result<void> change_owners(std::vector<SliceDuty> duties);

  // The next operation to submit, if there is one. Operations of a lane come in their order.
  [[nodiscard]] std::optional<Transmit> poll_transmit(Time now);
  void on_done(const Ticket& ticket, const Outcome& outcome, Time now);
  // The next job, if there is one; run() it at once, then tell when it began and ended. A part that
  // a device encodes or copies comes once more for each of both: when the device is done.
  [[nodiscard]] std::optional<Job> next();
  Effort run(const Job& job);
  void finished(const Job& job, Time begin, Time end);
  // Lanes whose operations are to end, each once: Exchange::cancel.
  [[nodiscard]] std::optional<Lane> next_cancelled();
  // Buffers whose averages lie in the arena, each once, in the order in which they came.
  [[nodiscard]] std::optional<uint32_t> next_arrived();
  // Ends the round by this error as soon as nothing is under way, whatever the others say.
  void abort(Error error);

  [[nodiscard]] bool idle() const { return phase_ == Phase::idle; }
  [[nodiscard]] bool failed() const { return error_.has_value(); }
  // Operations that are not done().
  [[nodiscard]] size_t under_way() const { return operations_; }
  // Whether a device still encodes or copies; whatever ends is followed by a call of
  // RoundSpec::wake.
  [[nodiscard]] bool device_works() const;
  // Once, when the round is over: idle() from then on.
  [[nodiscard]] std::optional<Result<StepReport>> take_outcome(Time now);

  [[nodiscard]] const Layout& layout() const { return layout_; }
  [[nodiscard]] const FusionPlan& plan() const { return plan_; }
  [[nodiscard]] uint64_t plan_hash() const { return plan_hash_; }
  [[nodiscard]] const Seat& seat() const { return seat_; }
  // After a round that did not fail, until the next begins, whatever plan is set meanwhile: what
  // all ranks decoded, the same bytes on each. Nothing of a round whose second legs were bounded.
  [[nodiscard]] std::vector<AveragedBuffer> averaged() const;

  // What outlives rounds. restore() and scale() between rounds only.
  [[nodiscard]] Result<std::vector<std::byte>> save() const;
  Result<void> restore(Bytes saved);
  void scale_residuals(float factor);
  [[nodiscard]] const Residuals& residuals() const { return residuals_; }
  [[nodiscard]] size_t memory_bytes() const;  // of residuals and messages

 private:
  GradientStep(Layout layout, StepOptions options, Seat seat, uint32_t slot);
  enum class Phase : uint8_t { idle, running, finishing };

  // step_memory.cc
  // By stage.
  using StageMemory = std::array<BufferMemory, kStageCount>;
  [[nodiscard]] Result<StageMemory> memory_of(const BufferPlan& buffer, const SliceTable& table,
                                              const Seat& seat) const;
  [[nodiscard]] Result<std::vector<StageMemory>> memory_of(const FusionPlan& plan,
                                                           const SliceTable& table,
                                                           const Seat& seat) const;
  void replace_memory(FusionPlan plan, std::vector<StageMemory> memory);
  [[nodiscard]] BufferMemory& memory_of_stage(uint32_t buffer, Stage stage) {
    return memory_[buffer][static_cast<size_t>(stage)];
  }
  [[nodiscard]] Result<void> prepare_rest();
  [[nodiscard]] Result<void> keep_reserve();

  // gradient_step.cc
  void prepare_round(const RoundSpec& spec);
  void prepare_verdict();
  [[nodiscard]] Operation all_tell(const std::vector<std::byte>& own, std::vector<std::byte>& all);
  // Once this rank's good verdict is on its way others may apply what it sent, so it must not fail
  // alone: what finds no memory gets the reserve, and is done once more. Bodies that fail for
  // memory have changed nothing that a second call would not find.
  template <typename Body>
  auto steadily(const Body& body) {
    return verdict_ ? body() : again(body);
  }
  template <typename Body>
  auto again(const Body& body) {
    try {
      auto outcome = body();
      if (outcome || outcome.error().code != ErrorCode::resource) return outcome;
    } catch (const std::bad_alloc&) {  // NOLINT(bugprone-empty-catch): below it is tried again
    }
    reserve_ = base::Buffer();
    return body();
  }
  void tensor_there(uint32_t tensor, Time now);
  void fail(Error error);
  void fail_for_memory();
  void fail_with(const Error& error);
  [[nodiscard]] bool is_over() const;
  [[nodiscard]] std::optional<Error> check_presence() const;
  [[nodiscard]] double seconds(Time now) const;  // since the round began
  [[nodiscard]] std::span<float> floats(uint32_t tensor, const codec::Range& range) const;
  [[nodiscard]] bool on_device() const { return !gradients_.memory.empty(); }
  [[nodiscard]] codec::Placed<const float> gradient_of(const SliceLayout& slice) const;
  [[nodiscard]] bool works_in_arena(uint32_t part) const;
  [[nodiscard]] std::optional<Error> gradients_fault(const RoundSpec& spec) const;
  [[nodiscard]] std::optional<Error> weights_fault(std::span<const SliceDuty> duties) const;

  // step_legs.cc
  [[nodiscard]] std::optional<Transmit> begin_leg(Time now);
  [[nodiscard]] static Leg leg_of(const StepCore::Job& job);
  [[nodiscard]] static Stage stage_of(Leg leg);
  [[nodiscard]] Operation all_reduce(uint32_t buffer);
  [[nodiscard]] Operation first_swap(uint32_t buffer, Stage stage);
  [[nodiscard]] Operation second_swap(uint32_t buffer, Stage stage);
  [[nodiscard]] Operation swap_of(uint32_t buffer, Stage stage, Leg leg, const Delivery& delivery);
  [[nodiscard]] bool verdict_is_due() const;
  [[nodiscard]] Transmit begin_verdict();
  [[nodiscard]] Operation operation_of(const StepCore::Job& leg);
  void leave_verdicts();
  void leg_done(const Ticket& ticket, const std::vector<Missing>& missing, Time now);
  [[nodiscard]] std::vector<Verdict> read_all(Bytes all) const;
  void fail_as_said(const Error& said);
  void opening_done();
  void verdict_done();
  [[nodiscard]] Result<void> take_missing(const Ticket& ticket,
                                          const std::vector<Missing>& missing);
  [[nodiscard]] bool is_possible(const Missing& one, const Ticket& ticket) const;
  void note_arrival(uint32_t buffer);

  // step_owners.cc
  // By turn from `first` on: memory for the new owners; without slices where nothing changes.
  struct OwnerChange {
    std::vector<SliceDuty> duties;
    uint32_t first = 0;
    std::vector<StageMemory> memory{};
  };
  [[nodiscard]] bool owner_change_is_due() const {
    return !owner_change_ && !aborted_ && owner_changes_begun_ < owner_changes_.size();
  }
  [[nodiscard]] Transmit begin_owner_change();
  [[nodiscard]] Result<void> prepare_owner_change();
  [[nodiscard]] bool gets_other_owners(uint32_t buffer) const;
  [[nodiscard]] int64_t owner_change_hash() const;
  void owner_change_done();
  void take_owners(OwnerChange& change, uint32_t first);
  void forget_owner_changes();
  // Of the round, and of what the members have not agreed on yet.
  template <typename Body>
  void for_each_memory(const Body& body) const {
    const auto of_all = [&](const std::vector<StageMemory>& buffers) {
      for (const StageMemory& stages : buffers) {
        for (const BufferMemory& memory : stages) body(memory);
      }
    };
    of_all(memory_);
    if (owner_change_) of_all(owner_change_->memory);
  }

  // step_jobs.cc
  [[nodiscard]] Result<void> do_job(const Job& job, Effort& effort);
  Result<void> encode(uint32_t buffer, uint32_t part, Effort& effort);
  // `rest`: for a matrix part; the arena then holds A (Factors::project).
  Result<void> begin_slice(uint32_t buffer, uint32_t part, uint32_t slice, Effort& effort,
                           const codec::Product* rest = nullptr);
  Result<void> end_slice(uint32_t buffer, uint32_t part, uint32_t slice, Effort& effort);
  Result<void> end_part(uint32_t part, Effort& effort);
  void end_all();
  [[nodiscard]] bool has_to_come(const Job& job) const;
  Result<void> fetch(const Job& job);
  [[nodiscard]] bool is_begun(uint32_t part) const;
  void forget(uint32_t part);
  [[nodiscard]] std::optional<Job> done_by_device() const;
  Result<void> encode_plain(uint32_t buffer, uint32_t part);
  Result<void> look_at(uint32_t part);
  void count_nonfinite(uint32_t part);
  Result<void> add(uint32_t buffer, Stage stage, Effort& effort);
  Result<void> add_slice(uint32_t buffer, Stage stage, size_t at,
                         std::vector<SortedRecords>& by_rank, Effort& effort);
  // Of the slice at this place of those that this rank adds up. Whether there was any record; what
  // there was is used up.
  Result<bool> sum_of(uint32_t buffer, Stage stage, size_t at, std::vector<SortedRecords>& by_rank,
                      std::span<float> out, Effort& effort);
  [[nodiscard]] Result<SortedRecords> records_from(uint32_t buffer, Stage stage, Rank sender);
  Result<void> decode(uint32_t buffer, Stage stage, Effort& effort);
  Result<void> decode_from(uint32_t buffer, Stage stage, Rank owner, Effort& effort);
  // Dense points of factors; those of elements as the plan has them.
  [[nodiscard]] codec::Point point_of(uint32_t slice, bool back) const;

  // step_factors.cc
  [[nodiscard]] static std::span<float> left_of(const MatrixPart& matrix, std::span<float> array);
  [[nodiscard]] static std::span<float> right_of(const MatrixPart& matrix, std::span<float> array);
  [[nodiscard]] const MatrixPart* matrix_part(uint32_t part) const;
  [[nodiscard]] std::span<float> factor_of(uint32_t slice, std::span<float> array) const;
  [[nodiscard]] std::span<float> room_of(uint32_t slice);
  [[nodiscard]] Result<std::vector<codec::MatrixSlice>> matrix_slices(uint32_t part, bool make);
  Result<void> look_at_directions(uint32_t part, codec::Curve& curve);
  Result<void> encode_left(uint32_t buffer, uint32_t part, Effort& effort);
  Result<void> encode_rest(uint32_t buffer, uint32_t part, Effort& effort);
  [[nodiscard]] bool averages_elements(uint32_t buffer, uint32_t part) const;
  Result<void> add_owners(const PartLayout& part);
  Result<void> send_coefficients(uint32_t buffer, const MatrixPart& matrix,
                                 std::span<const codec::MatrixSlice> slices, Effort& effort);
  Result<void> encode_factor(uint32_t buffer, Stage stage, uint32_t slice,
                             std::span<const float> values, Effort& effort);
  Result<uint64_t> write_factor(uint32_t slice, std::span<const float> values,
                                codec::ValueKind kind, Effort& effort);
  Result<void> read_factor(uint32_t slice, std::span<float> out);
  Result<void> encode_average_factor(uint32_t buffer, Stage stage, uint32_t slice, Effort& effort);
  Result<void> take_factors(uint32_t buffer, Stage stage, Effort& effort);
  [[nodiscard]] Result<void> make_workers(uint32_t part);
  void note_lost_factor(const Missing& one);
  Result<void> settle_factors(bool all);
  Result<void> keep_product(const MatrixPart& matrix, uint32_t slice, std::span<const float> right,
                            float times);

  // step_settle.cc
  struct Returned {
    uint32_t slice = 0;
    bool of_owner = false;
    std::optional<codec::RecordView> record{};  // these ranges of it; none: `average` goes away
    std::vector<codec::Range> ranges{};
    std::vector<float> average{};
  };
  Result<void> settle();
  Result<void> give_back(Returned& one);
  [[nodiscard]] Result<std::vector<Returned>> returned_of(uint32_t buffer, bool all);
  Result<void> append_averages(uint32_t buffer, std::vector<Returned>& returned);

  const Layout layout_;
  const StepOptions options_;
  const uint32_t slot_;
  Seat seat_;
  FusionPlan plan_;
  uint64_t plan_hash_ = 0;
  codec::Workspace workspace_;
  codec::RecordBuffer record_;
  Residuals residuals_;
  SliceTable table_;  // of the plan
  RoundFactors factors_{layout_};
  std::vector<StageMemory> memory_;  // by buffer of the plan
  bool duties_are_usual_ = true;     // those of duties_for()
  bool owners_changed_ = false;      // within the last round, or nearly
  // Of the last round, where plan or members were replaced since: for averaged().
  struct Replaced {
    FusionPlan plan;
    Rank rank = 0;
    std::vector<StageMemory> memory;
  };
  std::optional<Replaced> replaced_;
  std::vector<float> scratch_;
  base::Buffer reserve_;  // never touched; given up when memory runs out after the verdict

  // Of the round.
  Phase phase_ = Phase::idle;
  StepCore core_;
  std::span<float> arena_;
  codec::Placed<const float> gradients_;  // empty: in the arena
  std::function<void()> wake_;
  // What was begun on a device and not finished, in that order: slices that are encoded, and parts
  // that are copied. Room for all was made when the round began.
  struct Begun {
    uint32_t buffer = 0;
    uint32_t part = 0;
    uint32_t slice = 0;
    const codec::TensorEncoder* encoder = nullptr;  // none: of a part
    Stage stage = Stage::values;
  };
  void note_begun(const Begun& one);
  [[nodiscard]] bool is_done(const Begun& one) const;
  std::vector<Begun> at_devices_;
  std::unique_ptr<codec::StreamCall[]> fetches_;  // by part, where gradients lie on a device
  Time begun_{};
  StepReport report_;
  double finish_at_ = 0;
  Verdict own_;                            // as far as it is known
  std::vector<std::vector<bool>> seen_;    // by rank and tensor: a record came
  std::vector<std::vector<bool>> missed_;  // or one was looked for that did not
  std::vector<Verdict> by_rank_;
  double owner_energy_ = 0;  // as the last round left it
  std::vector<std::byte> verdict_own_;
  std::vector<std::byte> verdict_all_;
  std::optional<Operation> verdict_;  // made beforehand; gone when submitted
  std::vector<std::byte> opening_own_;
  std::vector<std::byte> opening_all_;
  std::optional<Operation> opening_;  // likewise, with verdict_last
  bool opening_over_ = false;
  bool verdict_over_ = false;
  bool nobody_applies_ = false;  // no member's verdict can be a good one
  bool aborted_ = false;
  std::vector<std::vector<SliceDuty>> owner_changes_;  // asked for, in order
  size_t owner_changes_begun_ = 0;
  std::optional<OwnerChange> owner_change_;  // that the members agree on
  std::array<int64_t, 3>
      owner_change_told_{};               // first turn; a hash of the change; the same negated
  std::vector<SliceDuty> duties_before_;  // when the round began; empty before a change
  size_t parts_to_encode_ = 0;
  size_t operations_ = 0;  // under way
  std::optional<Job> job_;
  Result<void> job_outcome_;
  std::optional<Error> error_;
  Error no_memory_;  // made beforehand
  std::vector<uint32_t> arrived_;
  size_t arrived_told_ = 0;
  std::array<bool, kLegCount> to_cancel_{};
  bool ended_well_ = false;
  uint64_t failed_epoch_ = 0;  // of the members of the last round that failed
};

}  // namespace scant::gradient
