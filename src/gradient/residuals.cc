#include "gradient/residuals.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "base/check.h"
#include "codec/device/host_encoder.h"

namespace scant::gradient {
namespace {

constexpr float kMost = std::numeric_limits<float>::max();

double energy_of(const codec::TensorEncoder& encoder, std::vector<float>& scratch) {
  scratch.resize(encoder.range().elements);
  if (!encoder.read_residual(scratch)) return std::numeric_limits<double>::quiet_NaN();
  double sum = 0;
  for (const float value : scratch) sum += static_cast<double>(value) * value;
  return sum;
}

}  // namespace

Residuals::Residuals(const Layout& layout, Options options, codec::Workspace& workspace,
                     codec::RecordBuffer& record)
    : layout_(layout),
      options_(std::move(options)),
      workspace_(workspace),
      record_(record),
      slices_(layout.slices().size()) {}

codec::EncoderSpec Residuals::spec_of(uint32_t slice, const Seat& seat, bool as_owner) const {
  const SliceLayout& known = layout_.slices()[slice];
  const uint32_t tensor = layout_.parts()[known.part].tensor;
  return {.tensor = tensor,
          .shape = layout_.tensors()[tensor].shape,
          .options = {.residual = options_.residual,
                      .decay = options_.decay,
                      .seed = codec::seed_of_member(
                          options_.seed, static_cast<uint64_t>(seat.station()), as_owner)},
          .range = known.range};
}

std::unique_ptr<codec::TensorEncoder> Residuals::make_of_host(
    const codec::EncoderSpec& spec) const {
  auto made = codec::Encoder::create(spec.tensor, spec.shape, spec.options, spec.range);
  if (!made && made.error().code == ErrorCode::resource) throw std::bad_alloc();
  SCANT_CHECK(made.ok(), "the layout has only ranges that an encoder takes");
  return std::make_unique<codec::HostEncoder>(std::move(made).value(), workspace_, record_);
}

Result<codec::TensorEncoder*> Residuals::worker(uint32_t slice, const Seat& seat) {
  auto& encoder = slices_[slice].worker.encoder;
  if (encoder) return encoder.get();
  const codec::EncoderSpec spec = spec_of(slice, seat, false);
  if (!options_.make) {
    encoder = make_of_host(spec);
    return encoder.get();
  }
  Result<std::unique_ptr<codec::TensorEncoder>> made = options_.make(spec);
  if (!made) return made.error();
  if (made.value()->records().kind == codec::Place::Kind::device) {
    return Error{.code = ErrorCode::unsupported,
                 .message = "an encoder whose records lie on a device: messages are of the host"};
  }
  encoder = std::move(made).value();
  return encoder.get();
}

codec::TensorEncoder& Residuals::owner(uint32_t slice, const Seat& seat) {
  auto& encoder = slices_[slice].owner.encoder;
  if (!encoder) {
    encoder = make_of_host(spec_of(slice, seat, true));
  }
  return *encoder;
}

Result<void> Residuals::add(const Kept& kept, float weight, std::span<float> to,
                            std::vector<float>& scratch) {
  if (!kept.dirty) return {};
  scratch.resize(to.size());
  if (Result<void> read = kept.encoder->read_residual(scratch); !read) return read;
  for (size_t k = 0; k < to.size(); ++k) to[k] += weight * scratch[k];
  return {};
}

void Residuals::clear(Kept& kept) {
  if (!kept.dirty) return;
  kept.encoder->clear_residual();
  kept.dirty = false;
  kept.energy = 0;
}

Result<void> Residuals::move_worker(uint32_t slice, float weight, std::span<float> to,
                                    std::vector<float>& scratch) {
  Result<void> added = add(slices_[slice].worker, weight, to, scratch);
  if (added) clear(slices_[slice].worker);
  return added;
}

Result<void> Residuals::move_owner(uint32_t slice, float weight, std::span<float> to,
                                   std::vector<float>& scratch) {
  Result<void> added = add_owner(slice, weight, to, scratch);
  if (added) clear_owner(slice);
  return added;
}

Result<void> Residuals::owner_to_worker(uint32_t slice, const Seat& seat) {
  Kept& kept = slices_[slice].owner;
  if (!kept.dirty) return {};
  std::vector<float> of_owner(kept.encoder->range().elements);
  if (Result<void> read = kept.encoder->read_residual(of_owner); !read) return read;
  Result<void> added = add_to_worker(slice, std::move(of_owner), seat);
  if (added) clear(kept);
  return added;
}

Result<void> Residuals::take_back(uint32_t slice, bool of_owner, const codec::RecordView& record,
                                  std::span<const codec::Range> ranges,
                                  codec::Workspace& workspace) {
  Kept& kept = of_owner ? slices_[slice].owner : slices_[slice].worker;
  SCANT_CHECK(kept.encoder, "only what was encoded comes back");
  Result<void> taken = kept.encoder->take_back(record, ranges, workspace);
  if (taken) kept.measure();
  return taken;
}

// What is not finite was sent and never kept.
Result<void> Residuals::subtract_from_owner(uint32_t slice, std::span<const float> average) {
  std::vector<float> negative(average.size());
  std::ranges::transform(average, negative.begin(),
                         [](float value) { return std::isfinite(value) ? -value : 0.0f; });
  Kept& kept = slices_[slice].owner;
  Result<void> added = kept.encoder->add_residual(negative);
  if (added) kept.measure();
  return added;
}

Result<void> Residuals::adopt(const Seat& seat) {
  for (uint32_t slice = 0; slice < slices_.size(); ++slice) {
    Kept& kept = slices_[slice].owner;
    if (!kept.encoder || seat.owns(slice)) continue;
    if (Result<void> moved = owner_to_worker(slice, seat); !moved) return moved;
    kept = Kept{};
  }
  return {};
}

Result<void> Residuals::add_to_worker(uint32_t slice, std::vector<float> of_owner,
                                      const Seat& seat) {
  const float times = seat.times(slice);
  for (float& value : of_owner) value *= times;
  return add_worker(slice, std::move(of_owner), seat);
}

Result<void> Residuals::add_worker(uint32_t slice, std::vector<float> more, const Seat& seat) {
  for (float& value : more) value = std::clamp(value, -kMost, kMost);
  const Result<codec::TensorEncoder*> to = worker(slice, seat);
  if (!to) return to.error();
  if (Result<void> added = to.value()->add_residual(more); !added) return added;
  slices_[slice].worker.dirty = true;
  slices_[slice].worker.measure();
  return {};
}

void Residuals::scale(float factor) {
  const double squared = static_cast<double>(factor) * factor;
  for (OfSlice& slice : slices_) {
    for (Kept* kept : {&slice.worker, &slice.owner}) {
      if (!kept->encoder) continue;
      kept->encoder->scale_residual(factor);
      kept->energy *= squared;
    }
  }
}

void Residuals::Kept::measure() {
  if (!encoder) return;
  try {
    std::vector<float> scratch;
    energy = energy_of(*encoder, scratch);
  } catch (const std::bad_alloc&) {
    energy = std::numeric_limits<double>::quiet_NaN();
  }
}

double Residuals::measured_energy() const {
  double sum = 0;
  std::vector<float> scratch;
  for (const OfSlice& slice : slices_) {
    if (slice.worker.dirty) sum += energy_of(*slice.worker.encoder, scratch);
  }
  return sum;
}

double Residuals::worker_energy() const {
  double sum = 0;
  for (const OfSlice& slice : slices_) sum += slice.worker.energy;
  return sum;
}

double Residuals::owner_energy() const {
  double sum = 0;
  for (const OfSlice& slice : slices_) sum += slice.owner.energy;
  return sum;
}

size_t Residuals::memory_bytes() const {
  size_t bytes = 0;
  for (const OfSlice& slice : slices_) {
    if (slice.worker.encoder) bytes += slice.worker.encoder->memory_bytes();
    if (slice.owner.encoder) bytes += slice.owner.encoder->memory_bytes();
  }
  return bytes;
}

}  // namespace scant::gradient
