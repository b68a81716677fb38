// The work of a round: encode, add, decode, each told in the units of virtual time.
#include <algorithm>
#include <new>
#include <utility>

#include "base/check.h"
#include "codec/accumulate.h"
#include "codec/kernels/kernels.h"
#include "codec/record/block_writer.h"
#include "gradient/gradient_step.h"

namespace scant::gradient {
namespace {

Effort::OfKind& of(Effort::ByKind& all, codec::Point point) {
  return all[static_cast<size_t>(point.values)];
}

void charge_encoding(Effort& effort, codec::Point point, uint64_t elements, uint64_t entries) {
  ++effort.records;
  if (point.density >= 1) {
    of(effort.encoded, point).dense += elements;
    return;
  }
  effort.scanned += elements;
  of(effort.encoded, point).entries += entries;
}

void charge_adding(Effort& effort, codec::Point point, uint64_t elements,
                   std::span<const codec::RecordView> records) {
  effort.records += records.size();
  if (point.density < 1) effort.cleared += elements;
  for (const codec::RecordView& record : records) {
    Effort::OfKind& kind = of(effort.decoded, point);
    (point.density >= 1 ? kind.dense : kind.entries) +=
        point.density >= 1 ? elements : record.entries();
  }
}

bool is_whole(std::span<const codec::Range> ranges, codec::Range range) {
  return ranges.size() == 1 && ranges[0] == range;
}

}  // namespace

std::optional<GradientStep::Job> GradientStep::next() {
  if (phase_ == Phase::idle || error_ || job_) return std::nullopt;
  if (auto job = done_by_device()) return job;
  return core_.next_work();
}

Effort GradientStep::run(const Job& job) {
  SCANT_CHECK(!job_, "one job at a time");
  job_ = job;
  Effort effort;
  try {
    job_outcome_ = steadily([&] { return do_job(job, effort); });
  } catch (const std::bad_alloc&) {
    job_outcome_ = Error{.code = ErrorCode::resource, .message = {}};
  }
  return effort;
}

Result<void> GradientStep::do_job(const Job& job, Effort& effort) {
  if (job.kind == StepCore::Kind::encode) {
    if (has_to_come(job)) return fetch(job);
    if (matrix_part(job.part) == nullptr) return encode(job.buffer, job.part, effort);
    return job.stage == Stage::basis ? encode_left(job.buffer, job.part, effort)
                                     : encode_rest(job.buffer, job.part, effort);
  }
  if (job.kind == StepCore::Kind::add) return add(job.buffer, job.stage, effort);
  return decode(job.buffer, job.stage, effort);
}

void GradientStep::finished(const Job& job, Time begin, Time end) {
  SCANT_CHECK(job_ == job, "finished() tells of the job that was run");
  job_.reset();
  const double spent = seconds(end) - seconds(begin);
  BufferTimes& times = report_.buffers[job.buffer];
  if (job.kind == StepCore::Kind::encode) {
    report_.encode_s += spent;
    report_.parts[job.part].encode_s += spent;
    times.encoded = seconds(end);
    if (!is_begun(job.part)) --parts_to_encode_;
  } else {
    const bool adds = job.kind == StepCore::Kind::add;
    (adds ? report_.add_s : report_.decode_s) += spent;
    const bool last = !adds || plan_.buffers[job.buffer].path == Path::gather;
    if (last && job.stage == Stage::values) times.done = seconds(end);
  }
  const Result<void> outcome = std::exchange(job_outcome_, {});
  if (!outcome) return fail_with(outcome.error());
  if (error_ || (job.kind == StepCore::Kind::encode && is_begun(job.part))) return;
  core_.finished(job);
  note_arrival(job.buffer);
}

Result<void> GradientStep::encode(uint32_t index, uint32_t part, Effort& effort) {
  const BufferPlan& buffer = plan_.buffers[index];
  const PartLayout& known = layout_.parts()[part];
  const bool present = own_.present[known.tensor];
  const bool plain = buffer.path == Path::all_reduce;
  const auto begun = std::ranges::find(at_devices_, part, &Begun::part);
  if (begun != at_devices_.end() && begun->encoder != nullptr) return end_part(part, effort);
  forget(part);
  if (!report_.curves.empty() && present) {
    if (Result<void> looked = look_at(part); !looked) return looked;
  }
  if (plain) return encode_plain(index, part);
  for (uint32_t i = 0; present && i < known.slices; ++i) {
    Result<void> done = begin_slice(index, part, known.first_slice + i, effort);
    if (!done) return done;
  }
  return {};
}

// A step that is over at once is finished at once: encoders of the host share one record.
Result<void> GradientStep::begin_slice(uint32_t index, uint32_t part, uint32_t slice,
                                       Effort& effort, const codec::Product* rest) {
  const BufferPlan& buffer = plan_.buffers[index];
  const codec::Point point = codec::rest_of(buffer.points[part - buffer.first_part].first);
  const codec::Range range = layout_.slices()[slice].range;
  const uint32_t tensor = layout_.parts()[part].tensor;
  const bool split = buffer.path == Path::split;
  const Result<codec::TensorEncoder*> encoder = residuals_.worker(slice, seat_);
  if (!encoder) return encoder.error();
  // Nobody owns a gathered slice: what its owner kept of another plan would wait for ever. Of a
  // matrix part it was added before the projection.
  if (!split && rest == nullptr) {
    Result<void> added = on_device()
                             ? residuals_.owner_to_worker(slice, seat_)
                             : residuals_.add_owner(slice, options_.decay * seat_.times(slice),
                                                    floats(tensor, range), scratch_);
    if (!added) return added;
  }
  const size_t to = split ? static_cast<size_t>(seat_.duties[slice].owner) : 0;
  BufferMemory& memory = memory_of_stage(index, Stage::values);
  if (split) memory.outgoing_pieces[to].reserve(memory.slices[to].size());
  Result<void> begun =
      rest != nullptr ? encoder.value()->begin_rest(floats(tensor, range), *rest, point, workspace_)
                      : encoder.value()->begin(gradient_of(layout_.slices()[slice]), point, wake_);
  if (!begun) return begun;
  if (encoder.value()->done()) return end_slice(index, part, slice, effort);
  note_begun({index, part, slice, encoder.value()});
  return {};
}

// Whether a part's gradient is still on the device, and is needed in the arena: to be worked on, or
// to be looked at.
bool GradientStep::has_to_come(const Job& job) const {
  const uint32_t tensor = layout_.parts()[job.part].tensor;
  if (!on_device() || is_begun(job.part) || !own_.present[tensor]) return false;
  const bool matrix = matrix_part(job.part) != nullptr;
  if (matrix && job.stage == Stage::values) return false;  // it came for the basis
  const bool looked_at = !report_.curves.empty() && options_.device != nullptr;
  return works_in_arena(job.part) || looked_at;
}

Result<void> GradientStep::fetch(const Job& job) {
  const uint32_t part = job.part;
  const PartLayout& known = layout_.parts()[part];
  const uint64_t at = layout_.arena_offset(known.tensor, known.range);
  const std::span<const float> from = gradients_.memory.subspan(at, known.range.elements);
  const MutableBytes to = std::as_writable_bytes(floats(known.tensor, known.range));
  codec::Stream stream = gradients_.place.stream;
  codec::Device& device = *options_.device;
  if (Result<void> copied = device.copy(to, std::as_bytes(from), stream); !copied) return copied;
  Result<void> called = fetches_[part].begin(device, stream, nullptr, nullptr, wake_);
  if (!called) {
    static_cast<void>(device.wait(stream));  // for the copy
    return called;
  }
  note_begun({.buffer = job.buffer, .part = part, .stage = job.stage});
  return {};
}

Result<void> GradientStep::end_slice(uint32_t index, uint32_t part, uint32_t slice,
                                     Effort& effort) {
  const BufferPlan& buffer = plan_.buffers[index];
  const codec::Range range = layout_.slices()[slice].range;
  const bool split = buffer.path == Path::split;
  const auto done = residuals_.worker_if_made(slice)->finish();
  if (!done) return done.error();
  const codec::EncodeReport& told = done.value().report;
  if (matrix_part(part) != nullptr) factors_.encoded[slice] = true;
  if (!averages_elements(index, part)) residuals_.clear_owner(slice);
  residuals_.worker_encoded(slice, told.energy_left);
  own_.nonfinite += told.nonfinite;
  if (told.nonfinite > 0) own_.not_finite[layout_.parts()[part].tensor] = true;
  PartReport& report = report_.parts[part];
  report.bytes += told.bytes;
  report.energy += told.energy;
  report.energy_left += told.energy_left;
  const codec::Point point = codec::rest_of(buffer.points[part - buffer.first_part].first);
  charge_encoding(effort, point, range.elements, told.entries);
  if (point == codec::kKeepAll) return {};
  BufferMemory& memory = memory_of_stage(index, Stage::values);
  const size_t to = split ? static_cast<size_t>(seat_.duties[slice].owner) : 0;
  if (split) {
    memory.outgoing_pieces[to].push_back(
        {slice, range, memory.outgoing[to].view().size(), told.bytes});
  }
  memory.outgoing[to].append(done.value().record.memory);
  return {};
}

void GradientStep::note_begun(const Begun& one) {
  SCANT_CHECK(at_devices_.size() < at_devices_.capacity(), "room was made when the round began");
  at_devices_.push_back(one);
}

bool GradientStep::is_begun(uint32_t part) const {
  return std::ranges::find(at_devices_, part, &Begun::part) != at_devices_.end();
}

bool GradientStep::is_done(const Begun& one) const {
  return one.encoder != nullptr ? one.encoder->done() : fetches_[one.part].done();
}

bool GradientStep::device_works() const {
  return !std::ranges::all_of(at_devices_, [this](const Begun& one) { return is_done(one); });
}

// The first part of which nothing is under way any more. What is of one part stands together.
std::optional<GradientStep::Job> GradientStep::done_by_device() const {
  for (auto at = at_devices_.begin(); at != at_devices_.end();) {
    const auto end = std::find_if(at, at_devices_.end(),
                                  [at](const Begun& one) { return one.part != at->part; });
    if (std::all_of(at, end, [this](const Begun& one) { return is_done(one); })) {
      return Job{StepCore::Kind::encode, at->buffer, at->part, at->stage};
    }
    at = end;
  }
  return std::nullopt;
}

void GradientStep::forget(uint32_t part) {
  std::erase_if(at_devices_, [part](const Begun& one) { return one.part == part; });
}

// Of several slices that failed, the first one's error.
Result<void> GradientStep::end_part(uint32_t part, Effort& effort) {
  Result<void> outcome;
  for (const Begun& one : at_devices_) {
    if (one.part != part || one.encoder == nullptr) continue;
    Result<void> ended = end_slice(one.buffer, part, one.slice, effort);
    if (outcome) outcome = std::move(ended);
  }
  forget(part);
  return outcome;
}

// After an error: what devices have encoded meanwhile returns with all other records. A slice whose
// step failed has kept its residual.
void GradientStep::end_all() {
  Effort uncharged;
  while (!at_devices_.empty()) static_cast<void>(end_part(at_devices_.front().part, uncharged));
}

// What earlier steps kept goes along when a plan is exact: the owner's counts once in the average,
// so P times in the sum.
Result<void> GradientStep::encode_plain(uint32_t index, uint32_t part) {
  const PartLayout& known = layout_.parts()[part];
  if (!own_.present[known.tensor]) {
    std::ranges::fill(floats(known.tensor, known.range), 0.0f);
    return {};
  }
  for (uint32_t i = known.first_slice; i < known.first_slice + known.slices; ++i) {
    const std::span<float> gradient = floats(known.tensor, layout_.slices()[i].range);
    Result<void> moved = residuals_.move_worker(i, options_.decay, gradient, scratch_);
    if (moved) {
      moved = residuals_.move_owner(i, options_.decay * seat_.times(i), gradient, scratch_);
    }
    if (!moved) return moved;
    if (memory_of_stage(index, Stage::values).mean) continue;
    for (float& value : gradient) value *= seat_.duties[i].weight;
  }
  count_nonfinite(part);
  return {};
}

// What goes as it is meets no encoder that would count it. One pass, which writes nothing.
void GradientStep::count_nonfinite(uint32_t part) {
  const PartLayout& known = layout_.parts()[part];
  const std::span<float> all = floats(known.tensor, known.range);
  const auto found = codec::kernels().accumulate(nullptr, all.data(), all.size(), 1.0f);
  if (found.magnitude_max < codec::kInfinityBits) return;
  own_.nonfinite += codec::count_nonfinite(all.data(), all.size());
  own_.not_finite[known.tensor] = true;
}

// The curve of one slice, each time another one, stands for the part. Where nobody copies gradients
// from their device, its encoder looks at them there.
Result<void> GradientStep::look_at(uint32_t part) {
  const PartLayout& known = layout_.parts()[part];
  const auto turn = static_cast<uint32_t>(report_.step % known.slices);
  const uint32_t chosen = known.first_slice + turn;
  const SliceLayout& slice = layout_.slices()[chosen];
  const codec::Placed<const float> gradient =
      options_.device != nullptr
          ? codec::Placed<const float>{.memory = floats(known.tensor, slice.range)}
          : gradient_of(slice);
  Result<codec::Curve> curve = Error{};
  codec::TensorEncoder* encoder = residuals_.worker_if_made(chosen);
  if (encoder == nullptr && gradient.place.kind == codec::Place::Kind::device) {
    // Nobody else reads it.
    const Result<codec::TensorEncoder*> made = residuals_.worker(chosen, seat_);
    if (!made) return made.error();
    encoder = made.value();
  }
  if (encoder != nullptr) {
    curve = encoder->probe(gradient, codec::default_points(), workspace_);
  } else {
    const auto without =
        codec::Encoder::create(known.tensor, layout_.tensors()[known.tensor].shape,
                               {.residual = codec::ResidualKind::none}, slice.range);
    SCANT_CHECK(without.ok());
    curve = codec::probe(without.value(), gradient.memory, codec::default_points(), workspace_);
  }
  if (!curve) return curve.error();
  const double all =
      static_cast<double>(known.range.elements) / static_cast<double>(slice.range.elements);
  curve.value().energy *= all;
  for (codec::CurvePoint& point : curve.value().points) {
    point.bytes *= all;
    point.energy *= all;
  }
  if (Result<void> held = look_at_directions(part, curve.value()); !held) return held;
  report_.curves[part] = std::move(curve).value();
  return {};
}

codec::Point GradientStep::point_of(uint32_t slice, bool back) const {
  const uint32_t part = table_.part_of(slice);
  const BufferPlan& buffer = plan_.buffers[core_.buffer_of(part)];
  const PartPlan& points = buffer.points[part - buffer.first_part];
  const codec::Point point = back ? points.second : points.first;
  return table_.is_factor(slice) ? codec::Point{1.0, point.factors} : codec::rest_of(point);
}

// By slice of those that this rank adds up; notes which tensors the sender had.
Result<SortedRecords> GradientStep::records_from(uint32_t index, Stage stage, Rank sender) {
  BufferMemory& memory = memory_of_stage(index, stage);
  const bool split = plan_.buffers[index].path == Path::split;
  const auto place = static_cast<size_t>(sender);
  const auto& slices = memory.slices[split ? static_cast<size_t>(seat_.rank()) : 0];
  Message& message = memory.incoming[place];
  if (sender != seat_.rank()) message.received(memory.received[place]);
  const Bytes bytes = sender == seat_.rank() ? memory.outgoing[split ? place : 0].view()
                                             : std::as_const(message).view();
  Result<SortedRecords> sorted = sort_records(bytes, table_, slices, sender);
  for (size_t i = 0; sorted && i < slices.size(); ++i) {
    const uint32_t tensor = layout_.parts()[table_.part_of(slices[i])].tensor;
    const bool came = sorted.value()[i].has_value();
    const bool lost =
        !came && is_whole(lost_ranges(memory.first_missing, slices[i], sender, seat_.rank()),
                          table_.record_of(slices[i]).range);
    if (!lost) (came ? seen_ : missed_)[place][tensor] = true;
  }
  return sorted;
}

Result<void> GradientStep::add(uint32_t index, Stage stage, Effort& effort) {
  const bool split = plan_.buffers[index].path == Path::split;
  std::vector<SortedRecords> by_rank;
  for (Rank sender = 0; sender < seat_.ranks(); ++sender) {
    Result<SortedRecords> sorted = records_from(index, stage, sender);
    if (!sorted) return sorted.error();
    by_rank.push_back(std::move(sorted).value());
  }
  BufferMemory& memory = memory_of_stage(index, stage);
  const auto& slices = memory.slices[split ? static_cast<size_t>(seat_.rank()) : 0];
  for (size_t i = memory.added; i < slices.size(); ++i) {
    if (Result<void> added = add_slice(index, stage, i, by_rank, effort); !added) return added;
    if (split) memory.added = i + 1;
  }
  return split ? Result<void>() : take_factors(index, stage, effort);
}

Result<bool> GradientStep::sum_of(uint32_t index, Stage stage, size_t at,
                                  std::vector<SortedRecords>& by_rank, std::span<float> out,
                                  Effort& effort) {
  const BufferMemory& memory = memory_of_stage(index, stage);
  const bool split = plan_.buffers[index].path == Path::split;
  const uint32_t slice = memory.slices[split ? static_cast<size_t>(seat_.rank()) : 0][at];
  const SliceRecord known = table_.record_of(slice);
  std::vector<codec::RecordView> records;
  std::vector<std::vector<codec::Range>> lost;
  for (size_t sender = 0; sender < by_rank.size(); ++sender) {
    auto& record = by_rank[sender][at];
    if (!record) continue;
    records.push_back(*std::move(record));
    if (memory.first_missing.empty()) continue;
    lost.push_back(
        lost_ranges(memory.first_missing, slice, static_cast<Rank>(sender), seat_.rank()));
  }
  if (records.empty()) {
    std::ranges::fill(out, 0.0f);
    return false;
  }
  const std::vector<std::span<const codec::Range>> absent(lost.begin(), lost.end());
  charge_adding(effort, point_of(slice, false), known.range.elements, records);
  Result<void> added =
      codec::accumulate(records, known.tensor, known.shape, known.range.first, out,
                        seat_.duties[table_.owned_like(slice)].weight, workspace_, absent);
  if (!added) return added.error();
  return true;
}

Result<void> GradientStep::add_slice(uint32_t index, Stage stage, size_t at,
                                     std::vector<SortedRecords>& by_rank, Effort& effort) {
  BufferMemory& memory = memory_of_stage(index, stage);
  const bool split = plan_.buffers[index].path == Path::split;
  const auto& slices = memory.slices[split ? static_cast<size_t>(seat_.rank()) : 0];
  const uint32_t slice = slices[at];
  const std::span<float> out = room_of(slice);
  const Result<bool> summed = sum_of(index, stage, at, by_rank, out, effort);
  if (!summed) return summed.error();
  if (!summed.value() || !split) return {};
  const bool bounded = !options_.second_leg.exact;
  if (bounded) memory.average_pieces.reserve(slices.size());
  if (table_.is_factor(slice)) return encode_average_factor(index, stage, slice, effort);
  const codec::Range range = layout_.slices()[slice].range;
  const codec::Point point = point_of(slice, true);
  codec::TensorEncoder& encoder = residuals_.owner(slice, seat_);
  if (Result<void> begun = encoder.begin({.memory = out}, point, nullptr); !begun) return begun;
  const auto encoded = encoder.finish();
  if (!encoded) return encoded.error();
  const codec::EncodeReport& told = encoded.value().report;
  residuals_.owner_encoded(slice, told.energy_left);
  charge_encoding(effort, point, range.elements, told.entries);
  if (bounded) {
    memory.average_pieces.push_back({slice, range, memory.average.view().size(), told.bytes});
  }
  memory.average.append(encoded.value().record.memory);
  return {};
}

Result<void> GradientStep::decode(uint32_t index, Stage stage, Effort& effort) {
  for (Rank owner = 0; owner < seat_.ranks(); ++owner) {
    if (Result<void> done = decode_from(index, stage, owner, effort); !done) return done;
  }
  return take_factors(index, stage, effort);
}

// The owner's own too: all ranks get the same bits. What any of them lacks is 0 on all.
Result<void> GradientStep::decode_from(uint32_t index, Stage stage, Rank owner, Effort& effort) {
  BufferMemory& memory = memory_of_stage(index, stage);
  const size_t place = static_cast<size_t>(owner);
  if (owner != seat_.rank()) memory.averages[place].received(memory.received[place]);
  const Message& message = owner == seat_.rank() ? memory.average : memory.averages[place];
  const auto& slices = memory.slices[place];
  Result<SortedRecords> sorted = sort_records(message.view(), table_, slices, owner);
  if (!sorted) return sorted.error();
  for (size_t i = 0; i < slices.size(); ++i) {
    const SliceRecord known = table_.record_of(slices[i]);
    const std::span<float> out = room_of(slices[i]);
    const auto& record = sorted.value()[i];
    const std::vector<codec::Range> lost =
        lost_ranges(memory.second_missing, slices[i], owner, kNoRank);
    if (!record || is_whole(lost, known.range)) {
      std::ranges::fill(out, 0.0f);
      continue;
    }
    const std::span<const codec::Range> absent(lost);
    Result<void> done = codec::accumulate(
        {&*record, 1}, known.tensor, known.shape, known.range.first, out, 1.0f, workspace_,
        lost.empty() ? std::span<const std::span<const codec::Range>>{} : std::span(&absent, 1));
    if (!done) return done;
    charge_adding(effort, point_of(slices[i], true), known.range.elements, {&*record, 1});
  }
  return {};
}

}  // namespace scant::gradient
