// From gradient to record: adds what earlier steps left behind, selects, quantises, packs, and
// keeps the rest, block by block while a block is in the cache. One owner thread calls; the
// workspace's workers share the blocks, and the bytes do not depend on how many there are.
// docs/codec.md states the guarantees.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codec/range.h"
#include "codec/rank/product.h"
#include "codec/record/record.h"
#include "codec/residual/residual.h"
#include "codec/select/threshold.h"
#include "codec/workspace.h"
#include "scant/base/result.h"

namespace scant::codec {

struct EncoderOptions {
  ResidualKind residual = ResidualKind::f32;
  float decay = 1.0f;         // of the residual, each step; 1 loses no mass
  float momentum = 0.0f;      // > 0: momentum correction (Lin et al. 2018, section 3.1)
  bool mask_momentum = true;  // momentum of what was sent restarts at zero (section 3.2)
  bool stochastic = false;    // codes keep the mean instead of the nearest level
  float evenness = 0.0f;      // 0: one threshold for the tensor; 1: blocks send equal shares
  uint64_t seed = 1;          // of all random draws
};

struct EncodeReport {
  uint64_t bytes = 0;
  uint64_t entries = 0;
  uint64_t nonfinite = 0;  // sent, not kept
  uint64_t forced = 0;     // entries that a row sent because its turn had come
  // Sums of squares, taken in f32 within a block: infinite where magnitudes exceed 1e17, 0 below
  // 1e-23, and NaN with NaN or infinities.
  double energy = 0;  // of gradient + residual
  // Of the residual after the step. Dense steps measure one in eight blocks of 4096 elements and
  // take its neighbours to have kept the same share, which very uneven tensors belie.
  double energy_left = 0;
};

// Of a step that sends nothing and makes no record: all of gradient + residual is kept, but for
// what is not finite, which is counted and gone.
inline constexpr Point kKeepAll{.density = 0};

// The seed of one member's encoders, made from the seed that all share: for its own records, or
// for the averages that it sends as an owner.
[[nodiscard]] constexpr uint64_t seed_of_member(uint64_t seed, uint64_t member, bool as_owner) {
  constexpr uint64_t kOwners = uint64_t{1} << 20;
  return seed ^ (member + (as_owner ? kOwners : 0) + 1) << 40;
}

// What is wrong with a point of a step; nothing where it can be encoded at.
[[nodiscard]] std::optional<std::string> point_fault(Point point);

class Encoder {
 public:
  // An error names the option, the shape or the range that is wrong, or the memory that is missing.
  static Result<Encoder> create(uint32_t tensor, Shape shape, const EncoderOptions& options,
                                std::optional<Range> range = std::nullopt);

  // One step. `gradient` covers the range. The point may differ from step to step. After an error,
  // one of memory too, nothing has changed.
  Result<EncodeReport> encode(std::span<const float> gradient, Point point, Workspace& workspace,
                              RecordBuffer& record);

  // One step of a matrix whose factors are sent. `whole` is gradient + decay * residual, as
  // Factors::project leaves it. `rest` is the product of the factors times -1. The sum of both is
  // encoded. `whole` may change; after an error the residual is unchanged.
  // ErrorCode::invalid_argument: momentum.
  Result<EncodeReport> encode_rest(std::span<float> whole, const Product& rest, Point point,
                                   Workspace& workspace, RecordBuffer& record);

  [[nodiscard]] uint32_t tensor() const { return tensor_; }
  [[nodiscard]] Shape shape() const { return shape_; }
  [[nodiscard]] Range range() const { return range_; }
  [[nodiscard]] const EncoderOptions& options() const { return options_; }
  [[nodiscard]] size_t memory_bytes() const;
  [[nodiscard]] uint64_t step() const { return step_; }

  // What the next step would send or keep: gradient + residual (momentum included) for elements
  // [at, at + work.size()) of the range; `gradient` points at element `at`, a multiple of 64. Whole
  // groups of 64, or up to the range's end; at most 4096 elements.
  void peek(uint64_t at, const float* gradient, std::span<float> work) const;

  // The residual of elements [at, at + count): where it lies, or decoded into `work`, which has
  // room for 126 elements more. Null: this encoder keeps nothing.
  [[nodiscard]] const float* kept(uint64_t at, size_t count, float* work) const;
  [[nodiscard]] bool kept_in_place() const;  // so kept() needs no `work`
  // The residual, element 0 being range().first.
  void read_residual(std::span<float> out) const;
  // ErrorCode::invalid_argument where an addend is not finite; sums stop at the largest float.
  Result<void> add_residual(std::span<const float> addend);
  void clear_residual();
  // Residual and momentum times `factor`, which is finite; rounded once where the store rounds, and
  // kept finite.
  void scale_residual(float factor);

  // What did not arrive of a record that this encoder made goes back to the residual: its decoded
  // values, for the given elements of the tensor. Once for each record and element. Afterwards
  // residual = round(fl(residual + decoded)), with the residual kind's own rounding; docs/codec.md,
  // "What did not arrive", says what of momentum, NaN and infinities. ErrorCode::invalid_argument,
  // and nothing has changed: a record of another tensor, shape or range; ranges that do not ascend,
  // overlap or leave the encoder's.
  Result<void> take_back(const RecordView& record, std::span<const Range> ranges,
                         Workspace& workspace);

  // Takes over the residual and momentum that another encoder of the same tensor has for elements
  // of this range: tensors regrouped, slices cut anew, a rank gone.
  Result<void> take_over(const Encoder& other);

  // Everything that the next step depends on, as bytes (docs/codec.md, "Saved state").
  [[nodiscard]] std::vector<std::byte> save() const;
  static Result<Encoder> restore(Bytes saved);

 private:
  friend class DenseStep;
  friend class KeepStep;
  friend class SparseStep;
  Encoder(uint32_t tensor, Shape shape, const EncoderOptions& options, Range range,
          ResidualStore residual, base::Buffer velocity);
  Result<EncodeReport> ended(Result<EncodeReport> report, const RecordBuffer& record);
  [[nodiscard]] std::optional<Error> step_fault(size_t elements, Point point) const;
  void peek(uint64_t at, const float* gradient, float decay, std::span<float> work) const;
  // Draws for a block of this step; `use` tells codes from residuals.
  [[nodiscard]] DrawKey draw_key(uint64_t block, uint32_t use) const;
  // Adds decoded values, those from element `first` of the tensor on, where they were lost.
  void add_back(std::span<const float> decoded, uint64_t first, std::span<const Range> lost,
                DrawKey key);

  uint32_t tensor_;
  Shape shape_;
  EncoderOptions options_;
  Range range_;
  ResidualStore residual_;
  base::Buffer velocity_memory_;
  std::span<float> velocity_;  // with momentum only
  ThresholdState threshold_;
  uint64_t step_ = 0;
};

}  // namespace scant::codec
