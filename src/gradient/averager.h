// The gradients of this rank become the average of all ranks', buffer by buffer, while backward
// goes on. docs/gradients.md says what travels when. Owner threads: one user thread at a time
// calls; the thread scant-grad owns encoders, messages and the state of the step. The arena belongs
// to the user until ready() of a tensor, and again after wait(), or of single tensors wait_for().
// The communicator must outlive this object.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codec/encoder.h"
#include "codec/rate/probe.h"
#include "gradient/fusion_plan.h"
#include "gradient/layout.h"
#include "gradient/verdict.h"
#include "scant/communicator.h"

namespace scant::gradient {

struct AveragerOptions {
  std::string key = "gradients";  // of its groups: equal on all ranks
  std::vector<Rank> members{};    // the communicator's ranks that take part, in order; empty: all
  std::vector<std::string> names{};  // of the tensors, for messages; may be empty
  codec::ResidualKind residual = codec::ResidualKind::f32;
  float decay = 1.0f;                   // of residuals, each step
  uint64_t seed = 1;                    // of the codec's draws
  size_t workers = 1;                   // threads that encode and decode, scant-grad among them
  bool missing_as_zeros = false;        // a tensor without a gradient on some ranks is no error
  Duration timeout = Duration::zero();  // of each operation; zero: the communicator's
};

// When things happened, in seconds since the step's first ready().
struct BufferTimes {
  double ready = 0;  // last part there
  double encoded = 0;
  double first_begin = 0;
  double first_end = 0;
  double second_begin = 0;  // split
  double second_end = 0;    // split
  double done = 0;
  uint64_t first_bytes = 0;  // sent by this rank
  uint64_t second_bytes = 0;
};

struct PartReport {
  double ready = 0;   // seconds, as above
  double needed = 0;  // after finish(), less what was waited for by then; 0 without wait_for()
  double encode_s = 0;
  uint64_t bytes = 0;      // of this rank's records
  double energy = 0;       // of gradient + residual; 0 on path all_reduce
  double energy_left = 0;  // of the residual afterwards
};

struct StepReport {
  uint64_t step = 0;
  uint64_t plan_hash = 0;
  std::vector<bool> present;  // by tensor: on any rank
  uint64_t nonfinite = 0;     // values, on all ranks
  uint64_t sent_bytes = 0;    // by this rank, headers of frames not counted
  // Their averages are not finite either: whether that is an error is for the caller to say.
  std::vector<NotFinite> not_finite;
  double backward_s = 0;  // first ready() to finish()
  double end_s = 0;       // first ready() to the end of the last buffer, and of the verdict
  double exposed_s = 0;   // finish() to the end; with wait_for(): what was waited in all
  double encode_s = 0;    // thread scant-grad, by kind of job
  double add_s = 0;
  double decode_s = 0;
  std::vector<BufferTimes> buffers;
  std::vector<PartReport> parts;
  // Of each part, at codec::default_points(), where ask_for_curves() wanted them. Of a part that is
  // cut, one slice stands for all.
  std::vector<codec::Curve> curves;
};

// What the averages of a buffer were decoded from.
struct AveragedBuffer {
  Path path = Path::all_reduce;
  // split: one for each owner, whose records are averages. gather: one for each rank, whose records
  // are to be added in this order and divided by the number of ranks. all_reduce: none.
  std::vector<Bytes> messages{};
  uint32_t first_part = 0;  // of the layout
  uint32_t parts = 0;
};

class Averager {
 public:
  // Every member calls it with an equal layout and equal options. The arena has
  // layout.arena_elements() floats, the gaps between tensors zero. Ranks are places in `members`.
  static Result<std::unique_ptr<Averager>> create(Communicator& communicator, Layout layout,
                                                  std::span<float> arena,
                                                  const AveragerOptions& options);
  ~Averager();
  Averager(const Averager&) = delete;
  Averager& operator=(const Averager&) = delete;

  [[nodiscard]] const Layout& layout() const;

  // Between steps, before the first too; the same plan on all ranks.
  Result<void> set_plan(const FusionPlan& plan);
  [[nodiscard]] uint64_t plan_hash() const;

  // Between steps: the next one reports what each point of the plane would have cost and kept.
  void ask_for_curves();

  // The tensor's gradient lies in the arena. Once for each tensor in a step. ErrorCode::
  // invalid_argument names what is wrong with the call.
  Result<void> ready(uint32_t tensor);
  // Tensors that are not ready() have no gradient in this step.
  Result<void> finish(uint64_t parameters_hash = 0);
  // After finish(): whether the averages of these tensors lie in the arena, each of which was
  // ready() in this step. False when the step has failed: wait() tells how. Nothing when neither is
  // known within `limit`; ask for the same ones again then.
  std::optional<Result<bool>> wait_for(std::span<const uint32_t> tensors, Duration limit);
  // After finish(): those that were ready() in this step and whose averages lie in the arena now.
  [[nodiscard]] std::vector<uint32_t> arrived() const;
  // After finish(): nothing when the step is not over within `limit`. An error is the step's, the
  // same on all ranks where docs/gradients.md says so; no step can follow it.
  std::optional<Result<StepReport>> wait(Duration limit);

  // After wait() of a step that did not fail, until the next ready() or finish(), whatever plan is
  // set meanwhile: what all ranks decoded, the same bytes on each.
  [[nodiscard]] std::vector<AveragedBuffer> averaged() const;

  // Of the worker's and the owner's encoders, what `Encoder::save` gives, and back: restore()
  // between steps only. In the middle of a step the others wait for the job that runs and see its
  // state.
  [[nodiscard]] std::vector<std::byte> save() const;
  Result<void> restore(Bytes saved);
  // The same in two: the state of now is asked for at once, and any thread waits for it, once.
  void ask_to_save();
  [[nodiscard]] std::vector<std::byte> saved();
  // Multiplies everything that was not sent: the loss is scaled differently from now on. Finite.
  void scale_residuals(float factor);
  // Sum of squares of the worker's residuals.
  [[nodiscard]] double residual_energy() const;
  [[nodiscard]] size_t memory_bytes() const;  // of residuals and messages

 private:
  class Impl;
  explicit Averager(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace scant::gradient
