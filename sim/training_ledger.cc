#include "sim/training_ledger.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace scant::sim {
namespace {

std::string text_of(const char* what, uint64_t element, double have, double want, double bound) {
  char text[200];
  std::snprintf(text, sizeof text, "%s: element %llu has %.9g, should have %.9g, bound %.3g", what,
                static_cast<unsigned long long>(element), have, want, bound);
  return text;
}

void read(const codec::TensorEncoder* encoder, uint64_t offset, std::vector<float>& scratch,
          std::vector<double>& to) {
  if (encoder == nullptr) return;
  scratch.resize(encoder->range().elements);
  SCANT_CHECK(encoder->read_residual(scratch).ok(), "the simulator's encoders are of the host");
  for (size_t i = 0; i < scratch.size(); ++i) to[offset + i] = scratch[i];
}

}  // namespace

Held held_by(const gradient::GradientStep& step) {
  const gradient::Layout& layout = step.layout();
  Held held{std::vector<double>(layout.arena_elements()),
            std::vector<double>(layout.arena_elements())};
  std::vector<float> scratch;
  for (uint32_t i = 0; i < layout.slices().size(); ++i) {
    const gradient::SliceLayout& slice = layout.slices()[i];
    const uint64_t offset = layout.arena_offset(layout.parts()[slice.part].tensor, slice.range);
    read(step.residuals().worker_if_made(i), offset, scratch, held.worker);
    read(step.residuals().owner_if_made(i), offset, scratch, held.owner);
  }
  return held;
}

Roundings roundings_of(codec::ResidualKind kind, bool bounded, uint32_t rank) {
  // A scale is the largest / 127, rounded to bf16; draws round by less than one scale.
  const double scale = 1.01 / 127;
  return {.residual = kind == codec::ResidualKind::bf16 ? 0x1p-7 : 0,
          .residual_of_largest = kind == codec::ResidualKind::i8 ? scale : 0,
          .bounded = bounded,
          .rank = rank};
}

RoundLedger::RoundLedger(const gradient::Layout& layout, const gradient::Seat& seat,
                         Roundings roundings)
    : layout_(layout),
      members_(seat.ranks()),
      roundings_(roundings),
      times_(layout.arena_elements(), 1.0f),
      before_(layout.arena_elements()),
      after_(layout.arena_elements()),
      magnitude_(layout.arena_elements()),
      largest_(layout.slices().size()) {
  for (uint32_t i = 0; i < layout.slices().size(); ++i) {
    const codec::Range place = place_of(i);
    std::fill_n(times_.begin() + static_cast<std::ptrdiff_t>(place.first), place.elements,
                seat.times(i));
  }
}

codec::Range RoundLedger::place_of(uint32_t slice) const {
  const gradient::SliceLayout& known = layout_.slices()[slice];
  return {layout_.arena_offset(layout_.parts()[known.part].tensor, known.range),
          known.range.elements};
}

void RoundLedger::add(const Held& held, std::vector<double>& sum) {
  for (size_t i = 0; i < sum.size(); ++i) {
    const double owned = times(i) * held.owner[i];
    sum[i] += held.worker[i] + owned;
    magnitude_[i] += std::abs(held.worker[i]) + std::abs(owned);
  }
}

void RoundLedger::begin(const Held& held, std::span<const float> fed) {
  add(held, before_);
  for (size_t i = 0; i < before_.size(); ++i) {
    before_[i] += fed[i];
    magnitude_[i] += std::abs(static_cast<double>(fed[i]));
  }
  for (uint32_t slice = 0; slice < largest_.size(); ++slice) {
    largest_[slice] += largest_met(held, fed, slice);
  }
}

double RoundLedger::largest_met(const Held& held, std::span<const float> fed,
                                uint32_t slice) const {
  const codec::Range place = place_of(slice);
  double largest = 0;
  for (uint64_t i = place.first; i < place.first + place.elements; ++i) {
    largest = std::max(largest, met(held, fed, i));
  }
  return largest;
}

double RoundLedger::met(const Held& held, std::span<const float> fed, uint64_t i) const {
  return std::abs(held.worker[i]) + times(i) * std::abs(held.owner[i]) +
         std::abs(static_cast<double>(fed[i]));
}

double RoundLedger::energy_met(const Held& held, std::span<const float> fed) const {
  double sum = 0;
  for (size_t i = 0; i < fed.size(); ++i) {
    const double value = met(held, fed, i);
    sum += value * value;
  }
  return sum;
}

std::string RoundLedger::end(const Held& held, std::span<const float> average) {
  add(held, after_);
  if (ended_++ == 0) {
    average_.assign(average.begin(), average.end());
    for (size_t i = 0; i < average_.size(); ++i) {
      magnitude_[i] += std::abs(times(i) * static_cast<double>(average_[i]));
    }
    return {};
  }
  if (std::memcmp(average_.data(), average.data(), average.size_bytes()) == 0) return {};
  for (size_t i = 0; i < average_.size(); ++i) {
    if (std::bit_cast<uint32_t>(average_[i]) == std::bit_cast<uint32_t>(average[i])) continue;
    return text_of("bits differ from another member's", i, average[i], average_[i], 0);
  }
  return {};
}

void RoundLedger::keep(const Held& held) { add(held, after_); }

// At most P + 7 roundings, each of a value of at most twice `magnitude`.
double RoundLedger::bound(uint64_t element) const {
  const double steps = (2 * members_ + 16) * roundings_.f32 + 4 * roundings_.residual;
  return steps * magnitude_[element] + 1e-40;
}

// An element of basis times coefficients is at most as large as its column of the matrix, that is
// the square root of the rows times the part's largest; a coefficient's record has one scale for
// many, which makes the square root of the rank of it.
double RoundLedger::bound_of_factors(uint32_t slice) const {
  const uint32_t part = layout_.slices()[slice].part;
  if (roundings_.rank == 0 || layout_.rank_max(part) == 0) return 0;
  const gradient::PartLayout& known = layout_.parts()[part];
  double largest = 0;
  for (uint32_t i = known.first_slice; i < known.first_slice + known.slices; ++i) {
    largest = std::max(largest, largest_[i]);
  }
  const double rank = roundings_.rank;
  const double product =
      2 * std::sqrt(rank * static_cast<double>(layout_.matrix_of(part).rows)) * largest;
  const double residual = roundings_.residual + roundings_.residual_of_largest;
  return (4 * (members_ + rank + 8) * roundings_.f32 + 4 * residual) * product;
}

std::string RoundLedger::check() const {
  for (uint32_t slice = 0; slice < largest_.size(); ++slice) {
    const codec::Range place = place_of(slice);
    // A record that came back was kept twice, at 2 L and at L, at each end.
    const double once = roundings_.f32 + roundings_.residual + roundings_.residual_of_largest;
    const double came_back = roundings_.bounded ? 6 * once * largest_[slice] : 0;
    // Of i8, of all members: workers' residuals once at L, owners' once at 2 L.
    const double scaled = 3 * roundings_.residual_of_largest * largest_[slice];
    const double of_factors = bound_of_factors(slice);
    for (uint64_t i = place.first; i < place.first + place.elements; ++i) {
      const double have = times(i) * static_cast<double>(average_[i]) + after_[i];
      const double allowed = bound(i) + came_back + scaled + of_factors;
      if (std::abs(have - before_[i]) <= allowed) continue;
      return text_of("mass is not conserved", i, have, before_[i], allowed);
    }
  }
  return {};
}

std::string RoundLedger::check_adopted(const Held& before, const Held& after) const {
  const std::vector<float> nothing(before_.size());
  for (uint32_t slice = 0; slice < largest_.size(); ++slice) {
    const codec::Range place = place_of(slice);
    const double scaled = 2 * roundings_.residual_of_largest * largest_met(before, nothing, slice);
    for (uint64_t i = place.first; i < place.first + place.elements; ++i) {
      const double want = before.worker[i] + times(i) * before.owner[i];
      const double have = after.worker[i] + times(i) * after.owner[i];
      const double allowed =
          (4 * roundings_.f32 + 2 * roundings_.residual) * met(before, nothing, i) + scaled + 1e-40;
      if (std::abs(have - want) <= allowed) continue;
      return text_of("a change of members loses mass", i, have, want, allowed);
    }
  }
  return {};
}

std::string RoundLedger::check_sent(const Held& after, std::span<const float> fed,
                                    const gradient::FusionPlan& plan) const {
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    if (buffer.path == gradient::Path::split) continue;
    const bool plain = buffer.path == gradient::Path::all_reduce;
    for (uint32_t part = buffer.first_part; part < buffer.first_part + buffer.parts; ++part) {
      const gradient::PartLayout& known = layout_.parts()[part];
      const uint64_t begin = layout_.arena_offset(known.tensor, known.range);
      const auto gradient = fed.subspan(begin, known.range.elements);
      if (std::ranges::all_of(gradient, [](float value) { return value == 0; })) continue;
      for (uint64_t i = begin; i < begin + known.range.elements; ++i) {
        const double kept = std::abs(after.owner[i]) + (plain ? std::abs(after.worker[i]) : 0);
        if (kept > 0) return text_of("what was sent is still kept", i, kept, 0, 0);
      }
    }
  }
  return {};
}

// On the way back there was a record, which has one scale for many elements: of a small element it
// may be as large as the slice's largest, and so may what stayed.
double RoundLedger::bound_returned(uint32_t slice) const {
  const double residual = roundings_.residual + roundings_.residual_of_largest;
  const double steps = 2 * (2 * members_ + 16) * roundings_.f32 + 7 * residual;
  return steps * largest_[slice] + bound_of_factors(slice) + 1e-40;
}

std::string RoundLedger::check_returned(const Held& before, const Held& after,
                                        std::span<const float> fed,
                                        const gradient::FusionPlan& plan) const {
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    if (buffer.path == gradient::Path::all_reduce) continue;
    for (uint32_t part = buffer.first_part; part < buffer.first_part + buffer.parts; ++part) {
      const gradient::PartLayout& known = layout_.parts()[part];
      for (uint32_t slice = known.first_slice; slice < known.first_slice + known.slices; ++slice) {
        std::string wrong = check_returned(slice, before, after, fed);
        if (!wrong.empty()) return wrong;
      }
    }
  }
  return {};
}

std::string RoundLedger::check_returned(uint32_t slice, const Held& before, const Held& after,
                                        std::span<const float> fed) const {
  const codec::Range place = place_of(slice);
  const double allowed = bound_returned(slice);
  for (uint64_t i = place.first; i < place.first + place.elements; ++i) {
    // Where the owner's goes along with a gathered gradient, it is with the worker's.
    const double have = after.worker[i] + times(i) * after.owner[i];
    const double held = before.worker[i] + times(i) * before.owner[i];
    const bool without = std::abs(have - held) <= allowed;
    const bool with = std::abs(have - held - fed[i]) <= allowed;
    if (without || with) continue;
    return text_of("a failed round keeps what it sent", i, have, held + fed[i], allowed);
  }
  return {};
}

}  // namespace scant::sim
