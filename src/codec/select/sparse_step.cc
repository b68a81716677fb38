// The passes of a sparse step over whole ranges and single blocks; sparse_scan.cc finds thresholds.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <new>
#include <utility>

#include "codec/record/positions.h"
#include "codec/step.h"

namespace scant::codec {
namespace {

constexpr uint64_t kBlock = kSparseBlockElements;
// A second threshold, to see how fast counts fall.
constexpr float kAboveRatio = 1.125f;
constexpr float kJustBelow = 1 - 0x1p-20f;  // by more than a few roundings
constexpr size_t kPieceElements = 4096;
constexpr uint32_t kQuantisedSweeps = 16;  // in one of which rows take turns

}  // namespace

SparseStep::SparseStep(Encoder& encoder, const float* gradient, float decay, Point point,
                       Workspace& workspace)
    : encoder_(encoder), gradient_(gradient), decay_(decay), point_(point), workspace_(workspace) {
  blocks_.resize((encoder.range_.elements + kBlock - 1) / kBlock);
}

size_t SparseStep::elements_of(uint64_t block) const {
  return std::min<uint64_t>(kBlock, encoder_.range_.elements - block * kBlock);
}

Result<EncodeReport> SparseStep::run(RecordBuffer& record) {
  const Result<void> prepared = workspace_.prepare(record_bytes_max(encoder_.range_.elements));
  if (!prepared) return prepared.error();
  const bool streamed = !point_.by_row && encoder_.range_.elements > kWholeElements;
  if (!streamed) {
    const Result<void> taken = take_whole();
    if (!taken) return taken.error();
  }
  reserve_lists(streamed);
  ThresholdState& state = encoder_.threshold_;
  ThresholdState before = state;
  if (encoder_.options_.evenness > 0 && state.level.size() != blocks_.size())
    state.level.assign(blocks_.size(), 1.0f);
  if (state.density != point_.density) state.threshold = 0;
  state.density = point_.density;
  wanted_ = begin_step(state, point_.density, encoder_.range_.elements);
  choose_turns();
  if (streamed) {
    float threshold = 0;
    try {
      threshold = confirm_threshold();
    } catch (const std::bad_alloc&) {
      state = std::move(before);
      throw;
    }
    run_streamed(threshold);
  } else if (point_.by_row) {
    run_by_row();
  } else {
    run_whole();
  }
  return assemble(record);
}

// Pages that stay untouched cost nothing.
void SparseStep::reserve_lists(bool streamed) {
  for (uint64_t number = 0; number < blocks_.size(); ++number) {
    const size_t elements = elements_of(number);
    blocks_[number].positions.reserve(elements);
    blocks_[number].values.reserve(elements);
    blocks_[number].payload.reserve(record_bytes_max(elements));
  }
  if (point_.by_row) {
    orders_.resize(workspace_.pool().workers());
    const uint64_t row = std::min<uint64_t>(encoder_.shape_.columns, kBlock);
    for (std::vector<uint64_t>& order : orders_) order.reserve(row);
  } else if (!streamed) {
    magnitudes_.reserve(encoder_.range_.elements);
  }
}

float SparseStep::threshold_of(uint64_t block, float threshold) const {
  const float evenness = encoder_.options_.evenness;
  if (evenness == 0) return threshold;
  const float level = encoder_.threshold_.level[block];
  return std::max(threshold * std::pow(level, evenness), kSmallestMagnitude);
}

float* SparseStep::work_of(uint64_t block, size_t worker) {
  const uint64_t at = block * kBlock;
  if (float* in_place = encoder_.residual_.in_place()) return in_place + at;
  return whole_ != nullptr ? whole_ + at : workspace_.scratch(worker).work();
}

const float* SparseStep::gradient_of(uint64_t block) {
  const uint64_t at = block * kBlock;
  if (encoder_.velocity_.empty()) return gradient_ + at;
  float* velocity = encoder_.velocity_.data() + at;
  kernels().accumulate(gradient_ + at, velocity, elements_of(block), encoder_.options_.momentum);
  return velocity;
}

void SparseStep::select(uint64_t number, size_t worker, bool add, float* work, float threshold) {
  Workspace::Scratch& scratch = workspace_.scratch(worker);
  ResidualStore& residual = encoder_.residual_;
  const uint64_t first = residual.first() + number * kBlock;
  const float* gradient = add ? gradient_of(number) : nullptr;
  const float limit = threshold_of(number, threshold);
  Block& block = blocks_[number];
  size_t count = 0;
  double energy = 0;
  // In pieces that stay in the first-level cache from loading to selection.
  for (size_t at = 0; at < elements_of(number); at += kPieceElements) {
    const size_t n = std::min(kPieceElements, elements_of(number) - at);
    if (add && residual.in_place() == nullptr) residual.load(first + at, n, work + at);
    const Selected found =
        kernels().select(add ? gradient + at : nullptr, work + at, n, decay_, limit,
                         scratch.positions() + count, scratch.values() + count);
    for (size_t i = count; i < count + found.count; ++i)
      scratch.positions()[i] = static_cast<uint16_t>(scratch.positions()[i] + at);
    count += found.count;
    energy += static_cast<double>(found.energy);
  }
  block.positions.assign(scratch.positions(), scratch.positions() + count);
  block.values.assign(scratch.values(), scratch.values() + count);
  if (add) block.energy = energy;
}

void SparseStep::run_streamed(float threshold) {
  // A tie is told exactly by drop_ties(); until then no rounding of a block's threshold drops it.
  const float least = tie_.magnitude == 0 ? threshold : threshold * kJustBelow;
  const auto body = [&](size_t number, size_t worker) {
    float* work = work_of(number, worker);
    select(number, worker, true, work, least);
    drop_ties(number);
    const float above = threshold_of(number, threshold) * kAboveRatio;
    Block& block = blocks_[number];
    block.above = static_cast<uint64_t>(std::count_if(
        block.values.begin(), block.values.end(), [&](float v) { return std::abs(v) >= above; }));
    finish_block(number, work);
  };
  workspace_.pool().for_each(blocks_.size(), std::ref(body));
  uint64_t count = 0;
  uint64_t above = 0;
  for (const Block& block : blocks_) {
    count += block.header.entries - block.forced;
    above += block.above;
  }
  ThresholdState& state = encoder_.threshold_;
  if (tie_.magnitude == 0) {
    state.slope = fitted_slope(static_cast<double>(count), static_cast<double>(above), kAboveRatio,
                               state.slope);
    learn(state, threshold, count, wanted_, encoder_.range_.elements);
    adjust_levels();  // what ties pass says nothing about thresholds
  }
}

void SparseStep::adjust_levels() {
  const float evenness = encoder_.options_.evenness;
  if (evenness == 0) return;
  ThresholdState& state = encoder_.threshold_;
  for (uint64_t b = 0; b < blocks_.size(); ++b) {
    // The level at which this block alone would have sent its share, half of the way to it.
    const double fair = point_.density * static_cast<double>(elements_of(b));
    const double ratio = (static_cast<double>(blocks_[b].header.entries) + 0.5) / (fair + 0.5);
    const float own = std::pow(state.level[b], evenness) *
                      static_cast<float>(std::pow(ratio, 1.0 / static_cast<double>(state.slope)));
    state.level[b] = std::clamp(std::sqrt(state.level[b] * own), 1 / kLevelMax, kLevelMax);
  }
}

// Codes share scales with their neighbours: a value far below theirs would come out as nothing, or
// as far too much. So with quantised values rows take turns in one sweep of sixteen, and the blocks
// concerned go as bf16.
void SparseStep::choose_turns() {
  const Range range = encoder_.range_;
  const uint64_t columns = encoder_.shape_.columns;
  if (range.elements == 0) return;
  const uint64_t rows = (range.first + range.elements - 1) / columns - range.first / columns + 1;
  const uint64_t steps = sweep_steps(point_.density, std::min<uint64_t>(columns, kBlock));
  turns_ =
      take_turns(encoder_.threshold_, rows, steps, quantised(point_.values) ? kQuantisedSweeps : 1);
}

void SparseStep::force_rows(uint64_t number, const float* work) {
  const uint64_t columns = encoder_.shape_.columns;
  const Range range = encoder_.range_;
  const uint64_t row_first = range.first / columns;
  const uint64_t rows = (range.first + range.elements - 1) / columns - row_first + 1;
  Block& block = blocks_[number];
  const std::span<const uint16_t> chosen(block.positions);
  force_rows(number, work, row_first + turns_.begin, row_first + std::min(turns_.end, rows),
             chosen);
  if (turns_.end > rows) force_rows(number, work, row_first, row_first + turns_.end - rows, chosen);
  block.forced = block.positions.size() - chosen.size();
  if (block.forced == 0) return;
  const auto forced = block.positions.end() - static_cast<ptrdiff_t>(block.forced);
  std::sort(forced, block.positions.end());
  std::inplace_merge(block.positions.begin(), forced, block.positions.end());
  block.values.resize(block.positions.size());
  for (size_t i = 0; i < block.values.size(); ++i) block.values[i] = work[block.positions[i]];
}

void SparseStep::force_rows(uint64_t number, const float* work, uint64_t row_begin,
                            uint64_t row_end, std::span<const uint16_t> chosen) {
  const uint64_t columns = encoder_.shape_.columns;
  // Elements of the tensor that this block covers.
  const uint64_t begin = encoder_.range_.first + number * kBlock;
  const uint64_t end = begin + elements_of(number);
  row_begin = std::max(row_begin, begin / columns);
  row_end = std::min(row_end, (end - 1) / columns + 1);
  for (uint64_t row = row_begin; row < row_end; ++row) {
    const auto from = static_cast<size_t>(std::max(row * columns, begin) - begin);
    const auto to = static_cast<size_t>(std::min((row + 1) * columns, end) - begin);
    const auto next = std::lower_bound(chosen.begin(), chosen.end(), from);
    if (next != chosen.end() && *next < to) continue;
    const auto* largest = std::max_element(
        work + from, work + to, [](float a, float b) { return std::abs(a) < std::abs(b); });
    if (*largest != 0.0f)
      blocks_[number].positions.push_back(static_cast<uint16_t>(largest - work));
  }
}

void SparseStep::finish_block(uint64_t number, float* work) {
  Block& block = blocks_[number];
  force_rows(number, work);
  const size_t n = block.positions.size();
  const auto elements = static_cast<uint32_t>(elements_of(number));
  const PositionChoice choice = choose_positions(block.positions, elements);
  block.header.positions = choice.kind;
  block.header.position_bytes = choice.bytes;
  block.header.entries = static_cast<uint32_t>(n);
  uint32_t largest = 0;
  for (const float value : block.values) {
    largest = std::max(largest, magnitude_bits(value));
    block.energy_sent += static_cast<double>(value) * static_cast<double>(value);
  }
  if (largest >= kInfinityBits) block.nonfinite = count_nonfinite(block.values.data(), n);
  const bool spread = block.forced > 0 && quantised(point_.values);
  const ValueKind kind = block.nonfinite > 0 ? ValueKind::f32
                         : spread            ? ValueKind::bf16
                                             : point_.values;
  block.payload.reserve(choice.bytes + value_bytes(kind, n));
  append_positions(block.positions, elements, choice, block.payload);
  block.payload.resize(choice.bytes + value_bytes(kind, n));
  write_values(kind, {encoder_.options_.stochastic, encoder_.draw_key(number, 0)}, largest,
               block.values.data(), n, block.payload.data() + choice.bytes, block.header);
  for (size_t i = 0; i < n; ++i) {
    const float left = block.values[i];
    work[block.positions[i]] = left;
    block.energy_back += static_cast<double>(left) * static_cast<double>(left);
  }
  if (!encoder_.velocity_.empty()) restart_momentum(number);
  ResidualStore& residual = encoder_.residual_;
  if (residual.in_place() == nullptr) {
    residual.store(residual.first() + number * kBlock, elements, work,
                   encoder_.draw_key(number, 1));
  }
  block.positions = {};
  block.values = {};
}

void SparseStep::restart_momentum(uint64_t number) {
  float* velocity = encoder_.velocity_.data() + number * kBlock;
  for (const uint16_t position : blocks_[number].positions) {
    if (encoder_.options_.mask_momentum || !is_finite(velocity[position]))
      velocity[position] = 0.0f;
  }
}

EncodeReport SparseStep::assemble(RecordBuffer& record) {
  RecordHeader header{.tensor = encoder_.tensor_,
                      .block_elements = kSparseBlockElements,
                      .shape = encoder_.shape_,
                      .first = encoder_.range_.first,
                      .elements = encoder_.range_.elements};
  EncodeReport report;
  uint64_t bytes = kRecordHeaderBytes + blocks_.size() * kBlockHeaderBytes;
  for (const Block& block : blocks_) bytes += block.payload.size();
  const MutableBytes out = workspace_.room(record, bytes);
  uint64_t at = kRecordHeaderBytes + blocks_.size() * kBlockHeaderBytes;
  for (uint64_t b = 0; b < blocks_.size(); ++b) {
    const Block& block = blocks_[b];
    write_block_header(out, b, block.header);
    if (!block.payload.empty())
      std::memcpy(out.data() + at, block.payload.data(), block.payload.size());
    at += block.payload.size();
    report.entries += block.header.entries;
    report.nonfinite += block.nonfinite;
    report.forced += block.forced;
    report.energy += block.energy;
    report.energy_left += std::max(0.0, block.energy - block.energy_sent) + block.energy_back;
  }
  header.nonfinite = static_cast<uint32_t>(std::min<uint64_t>(report.nonfinite, UINT32_MAX));
  seal(out, header);
  end_step(encoder_.threshold_, report.entries);
  return report;
}

}  // namespace scant::codec
