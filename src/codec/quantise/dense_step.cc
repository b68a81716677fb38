// A dense step: blocks that stay in the first-level cache from gradient to record and residual.
#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "codec/step.h"

namespace scant::codec {
namespace {

constexpr uint32_t kBlock = kDenseBlockElements;
// A worker takes this many neighbours at a time: the memory ahead of a block is then its own. What
// is left is measured up to the first of them that leaves something.
constexpr uint64_t kStretch = 8;

// work = gradient + decay * residual, from element `first` of the tensor on. `groups` may be null.
Accumulated add_gradient(const float* gradient, ResidualStore& residual, uint64_t first,
                         float decay, GroupMagnitudes* groups, Ahead ahead, float* work, size_t n) {
  if (residual.kind() == ResidualKind::i8 && groups != nullptr) {
    const ResidualStore::Levels left = residual.levels(first);
    return kernels().accumulate_groups_i8(gradient, left.levels, left.scales, work, n, decay,
                                          *groups, ahead);
  }
  if (residual.in_place() == nullptr) residual.load(first, n, work);
  return groups != nullptr ? kernels().accumulate_groups(gradient, work, n, decay, *groups, ahead)
                           : kernels().accumulate(gradient, work, n, decay);
}

}  // namespace

uint32_t DenseStep::elements_of(uint64_t block) const {
  return static_cast<uint32_t>(
      std::min<uint64_t>(kBlock, encoder_.range_.elements - block * kBlock));
}

Result<EncodeReport> DenseStep::run(RecordBuffer& record) {
  const RecordHeader shape{.tensor = encoder_.tensor_,
                           .block_elements = kBlock,
                           .shape = encoder_.shape_,
                           .first = encoder_.range_.first,
                           .elements = encoder_.range_.elements};
  const uint64_t blocks = shape.block_count();
  const Result<void> prepared =
      workspace_.prepare(dense_record_bytes(shape.elements, ValueKind::f32));
  if (!prepared) return prepared.error();
  const Result<MutableBytes> made =
      record.resize(dense_record_bytes(shape.elements, point_.values));
  if (!made) return made.error();
  const MutableBytes out = made.value();
  results_.assign(blocks, {});
  wide_.assign(blocks, {});
  workspace_.pool().for_each((blocks + kStretch - 1) / kStretch,
                             [&](size_t stretch, size_t worker) {
                               const uint64_t end = std::min(blocks, (stretch + 1) * kStretch);
                               for (uint64_t block = stretch * kStretch; block < end; ++block)
                                 results_[block] = encode_block(block, worker, out);
                             });
  EncodeReport report{.entries = shape.elements};
  for (uint64_t begin = 0; begin < blocks; begin += kStretch) {
    double energy = 0;  // of blocks whose rest is kept
    double measured = 0;
    double left = 0;
    for (uint64_t block = begin; block < std::min(blocks, begin + kStretch); ++block) {
      const BlockResult& result = results_[block];
      report.energy += static_cast<double>(result.energy);
      report.nonfinite += result.nonfinite;
      if (result.nonfinite > 0) continue;
      energy += static_cast<double>(result.energy);
      if (left > 0) continue;
      measured = energy;
      left = static_cast<double>(result.energy_left);
    }
    if (left > 0) report.energy_left += left * std::max(1.0, energy / measured);
  }
  if (report.nonfinite > 0) widen_blocks(record);
  RecordHeader header = shape;
  header.nonfinite = static_cast<uint32_t>(std::min<uint64_t>(report.nonfinite, UINT32_MAX));
  seal(record.view(), header);
  return report;
}

Ahead DenseStep::ahead_of(uint64_t block) const {
  const uint64_t next = (block + 1) * kBlock;
  if (encoder_.range_.elements < next + kBlock || !encoder_.velocity_.empty()) return {};
  const ResidualStore& residual = encoder_.residual_;
  const size_t bytes = residual.element_bytes();
  return {gradient_ + next, residual.data().data() + next * bytes, bytes};
}

Accumulated DenseStep::take(uint64_t block, float* work, GroupMagnitudes* groups, Ahead ahead) {
  const uint32_t n = elements_of(block);
  const uint64_t at = block * kBlock;
  const float* gradient = gradient_ + at;
  ResidualStore& residual = encoder_.residual_;
  if (rest_ != nullptr) {
    rest_->add(residual.first() + at, n, gradient, work);
    return groups != nullptr ? kernels().accumulate_groups(nullptr, work, n, 1.0f, *groups, ahead)
                             : kernels().accumulate(nullptr, work, n, 1.0f);
  }
  if (!encoder_.velocity_.empty()) {
    float* velocity = encoder_.velocity_.data() + at;
    kernels().accumulate(gradient, velocity, n, encoder_.options_.momentum);
    gradient = velocity;
  }
  return add_gradient(gradient, residual, residual.first() + at, encoder_.options_.decay, groups,
                      ahead, work, n);
}

DenseStep::BlockResult DenseStep::encode_block(uint64_t block, size_t worker, MutableBytes record) {
  const uint32_t n = elements_of(block);
  const uint64_t at = block * kBlock;
  ResidualStore& residual = encoder_.residual_;
  float* const in_place = residual.in_place();
  float* work = in_place != nullptr ? in_place + at : workspace_.scratch(worker).work();
  const Ahead ahead = ahead_of(block);
  GroupMagnitudes groups;
  const Accumulated sum = take(block, work, quantised(point_.values) ? &groups : nullptr, ahead);

  BlockResult result{.energy = sum.energy};
  BlockHeader header{.entries = n};
  const uint64_t full_bytes = value_bytes(point_.values, kBlock);
  std::byte* payload =
      record.data() + kRecordHeaderBytes + results_.size() * kBlockHeaderBytes + block * full_bytes;
  if (sum.magnitude_max >= kInfinityBits) {
    result.nonfinite = static_cast<uint32_t>(count_nonfinite(work, n));
    const bool kept = keep_wide(block, work, n);
    if (!encoder_.velocity_.empty()) {
      for (uint32_t i = 0; i < n; ++i)
        if (!is_finite(encoder_.velocity_[at + i])) encoder_.velocity_[at + i] = 0.0f;
    }
    header.values = ValueKind::f32;
    if (!kept) send_zeros(block, n, payload, header);
  } else {
    write_values(point_.values, {encoder_.options_.stochastic, encoder_.draw_key(block, 0)},
                 sum.magnitude_max, work, n, payload, header, &groups, ahead);
  }
  write_block_header(record, block, header);
  const auto neighbours = results_.begin() + static_cast<ptrdiff_t>(block / kStretch * kStretch);
  const bool measured =
      std::any_of(neighbours, results_.begin() + static_cast<ptrdiff_t>(block),
                  [](const BlockResult& before) { return before.energy_left > 0; });
  if (!measured && point_.values != ValueKind::f32 && result.nonfinite == 0)
    result.energy_left = kernels().accumulate(nullptr, work, n, 1.0f).energy;
  if (in_place == nullptr)
    residual.store(residual.first() + at, n, work, encoder_.draw_key(block, 1));
  return result;
}

// Without memory the block sends zeros: what is finite stays, what is not is counted and gone.
bool DenseStep::keep_wide(uint64_t block, float* work, uint32_t n) {
  try {
    wide_[block].assign(work, work + n);
  } catch (const std::bad_alloc&) {
    std::replace_if(
        work, work + n, [](float value) { return !is_finite(value); }, 0.0f);
    return false;
  }
  std::fill_n(work, n, 0.0f);
  return true;
}

void DenseStep::send_zeros(uint64_t block, uint32_t n, std::byte* payload,
                           BlockHeader& header) const {
  std::array<float, kBlock> zeros{};
  write_values(point_.values, {encoder_.options_.stochastic, encoder_.draw_key(block, 0)}, 0,
               zeros.data(), n, payload, header);
}

void DenseStep::widen_blocks(RecordBuffer& record) const {
  RecordBuffer wider;
  const uint64_t blocks = results_.size();
  uint64_t bytes = kRecordHeaderBytes + blocks * kBlockHeaderBytes;
  for (uint64_t b = 0; b < blocks; ++b)
    bytes += value_bytes(wide_[b].empty() ? point_.values : ValueKind::f32, elements_of(b));
  const MutableBytes to = workspace_.room(wider, bytes);
  const Bytes from = record.view();
  uint64_t read = kRecordHeaderBytes + blocks * kBlockHeaderBytes;
  uint64_t write = read;
  std::memcpy(to.data(), from.data(), read);
  for (uint64_t b = 0; b < blocks; ++b) {
    const uint64_t size = value_bytes(point_.values, elements_of(b));
    if (wide_[b].empty()) {
      std::memcpy(to.data() + write, from.data() + read, size);
      write += size;
    } else {
      std::memcpy(to.data() + write, wide_[b].data(), wide_[b].size() * sizeof(float));
      write += wide_[b].size() * sizeof(float);
    }
    read += size;
  }
  record = std::move(wider);
}

}  // namespace scant::codec
