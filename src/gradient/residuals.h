// What outlives a round: for each slice what this rank's records lacked, and on its owner what the
// average lost. docs/gradients.md, "Residuals". One owner thread.
#pragma once

#include <memory>
#include <vector>

#include "codec/device/tensor_encoder.h"
#include "gradient/layout.h"
#include "gradient/round_factors.h"
#include "gradient/seat.h"

namespace scant::gradient {

class Residuals {
 public:
  struct Options {
    codec::ResidualKind residual = codec::ResidualKind::f32;
    float decay = 1.0f;
    uint64_t seed = 1;
    codec::MakeTensorEncoder make{};  // of workers; empty: HostEncoder
  };
  // The rest outlives this object. Encoders of the host share workspace and record.
  Residuals(const Layout& layout, Options options, codec::Workspace& workspace,
            codec::RecordBuffer& record);

  // Made when first needed: a plan of all_reduce alone takes no memory for residuals. Throw
  // std::bad_alloc. An owner adds up on the host, so its encoder is one of the host.
  [[nodiscard]] Result<codec::TensorEncoder*> worker(uint32_t slice, const Seat& seat);
  [[nodiscard]] codec::TensorEncoder& owner(uint32_t slice, const Seat& seat);
  [[nodiscard]] codec::TensorEncoder* worker_if_made(uint32_t slice) const {
    return slices_[slice].worker.encoder.get();
  }
  [[nodiscard]] codec::TensorEncoder* owner_if_made(uint32_t slice) const {
    return slices_[slice].owner.encoder.get();
  }
  // After encode(): there may be a residual, of this energy.
  void worker_encoded(uint32_t slice, double energy_left) {
    note(slices_[slice].worker, energy_left);
  }
  void owner_encoded(uint32_t slice, double energy_left) {
    note(slices_[slice].owner, energy_left);
  }

  // Adds what is kept to a gradient, times `weight`, and clears it. `scratch` is anybody's. When it
  // runs out of memory nothing has changed.
  Result<void> move_worker(uint32_t slice, float weight, std::span<float> to,
                           std::vector<float>& scratch);
  Result<void> move_owner(uint32_t slice, float weight, std::span<float> to,
                          std::vector<float>& scratch);

  // The two halves of move_owner(), for what may fail in between.
  Result<void> add_owner(uint32_t slice, float weight, std::span<float> to,
                         std::vector<float>& scratch) const {
    return add(slices_[slice].owner, weight, to, scratch);
  }
  void clear_owner(uint32_t slice) { clear(slices_[slice].owner); }
  // Where the gradient is out of the host's reach: what is kept as the owner goes to the worker's
  // residual instead, as often as it takes to count once in the average.
  Result<void> owner_to_worker(uint32_t slice, const Seat& seat);

  // A record that did not arrive, or that nobody applied, goes back to who made it.
  Result<void> take_back(uint32_t slice, bool of_owner, const codec::RecordView& record,
                         std::span<const codec::Range> ranges, codec::Workspace& workspace);
  // An average that nobody applied goes out of the owner's residual, where take_back() put it.
  Result<void> subtract_from_owner(uint32_t slice, std::span<const float> average);

  // Adds finite numbers to what the worker keeps. When it runs out of memory nothing has changed.
  Result<void> add_worker(uint32_t slice, std::vector<float> more, const Seat& seat);

  // What this rank kept as the owner of slices that it owns no more in `seat` goes to its own
  // worker's residual, as often as it takes to count once in an average of these members.
  Result<void> adopt(const Seat& seat);

  // With the directions of factors, which are part of the same state.
  [[nodiscard]] Result<std::vector<std::byte>> save(const Seat& seat,
                                                    const RoundFactors& factors) const;
  Result<void> restore(Bytes saved, const Seat& seat, RoundFactors& factors);
  void scale(float factor);
  // Sum of squares of the worker's residuals, element by element. NaN: a device did not tell.
  [[nodiscard]] double measured_energy() const;
  // The same as encode() told it, for the worker and for the owner: no pass over memory.
  [[nodiscard]] double worker_energy() const;
  [[nodiscard]] double owner_energy() const;
  [[nodiscard]] size_t memory_bytes() const;

 private:
  struct Kept {
    std::unique_ptr<codec::TensorEncoder> encoder;
    bool dirty = false;  // may have a residual that is not zero
    double energy = 0;   // as encode() told it, or measured where something else changed it
    void measure();      // NaN where there is no memory for it, or a device did not tell
  };
  struct OfSlice {
    Kept worker;
    Kept owner;
  };
  static void note(Kept& kept, double energy) {
    kept.dirty = true;
    kept.energy = energy;
  }
  [[nodiscard]] codec::EncoderSpec spec_of(uint32_t slice, const Seat& seat, bool as_owner) const;
  [[nodiscard]] std::unique_ptr<codec::TensorEncoder> make_of_host(
      const codec::EncoderSpec& spec) const;
  static Result<void> add(const Kept& kept, float weight, std::span<float> to,
                          std::vector<float>& scratch);
  static void clear(Kept& kept);
  // residuals_saved.cc
  [[nodiscard]] size_t saved_bytes_max() const;
  static void put_directions(uint32_t part, const codec::Factors& factors,
                             std::vector<std::byte>& out);
  Result<void> take_all(Bytes body, const Seat& seat, std::vector<Bytes>& directions);
  Result<void> take(codec::Encoder saved, bool of_owner, const Seat& seat);
  Result<bool> take_whole(codec::Encoder& saved, bool of_owner, uint32_t slice, const Seat& seat);
  Result<void> take_part(const codec::Encoder& saved, bool of_owner, uint32_t slice,
                         const Seat& seat);
  // residuals.cc
  Result<void> add_to_worker(uint32_t slice, std::vector<float> of_owner, const Seat& seat);

  const Layout& layout_;
  const Options options_;
  codec::Workspace& workspace_;
  codec::RecordBuffer& record_;
  std::vector<OfSlice> slices_;
};

}  // namespace scant::gradient
