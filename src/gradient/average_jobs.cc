// What the jobs of a step do: encode, submit legs, add, decode.
#include <algorithm>
#include <string>

#include "base/check.h"
#include "codec/accumulate.h"
#include "codec/kernels/kernels.h"
#include "codec/record/block_writer.h"
#include "gradient/averager_impl.h"

namespace scant::gradient {
namespace {

uint64_t all_reduce_bytes(uint64_t bytes, int ranks) {
  return 2 * static_cast<uint64_t>(ranks - 1) * bytes / static_cast<uint64_t>(ranks);
}

}  // namespace

std::span<float> Averager::Impl::floats(uint32_t tensor, const codec::Range& range) {
  return arena.subspan(layout.arena_offset(tensor, range), range.elements);
}

// The stream tells the draws of ranks, and of a rank's two residuals, apart.
codec::Encoder Averager::Impl::make_encoder(uint32_t slice, uint64_t stream) const {
  const SliceLayout& known = layout.slices()[slice];
  const uint32_t tensor = layout.parts()[known.part].tensor;
  const codec::EncoderOptions how{.residual = options.residual,
                                  .decay = options.decay,
                                  .seed = options.seed ^ (stream + 1) << 40};
  auto made = codec::Encoder::create(tensor, layout.tensors()[tensor].shape, how, known.range);
  SCANT_CHECK(made.ok(), "the layout has only ranges that an encoder takes");
  return std::move(made).value();
}

codec::Encoder& Averager::Impl::worker(uint32_t slice) {
  auto& encoder = slices_[slice].worker;
  if (!encoder) {
    encoder = std::make_unique<codec::Encoder>(make_encoder(slice, static_cast<uint64_t>(rank_)));
  }
  return *encoder;
}

codec::Encoder& Averager::Impl::owner(uint32_t slice) {
  auto& encoder = slices_[slice].owner;
  if (!encoder) {
    encoder = std::make_unique<codec::Encoder>(
        make_encoder(slice, static_cast<uint64_t>(rank_) + (uint64_t{1} << 20)));
  }
  return *encoder;
}

uint64_t Averager::Impl::capacity(SliceSpan span, Rank of) const {
  uint64_t bytes = 0;
  for (const SliceLayout& slice : layout.slices().subspan(span.first, span.count)) {
    if (of == kNoRank || slice.owner == of) bytes += codec::record_bytes_max(slice.range.elements);
  }
  return bytes;
}

// Memory of a buffer's messages; of what is reserved, only what messages fill is ever touched.
Result<void> Averager::Impl::prepare(uint32_t index) {
  const BufferPlan& buffer = plan.buffers[index];
  BufferMemory& memory = buffers_[index];
  const PartLayout& first = layout.parts()[buffer.first_part];
  const PartLayout& last = layout.parts()[buffer.first_part + buffer.parts - 1];
  memory.slices = {first.first_slice, last.first_slice + last.slices - first.first_slice};
  if (buffer.path == Path::all_reduce) return {};
  const auto count = static_cast<size_t>(ranks());
  memory.received.assign(count, 0);
  memory.incoming.resize(count);
  memory.outgoing.resize(buffer.path == Path::split ? count : 1);
  uint64_t largest = 0;
  for (Rank of = 0; of < ranks(); ++of) {
    largest = std::max(largest, capacity(memory.slices, of));
  }
  const uint64_t room = buffer.path == Path::split ? largest : capacity(memory.slices, kNoRank);
  for (Message& message : memory.outgoing) {
    if (Result<void> reserved = message.reserve(room); !reserved) return reserved;
  }
  for (Rank from = 0; from < ranks(); ++from) {
    if (from == rank_) continue;
    Message& message = memory.incoming[static_cast<size_t>(from)];
    if (Result<void> reserved = message.reserve(room); !reserved) return reserved;
  }
  if (buffer.path != Path::split) return {};
  if (Result<void> reserved = memory.average.reserve(room); !reserved) return reserved;
  memory.averages.resize(count);
  for (Rank from = 0; from < ranks(); ++from) {
    if (from == rank_) continue;
    Message& message = memory.averages[static_cast<size_t>(from)];
    if (Result<void> reserved = message.reserve(room); !reserved) return reserved;
  }
  return {};
}

void Averager::Impl::run(const StepCore::Job& job) {
  const double begin = seconds();
  const auto conclude = [&](const Result<void>& outcome, double& total) {
    total += seconds() - begin;
    if (!outcome) return fail(outcome.error());
    finished(job);
  };
  BufferTimes& times = report_.buffers[job.buffer];
  switch (job.kind) {
    case StepCore::Kind::begin_first:
      times.first_begin = begin;
      return begin_first(job.buffer);
    case StepCore::Kind::begin_second:
      times.second_begin = begin;
      return begin_second(job.buffer);
    case StepCore::Kind::add:
      conclude(add(job.buffer), report_.add_s);
      if (plan.buffers[job.buffer].path == Path::gather) times.done = seconds();
      return;
    case StepCore::Kind::encode:
      conclude(encode(job.buffer, job.part), report_.encode_s);
      --parts_to_encode_;
      times.encoded = seconds();
      report_.parts[job.part].encode_s = times.encoded - begin;
      return;
    case StepCore::Kind::decode:
      conclude(decode(job.buffer), report_.decode_s);
      times.done = seconds();
      return;
  }
}

// What earlier steps kept goes along when a plan is exact: the owner's counts once in the average,
// so P times in the sum.
void Averager::Impl::fold_residual(uint32_t part) {
  const PartLayout& known = layout.parts()[part];
  for (uint32_t i = known.first_slice; i < known.first_slice + known.slices; ++i) {
    SliceState& state = slices_[i];
    const std::span<float> gradient = floats(known.tensor, layout.slices()[i].range);
    if (state.worker_dirty) move_residual(*state.worker, options.decay, gradient);
    state.worker_dirty = false;
    fold_owner_residual(i, gradient);
  }
}

// What the average lost goes into this rank's gradient, of which the average takes a P-th.
void Averager::Impl::fold_owner_residual(uint32_t slice, std::span<float> gradient) {
  SliceState& state = slices_[slice];
  if (!state.owner_dirty) return;
  move_residual(*state.owner, options.decay * static_cast<float>(ranks()), gradient);
  state.owner_dirty = false;
}

void Averager::Impl::move_residual(codec::Encoder& from, float weight, std::span<float> to) {
  scratch_.resize(to.size());
  from.read_residual(scratch_);
  for (size_t k = 0; k < to.size(); ++k) to[k] += weight * scratch_[k];
  from.clear_residual();
}

// What goes as it is meets no encoder that would count it. One pass, which writes nothing.
void Averager::Impl::count_nonfinite(uint32_t part) {
  const PartLayout& known = layout.parts()[part];
  const std::span<float> all = floats(known.tensor, known.range);
  const auto found = codec::kernels().accumulate(nullptr, all.data(), all.size(), 1.0f);
  if (found.magnitude_max < codec::kInfinityBits) return;
  nonfinite_ += codec::count_nonfinite(all.data(), all.size());
  not_finite_[known.tensor] = true;
}

// The curve of one slice, each time another one, stands for the part.
Result<void> Averager::Impl::look_at(uint32_t part) {
  const PartLayout& known = layout.parts()[part];
  const auto turn = static_cast<uint32_t>(report_.step % known.slices);
  const uint32_t chosen = known.first_slice + turn;
  const SliceLayout& slice = layout.slices()[chosen];
  const std::span<const float> gradient = floats(known.tensor, slice.range);
  Result<codec::Curve> curve = Error{};
  if (slices_[chosen].worker) {
    curve = codec::probe(*slices_[chosen].worker, gradient, codec::default_points(), workspace_);
  } else {
    const auto without =
        codec::Encoder::create(known.tensor, layout.tensors()[known.tensor].shape,
                               {.residual = codec::ResidualKind::none}, slice.range);
    SCANT_CHECK(without.ok());
    curve = codec::probe(without.value(), gradient, codec::default_points(), workspace_);
  }
  if (!curve) return curve.error();
  const double all =
      static_cast<double>(known.range.elements) / static_cast<double>(slice.range.elements);
  curve.value().energy *= all;
  for (codec::CurvePoint& point : curve.value().points) {
    point.bytes *= all;
    point.energy *= all;
  }
  report_.curves[part] = std::move(curve).value();
  return {};
}

Result<void> Averager::Impl::encode(uint32_t index, uint32_t part) {
  const BufferPlan& buffer = plan.buffers[index];
  const PartLayout& known = layout.parts()[part];
  const bool present = present_[known.tensor];
  if (!report_.curves.empty() && present) {
    if (Result<void> looked = look_at(part); !looked) return looked;
  }
  if (buffer.path == Path::all_reduce) {
    if (present) {
      fold_residual(part);
      count_nonfinite(part);
    } else {
      std::ranges::fill(floats(known.tensor, known.range), 0.0f);
    }
    return {};
  }
  if (!present) return {};
  const PartPlan& points = buffer.points[part - buffer.first_part];
  PartReport& report = report_.parts[part];
  for (uint32_t i = known.first_slice; i < known.first_slice + known.slices; ++i) {
    const SliceLayout& slice = layout.slices()[i];
    const std::span<float> gradient = floats(known.tensor, slice.range);
    // Nobody owns a gathered slice: what its owner kept of another plan would wait for ever.
    if (buffer.path == Path::gather) fold_owner_residual(i, gradient);
    const auto done = worker(i).encode(gradient, points.first, workspace_, record_);
    if (!done) return done.error();
    slices_[i].worker_dirty = true;
    nonfinite_ += done.value().nonfinite;
    if (done.value().nonfinite > 0) not_finite_[known.tensor] = true;
    report.bytes += done.value().bytes;
    report.energy += done.value().energy;
    report.energy_left += done.value().energy_left;
    const size_t to = buffer.path == Path::split ? static_cast<size_t>(slice.owner) : 0;
    buffers_[index].outgoing[to].append(std::as_const(record_).view());
  }
  return {};
}

void Averager::Impl::begin_first(uint32_t index) {
  const BufferPlan& buffer = plan.buffers[index];
  BufferMemory& memory = buffers_[index];
  const CallOptions how{.group = first_group_, .timeout = options.timeout};
  if (buffer.path == Path::all_reduce) {
    const PartLayout& first = layout.parts()[buffer.first_part];
    const PartLayout& last = layout.parts()[buffer.first_part + buffer.parts - 1];
    const uint64_t begin = layout.arena_offset(first.tensor, first.range);
    const uint64_t end = layout.arena_offset(last.tensor, last.range) + last.range.elements;
    const MutableBytes bytes = std::as_writable_bytes(arena.subspan(begin, end - begin));
    report_.buffers[index].first_bytes = all_reduce_bytes(bytes.size(), ranks());
    memory.first = communicator.all_reduce(bytes, bytes, DType::f32, ReduceOp::average, how);
  } else {
    std::vector<Bytes> sent;
    std::vector<MutableBytes> room;
    for (Rank to = 0; to < ranks(); ++to) {
      const size_t place = static_cast<size_t>(to);
      const Message& message = memory.outgoing[buffer.path == Path::split ? place : 0];
      sent.push_back(to == rank_ ? Bytes{} : message.view());
      room.push_back(memory.incoming[place].room());
      report_.buffers[index].first_bytes += sent.back().size();
    }
    memory.first = communicator.exchange(std::move(sent), std::move(room), memory.received, how);
  }
  report_.sent_bytes += report_.buffers[index].first_bytes;
  submit_done(memory.first_callback, memory.first, Leg::first, index);
}

void Averager::Impl::begin_second(uint32_t index) {
  BufferMemory& memory = buffers_[index];
  std::vector<Bytes> sent;
  std::vector<MutableBytes> room;
  for (Rank to = 0; to < ranks(); ++to) {
    sent.push_back(to == rank_ ? Bytes{} : std::as_const(memory.average).view());
    room.push_back(memory.averages[static_cast<size_t>(to)].room());
    report_.buffers[index].second_bytes += sent.back().size();
  }
  report_.sent_bytes += report_.buffers[index].second_bytes;
  memory.second = communicator.exchange(std::move(sent), std::move(room), memory.received,
                                        {.group = second_group_, .timeout = options.timeout});
  submit_done(memory.second_callback, memory.second, Leg::second, index);
}

void Averager::Impl::note_presence(const SortedRecords& records, SliceSpan span, Rank of,
                                   Rank sender) {
  for (uint32_t i = 0; i < span.count; ++i) {
    const SliceLayout& slice = layout.slices()[span.first + i];
    if (of != kNoRank && slice.owner != of) continue;
    const uint32_t tensor = layout.parts()[slice.part].tensor;
    (records[i] ? seen_ : missed_)[static_cast<size_t>(sender)][tensor] = true;
  }
}

Result<void> Averager::Impl::add(uint32_t index) {
  BufferMemory& memory = buffers_[index];
  const bool split = plan.buffers[index].path == Path::split;
  const Rank of = split ? rank_ : kNoRank;
  std::vector<SortedRecords> by_rank;
  for (Rank from = 0; from < ranks(); ++from) {
    const size_t place = static_cast<size_t>(from);
    Message& message = memory.incoming[place];
    if (from != rank_) message.received(memory.received[place]);
    const Bytes bytes =
        from == rank_ ? memory.outgoing[split ? place : 0].view() : std::as_const(message).view();
    Result<SortedRecords> sorted = sort_records(bytes, layout, memory.slices, of, from);
    if (!sorted) return sorted.error();
    note_presence(sorted.value(), memory.slices, of, from);
    by_rank.push_back(std::move(sorted).value());
  }
  for (uint32_t i = 0; i < memory.slices.count; ++i) {
    const uint32_t slice = memory.slices.first + i;
    if (split && layout.slices()[slice].owner != rank_) continue;
    if (Result<void> added = add_slice(index, slice, by_rank); !added) return added;
  }
  return {};
}

Result<void> Averager::Impl::add_slice(uint32_t index, uint32_t slice,
                                       std::vector<SortedRecords>& by_rank) {
  const BufferPlan& buffer = plan.buffers[index];
  BufferMemory& memory = buffers_[index];
  const SliceLayout& known = layout.slices()[slice];
  const uint32_t tensor = layout.parts()[known.part].tensor;
  const std::span<float> out = floats(tensor, known.range);
  std::vector<codec::RecordView> records;
  for (SortedRecords& of_rank : by_rank) {
    auto& record = of_rank[slice - memory.slices.first];
    if (record) records.push_back(*std::move(record));
  }
  if (records.empty()) {
    std::ranges::fill(out, 0.0f);
    return {};
  }
  Result<void> added =
      codec::accumulate(records, tensor, layout.tensors()[tensor].shape, known.range.first, out,
                        1.0f / static_cast<float>(ranks()), workspace_);
  if (!added || buffer.path == Path::gather) return added;
  const codec::Point point = buffer.points[known.part - buffer.first_part].second;
  const auto encoded = owner(slice).encode(out, point, workspace_, record_);
  if (!encoded) return encoded.error();
  slices_[slice].owner_dirty = true;
  memory.average.append(std::as_const(record_).view());
  return {};
}

Result<void> Averager::Impl::decode(uint32_t index) {
  BufferMemory& memory = buffers_[index];
  for (Rank from = 0; from < ranks(); ++from) {
    const size_t place = static_cast<size_t>(from);
    if (from != rank_) memory.averages[place].received(memory.received[place]);
    const Message& message = from == rank_ ? memory.average : memory.averages[place];
    Result<SortedRecords> sorted = sort_records(message.view(), layout, memory.slices, from, from);
    if (!sorted) return sorted.error();
    for (uint32_t i = 0; i < memory.slices.count; ++i) {
      const SliceLayout& slice = layout.slices()[memory.slices.first + i];
      if (slice.owner != from) continue;
      const uint32_t tensor = layout.parts()[slice.part].tensor;
      const std::span<float> out = floats(tensor, slice.range);
      const auto& record = sorted.value()[i];
      if (!record) {
        std::ranges::fill(out, 0.0f);
        continue;
      }
      Result<void> done = codec::accumulate({&*record, 1}, tensor, layout.tensors()[tensor].shape,
                                            slice.range.first, out, 1.0f, workspace_);
      if (!done) return done;
    }
  }
  return {};
}

}  // namespace scant::gradient
