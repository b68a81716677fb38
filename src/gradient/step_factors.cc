// What a round does with matrix parts: docs/gradients.md, "Factors".
#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <utility>

#include "codec/accumulate.h"
#include "codec/rate/spectrum.h"
#include "gradient/gradient_step.h"

namespace scant::gradient {
namespace {

bool all_zero(std::span<const float> values) {
  return std::ranges::all_of(values, [](float value) { return value == 0; });
}

double energy_of(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return sum;
}

}  // namespace

std::span<float> GradientStep::left_of(const MatrixPart& matrix, std::span<float> array) {
  return array.subspan(matrix.left_at, matrix.left_elements);
}
std::span<float> GradientStep::right_of(const MatrixPart& matrix, std::span<float> array) {
  return array.subspan(matrix.right_at, matrix.right_elements);
}

const MatrixPart* GradientStep::matrix_part(uint32_t part) const {
  const auto number = table_.matrix_of(part);
  return number ? &table_.matrices()[*number] : nullptr;
}

std::span<float> GradientStep::factor_of(uint32_t slice, std::span<float> array) const {
  return array.subspan(table_.factor_at(slice), table_.record_of(slice).range.elements);
}

// Where a slice's average comes to.
std::span<float> GradientStep::room_of(uint32_t slice) {
  if (table_.is_factor(slice)) return factor_of(slice, factors_.values());
  const SliceLayout& known = layout_.slices()[slice];
  return floats(layout_.parts()[known.part].tensor, known.range);
}

// The slices of a matrix, whose gradients become A in place. `make`: make encoders that are
// missing.
Result<std::vector<codec::MatrixSlice>> GradientStep::matrix_slices(uint32_t part, bool make) {
  const PartLayout& known = layout_.parts()[part];
  std::vector<codec::MatrixSlice> slices;
  for (uint32_t slice = known.first_slice; slice < known.first_slice + known.slices; ++slice) {
    const codec::Range range = layout_.slices()[slice].range;
    if (!make && residuals_.worker_if_made(slice) == nullptr) {
      slices.push_back({.range = range, .gradient = floats(known.tensor, range)});
      continue;
    }
    const Result<codec::TensorEncoder*> encoder = residuals_.worker(slice, seat_);
    if (!encoder) return encoder.error();
    const codec::Encoder* const kept = encoder.value()->kept_on_host();
    if (kept == nullptr) {
      return Error{
          .code = ErrorCode::unsupported,
          .message = "part " + std::to_string(part) +
                     " sends factors, which are made on the host, but its residuals lie on "
                     "a device; use a plan without a rank there"};
    }
    slices.push_back({kept, range, floats(known.tensor, range)});
  }
  return slices;
}

// What the strongest directions of a part hold. Nobody looks where gradients or residuals are out
// of the host's reach: no factors can be sent there.
Result<void> GradientStep::look_at_directions(uint32_t part, codec::Curve& curve) {
  const bool came = !on_device() || options_.device != nullptr;
  if (layout_.rank_max(part) == 0 || !came) return {};
  const PartLayout& known = layout_.parts()[part];
  if (options_.encoders) {
    const Result<codec::TensorEncoder*> encoder = residuals_.worker(known.first_slice, seat_);
    if (!encoder) return encoder.error();
    if (encoder.value()->kept_on_host() == nullptr) return {};
  }
  Result<std::vector<codec::MatrixSlice>> slices = matrix_slices(part, false);
  if (!slices) return slices.error();
  const Result<codec::Spectrum> found = codec::spectrum(layout_.tensors()[known.tensor].shape,
                                                        known.range, slices.value(), workspace_);
  if (!found) return found.error();
  for (size_t i = 0; i < curve.held.size(); ++i) {
    curve.held[i] = found.value().share(codec::kHeldRanks[i]) * curve.energy;
  }
  return {};
}

// As a record without a residual, to its owner's message.
Result<void> GradientStep::encode_factor(uint32_t buffer, Stage stage, uint32_t slice,
                                         std::span<const float> values, Effort& effort) {
  const BufferPlan& plan = plan_.buffers[buffer];
  const uint32_t part = table_.part_of(slice);
  const codec::ValueKind kind = plan.points[part - plan.first_part].first.factors;
  Result<uint64_t> bytes = write_factor(slice, values, kind, effort);
  if (!bytes) return bytes.error();
  BufferMemory& memory = memory_of_stage(buffer, stage);
  const bool split = plan.path == Path::split;
  const SliceDuty& duty = seat_.duties[table_.owned_like(slice)];
  const size_t to = split ? static_cast<size_t>(duty.owner) : 0;
  if (split) {
    memory.outgoing_pieces[to].reserve(memory.slices[to].size());
    memory.outgoing_pieces[to].push_back(
        {slice, table_.record_of(slice).range, memory.outgoing[to].view().size(), bytes.value()});
  }
  memory.outgoing[to].append(std::as_const(record_).view());
  report_.parts[part].bytes += bytes.value();
  return {};
}

// Into record_.
Result<uint64_t> GradientStep::write_factor(uint32_t slice, std::span<const float> values,
                                            codec::ValueKind kind, Effort& effort) {
  const SliceRecord known = table_.record_of(slice);
  Result<codec::Encoder> encoder = codec::Encoder::create(
      known.tensor, known.shape, {.residual = codec::ResidualKind::none, .seed = report_.step},
      known.range);
  if (!encoder) return encoder.error();
  const auto done = encoder.value().encode(values, {1.0, kind}, workspace_, record_);
  if (!done) return done.error();
  ++effort.records;
  effort.encoded[static_cast<size_t>(kind)].dense += known.range.elements;
  return done.value().bytes;
}

// What the record says, in `out`.
Result<void> GradientStep::read_factor(uint32_t slice, std::span<float> out) {
  const SliceRecord known = table_.record_of(slice);
  const auto view = codec::RecordView::parse(std::as_const(record_).view());
  if (!view) return view.error();
  return codec::accumulate({&view.value(), 1}, known.tensor, known.shape, known.range.first, out,
                           1.0f, workspace_);
}

// The left factor: gradient + residual times the directions.
Result<void> GradientStep::encode_left(uint32_t buffer, uint32_t part, Effort& effort) {
  const MatrixPart& matrix = *matrix_part(part);
  const PartLayout& known = layout_.parts()[part];
  forget(part);
  if (!own_.present[known.tensor]) return {};
  if (!report_.curves.empty()) {
    if (Result<void> looked = look_at(part); !looked) return looked;
  }
  Result<std::vector<codec::MatrixSlice>> slices = matrix_slices(part, true);
  if (!slices) return slices.error();
  if (!averages_elements(buffer, part)) {
    if (Result<void> added = add_owners(known); !added) return added;
  }
  const std::span<float> left = left_of(matrix, factors_.values());
  Result<void> projected = factors_.of(matrix).project(slices.value(), workspace_, left);
  if (!projected) return projected;
  effort.products += uint64_t{matrix.rank} * known.range.elements;
  for (uint32_t i = 0; i < matrix.left.count; ++i) {
    const uint32_t slice = matrix.left.first + i;
    Result<void> done =
        encode_factor(buffer, Stage::basis, slice, factor_of(slice, factors_.values()), effort);
    if (!done) return done;
  }
  return {};
}

// Whether owners encode averages of a part's elements: not of gathered ones, nor without a rest.
bool GradientStep::averages_elements(uint32_t buffer, uint32_t part) const {
  const BufferPlan& plan = plan_.buffers[buffer];
  return plan.path == Path::split && plan.points[part - plan.first_part].second.density > 0;
}

// What an owner kept of another plan would wait for ever.
Result<void> GradientStep::add_owners(const PartLayout& part) {
  for (uint32_t slice = part.first_slice; slice < part.first_slice + part.slices; ++slice) {
    const std::span<float> gradient = floats(part.tensor, layout_.slices()[slice].range);
    Result<void> added =
        residuals_.add_owner(slice, options_.decay * seat_.times(slice), gradient, scratch_);
    if (!added) return added;
  }
  return {};
}

// Once the basis is there: the coefficients, and as records what these leave.
Result<void> GradientStep::encode_rest(uint32_t buffer, uint32_t part, Effort& effort) {
  const MatrixPart& matrix = *matrix_part(part);
  const PartLayout& known = layout_.parts()[part];
  if (!own_.present[known.tensor]) return {};
  Result<std::vector<codec::MatrixSlice>> slices = matrix_slices(part, true);
  if (!slices) return slices.error();
  Result<void> sent = send_coefficients(buffer, matrix, slices.value(), effort);
  if (!sent) return sent;
  const std::span<const float> right = right_of(matrix, factors_.sent());
  const codec::Product rest = factors_.of(matrix).product(right, -1);
  effort.products += 2 * uint64_t{matrix.rank} * known.range.elements;
  for (uint32_t i = 0; i < known.slices; ++i) {
    Result<void> done = begin_slice(buffer, part, known.first_slice + i, effort, &rest);
    if (!done) return done;
  }
  report_.parts[part].energy += energy_of(right);
  return {};
}

// Where numbers that are not finite make them useless, the rest holds all; and where there is no
// rest, they go as NaN, so that all members see it.
Result<void> GradientStep::send_coefficients(uint32_t buffer, const MatrixPart& matrix,
                                             std::span<const codec::MatrixSlice> slices,
                                             Effort& effort) {
  const BufferPlan& plan = plan_.buffers[buffer];
  const std::span<float> own = right_of(matrix, factors_.values());
  const std::span<float> sent = right_of(matrix, factors_.sent());
  const Result<bool> usable = factors_.of(matrix).coefficients(slices, workspace_, own);
  if (!usable) return usable.error();
  const bool lost =
      !usable.value() && plan.points[matrix.part - plan.first_part].first.density == 0;
  if (lost) {
    std::ranges::fill(own, std::numeric_limits<float>::quiet_NaN());
    ++own_.nonfinite;
    own_.not_finite[layout_.parts()[matrix.part].tensor] = true;
  }
  for (uint32_t i = 0; i < matrix.right.count; ++i) {
    const uint32_t slice = matrix.right.first + i;
    Result<void> done =
        encode_factor(buffer, Stage::values, slice, factor_of(slice, factors_.values()), effort);
    if (!done) return done;
    if (done = read_factor(slice, factor_of(slice, factors_.sent())); !done) return done;
  }
  if (lost) std::ranges::fill(sent, 0.0f);
  return {};
}

// The owner's part of an average; what its rounding leaves of coefficients is kept until the end.
Result<void> GradientStep::encode_average_factor(uint32_t buffer, Stage stage, uint32_t slice,
                                                 Effort& effort) {
  const BufferPlan& plan = plan_.buffers[buffer];
  const codec::ValueKind kind = plan.points[table_.part_of(slice) - plan.first_part].second.factors;
  const std::span<float> average = factor_of(slice, factors_.values());
  const Result<uint64_t> bytes = write_factor(slice, average, kind, effort);
  if (!bytes) return bytes.error();
  if (stage == Stage::values) {
    const std::span<float> lost = factor_of(slice, factors_.lost());
    if (Result<void> read = read_factor(slice, lost); !read) return read;
    std::ranges::transform(average, lost, lost.begin(), [](float whole, float told) {
      return std::isfinite(whole) && std::isfinite(told) ? whole - told : 0.0f;
    });
  }
  BufferMemory& memory = memory_of_stage(buffer, stage);
  if (!options_.second_leg.exact) {
    memory.average_pieces.push_back(
        {slice, table_.record_of(slice).range, memory.average.view().size(), bytes.value()});
  }
  memory.average.append(std::as_const(record_).view());
  return {};
}

// What this member sent of coefficients, or as their owner of averaged ones, and did not arrive.
// Averages are still whole: nothing was decoded. Of a basis nothing returns, for it only chooses
// directions.
void GradientStep::note_lost_factor(const Missing& one) {
  if (stage_of(one.leg) == Stage::basis) return;
  const codec::Range whole = table_.record_of(one.slice).range;
  const bool averaged = is_second(one.leg);
  const std::span<float> from =
      factor_of(one.slice, averaged ? factors_.values() : factors_.sent());
  const std::span<float> to = factor_of(one.slice, averaged ? factors_.lost() : factors_.unsent());
  for (const codec::Range& range : one.elements) {
    for (uint64_t i = range.first - whole.first; i < range.first + range.elements - whole.first;
         ++i) {
      to[i] = std::isfinite(from[i]) ? from[i] : 0.0f;
    }
  }
}

// All averages of a stage have come.
Result<void> GradientStep::take_factors(uint32_t buffer, Stage stage, Effort& effort) {
  const BufferPlan& plan = plan_.buffers[buffer];
  for (uint32_t part = plan.first_part; part < plan.first_part + plan.parts; ++part) {
    const MatrixPart* const matrix = matrix_part(part);
    if (matrix == nullptr) continue;
    codec::Factors& factors = factors_.of(*matrix);
    if (stage == Stage::basis) {
      factors.set_basis(left_of(*matrix, factors_.values()));
      effort.bases += uint64_t{matrix->rank} * matrix->rank * factors.rows();
      continue;
    }
    const PartLayout& known = layout_.parts()[part];
    const std::span<float> out = floats(known.tensor, known.range);
    if (plan.points[part - plan.first_part].first.density == 0) std::ranges::fill(out, 0.0f);
    const std::span<const float> right = right_of(*matrix, factors_.values());
    if (!factors.add_average(right, known.range, out, workspace_)) continue;
    factors.learn(right);
    effort.products += uint64_t{matrix->rank} * known.range.elements;
  }
  return {};
}

// What an owner's rounding loses of coefficients goes to them at the end, whether or not this
// member has a gradient.
Result<void> GradientStep::make_workers(uint32_t part) {
  const PartLayout& known = layout_.parts()[part];
  for (uint32_t slice = known.first_slice; slice < known.first_slice + known.slices; ++slice) {
    const Result<codec::TensorEncoder*> worker = residuals_.worker(slice, seat_);
    if (!worker) return worker.error();
  }
  return {};
}

// The end of the round. What this member sent goes back where nobody applied it; what averages lack
// of what it owns goes to its own worker residuals, as often as it takes to count once.
Result<void> GradientStep::settle_factors(bool all) {
  Result<void> outcome;
  for (const MatrixPart& matrix : table_.matrices()) {
    const std::span<const float> back = right_of(matrix, all ? factors_.sent() : factors_.unsent());
    const std::span<const float> lost = right_of(matrix, factors_.lost());
    const bool some_back = !all_zero(back);
    const bool some_lost = !all && !all_zero(lost);
    const PartLayout& known = layout_.parts()[matrix.part];
    const auto keep = [&](uint32_t slice, std::span<const float> right, float times) {
      try {
        Result<void> done = again([&] { return keep_product(matrix, slice, right, times); });
        if (!done) outcome = std::move(done);
      } catch (const std::bad_alloc&) {
        outcome = Error{.code = ErrorCode::resource, .message = {}};
      }
    };
    for (uint32_t slice = known.first_slice; slice < known.first_slice + known.slices; ++slice) {
      if (some_back && factors_.encoded[slice]) keep(slice, back, 1.0f);
      if (some_lost) keep(slice, lost, seat_.times(slice));
    }
  }
  return outcome;
}

Result<void> GradientStep::keep_product(const MatrixPart& matrix, uint32_t slice,
                                        std::span<const float> right, float times) {
  const codec::Range range = layout_.slices()[slice].range;
  std::vector<float> product(range.elements);
  factors_.of(matrix).add(right, times, range, product, workspace_);
  return residuals_.add_worker(slice, std::move(product), seat_);
}

}  // namespace scant::gradient
