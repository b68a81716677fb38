// The user's handle on rounds of gradients: this rank's gradients become the average of all ranks',
// buffer by buffer, while backward goes on. docs/gradients.md says what travels when. One user
// thread at a time calls; it owns what is here. The thread scant-grad owns the step
// (step_thread.h). The arena belongs to the user until ready() of a tensor, and again after wait(),
// or of single tensors wait_for().
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codec/device/tensor_encoder.h"
#include "codec/encoder.h"
#include "gradient/communicator_exchange.h"
#include "gradient/exchange.h"
#include "gradient/fusion_plan.h"
#include "gradient/layout.h"
#include "gradient/members.h"
#include "gradient/step_report.h"
#include "gradient/step_thread.h"
#include "scant/collective/communicator.h"

namespace scant::gradient {

struct AveragerOptions {
  // Of its groups on a communicator: equal on all ranks. The communicator's ranks that take part,
  // in order; empty: all.
  std::string key = "gradients";
  std::vector<Rank> members{};
  std::vector<std::string> names{};  // of the tensors, for messages; may be empty
  codec::ResidualKind residual = codec::ResidualKind::f32;
  float decay = 1.0f;                   // of residuals, each step
  uint64_t seed = 1;                    // of the codec's draws
  size_t workers = 1;                   // threads that encode and decode, scant-grad among them
  bool missing_as_zeros = false;        // a tensor without a gradient on some ranks is no error
  Duration timeout = Duration::zero();  // of each operation; zero: the exchange's
  uint32_t slot = 0;                    // of the exchange: averagers at once have different ones
  // Of a device: StepOptions::encoders and device, RoundSpec::gradients. Empty: of the host.
  codec::MakeTensorEncoder encoders{};
  codec::Device* device = nullptr;
  codec::Placed<const float> gradients{};
  bool joins = false;  // create() on a communicator: as a newcomer
};

class Averager {
 public:
  // Every member calls it with an equal layout and equal options. The arena has
  // layout.arena_elements() floats, the gaps between tensors zero. Ranks are places in `members`.
  // The exchange outlives this object.
  static Result<std::unique_ptr<Averager>> create(Exchange& exchange, Members members,
                                                  Layout layout, std::span<float> arena,
                                                  const AveragerOptions& options);
  static Result<std::unique_ptr<Averager>> create(std::unique_ptr<Exchange> exchange,
                                                  Members members, Layout layout,
                                                  std::span<float> arena,
                                                  const AveragerOptions& options);
  // On groups of a communicator, which outlives this object, or continue_on() another one;
  // options.key and options.members. With options.joins members of a training call continue_on() at
  // the same time: the layout is cut for as many ranks as theirs, whatever the communicator's size,
  // and the next step has the number of theirs.
  static Result<std::unique_ptr<Averager>> create(Communicator& communicator, Layout layout,
                                                  std::span<float> arena,
                                                  const AveragerOptions& options);
  ~Averager();
  Averager(const Averager&) = delete;
  Averager& operator=(const Averager&) = delete;

  [[nodiscard]] const Layout& layout() const { return layout_; }

  // Between steps, before the first too; the same plan on all ranks.
  Result<void> set_plan(const FusionPlan& plan);
  [[nodiscard]] uint64_t plan_hash() const { return plan_hash_; }
  // Between steps, the same on all members. After a step that failed: members of a later epoch let
  // another follow it.
  // `next_step`: the number of the step that follows, where members come from different ones.
  Result<void> set_members(const Members& members, uint64_t next_step = 0);
  // Between steps, of an averager that was created on a communicator: goes on with those who call
  // it together, residuals and all. `next` is the same communicator, after its shrink() say, or one
  // that members created, with newcomers or without; it takes the place of the former one. Who was
  // a member keeps its station. Where the ranks cannot go on together, all get the same error and
  // this rank is as before.
  Result<Members> continue_on(Communicator& next, const std::vector<Rank>& ranks = {});

  // Between steps: the next one reports what each point of the plane would have cost and kept.
  void ask_for_curves() { curves_wanted_ = true; }

  // The tensor's gradient lies in the arena. Once for each tensor in a step. ErrorCode::
  // invalid_argument names what is wrong with the call.
  Result<void> ready(uint32_t tensor);
  // Tensors that are not ready() have no gradient in this step. `samples`: that this rank's
  // gradients are of; 0: not counted.
  Result<void> finish(uint64_t parameters_hash = 0, uint64_t samples = 0);
  // Before finish(): `split` buffers of this step that no rank has begun to send go to these
  // owners. Every rank calls it with the same duties, and equally often in a step. The report says
  // how many buffers that were; the next step has the usual owners again.
  // ErrorCode::invalid_argument, and nothing has changed: what GradientStep::change_owners()
  // refuses.
  Result<void> change_owners(std::vector<SliceDuty> duties);
  // After finish(): whether the averages of these tensors lie in the arena, each of which was
  // ready() in this step. False when the step has failed: wait() tells how. Nothing when neither is
  // known within `limit`; ask for the same ones again then.
  std::optional<Result<bool>> wait_for(std::span<const uint32_t> tensors, Duration limit);
  // After finish(): those that were ready() in this step and whose averages lie in the arena now.
  [[nodiscard]] std::vector<uint32_t> arrived() const;
  // After finish(): nothing when the step is not over within `limit`. An error is the step's, the
  // same on all ranks where docs/gradients.md says so; other members let a step follow it.
  std::optional<Result<StepReport>> wait(Duration limit);

  // After wait() of a step that did not fail, until the next ready() or finish(), whatever plan is
  // set meanwhile: what all ranks decoded, the same bytes on each.
  [[nodiscard]] std::vector<AveragedBuffer> averaged() const;

  // Of the worker's and the owner's encoders, what `Encoder::save` gives, and back: restore()
  // between steps only. In the middle of a step the others wait for the job that runs and see its
  // state.
  [[nodiscard]] Result<std::vector<std::byte>> save() const;
  Result<void> restore(Bytes saved);
  // The same in two: the state of now is asked for at once, and any thread waits for it, once.
  void ask_to_save() { thread_->ask_to_save(); }
  [[nodiscard]] std::vector<std::byte> saved() { return thread_->saved(); }
  // Multiplies everything that was not sent: the loss is scaled differently from now on. Finite.
  void scale_residuals(float factor);
  // Sum of squares of the worker's residuals.
  [[nodiscard]] double residual_energy() const;
  [[nodiscard]] size_t memory_bytes() const;  // of residuals and messages

 private:
  static constexpr double kNotAsked = -1;
  Averager(std::unique_ptr<Exchange> owned, Exchange& exchange, Layout layout,
           const AveragerOptions& options);
  static Result<std::unique_ptr<Averager>> join(Communicator& communicator, const Layout& layout,
                                                std::span<float> arena,
                                                const AveragerOptions& options);
  static Result<void> make_lanes(CommunicatorExchange& exchange, const Members& members,
                                 uint32_t slot);
  void begin_at(uint64_t step);
  Result<void> start(Members members, std::span<float> arena, const AveragerOptions& options);
  [[nodiscard]] Result<void> may_step() const;
  void open_step();
  // averager_needs.cc
  [[nodiscard]] bool has_arrived(uint32_t tensor) const;
  [[nodiscard]] std::vector<uint32_t> buffers_of(std::span<const uint32_t> tensors) const;
  void begin_stall();
  void end_stall();
  void note_needed(uint32_t tensor);
  void tell_needs(StepReport& report);

  const std::unique_ptr<Exchange> owned_;
  Exchange& exchange_;                               // the user's thread asks it for the time alone
  CommunicatorExchange* on_communicator_ = nullptr;  // exchange_, where it is one
  const Layout layout_;
  const std::vector<std::string> names_;
  const uint32_t slot_;
  const Duration timeout_;
  uint64_t plan_hash_ = 0;
  std::vector<uint32_t> buffer_of_part_;  // by the plan
  bool curves_wanted_ = false;
  std::vector<bool> told_;  // by tensor, in this step
  bool step_open_ = false;
  bool finish_told_ = false;
  bool broken_ = false;
  uint64_t steps_over_ = 0;
  Time finish_told_at_{};
  double stalled_s_ = 0;                // in this step
  std::optional<Time> stalls_;          // since then
  std::vector<double> needed_;          // by tensor; kNotAsked, or seconds after finish()
  std::vector<uint32_t> wanted_;        // tensors that were asked for and not answered
  std::unique_ptr<StepThread> thread_;  // ends before all else here
};

}  // namespace scant::gradient
