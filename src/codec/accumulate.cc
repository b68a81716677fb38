#include "codec/accumulate.h"

#include <algorithm>
#include <array>
#include <functional>
#include <string>

#include "base/check.h"
#include "base/little_endian.h"
#include "codec/kernels/kernels.h"
#include "codec/record/positions.h"

namespace scant::codec {
namespace {

constexpr size_t kLineFloats = Workspace::Scratch::kLineFloats;

Error mismatch(size_t number, const std::string& what, const std::string& is,
               const std::string& expected) {
  return Error{.code = ErrorCode::mismatch,
               .message = "record " + std::to_string(number) + ": " + what + " is " + is +
                          ", expected " + expected};
}

// `end`: of the record, where the block behind may be fetched ahead; it is as long in bytes, if it
// is of the same kind.
CodedValues coded(const BlockView& block, const std::byte* end = nullptr) {
  const size_t step = block.scales.size() + block.values.size();
  const bool more = end != nullptr &&
                    static_cast<size_t>(end - block.values.data()) >= step + block.values.size();
  return {.base = block.header.scale_base,
          .scales = reinterpret_cast<const uint8_t*>(block.scales.data()),
          .codes = block.values.data(),
          .ahead = more ? block.values.data() + step : nullptr};
}

// A sparse block's entries: `values` where they are floats, else `narrow` as bf16.
struct Entries {
  const uint16_t* positions = nullptr;
  const float* values = nullptr;
  const std::byte* narrow = nullptr;
  size_t count = 0;
  size_t next = 0;  // the first that was not added yet
};

// Adds the entries below position `end`; sum[0] is of position `begin`.
template <typename Value>
void scatter(Entries& entries, const Value& value, uint32_t begin, uint32_t end, float* sum) {
  size_t i = entries.next;
  for (; i < entries.count && entries.positions[i] < end; ++i)
    sum[entries.positions[i] - begin] += value(i);
  entries.next = i;
}
void scatter(Entries& entries, uint32_t begin, uint32_t end, float* sum) {
  if (entries.values != nullptr) {
    scatter(
        entries, [&](size_t i) { return entries.values[i]; }, begin, end, sum);
    return;
  }
  const auto value = [&](size_t i) {
    return bf16_widen(base::load_little<uint16_t>(entries.narrow + 2 * i));
  };
  scatter(entries, value, begin, end, sum);
}

// How far into its cache line a float stands.
size_t lane_in_line(const float* at) {
  return reinterpret_cast<uintptr_t>(at) / sizeof(float) % kLineFloats;
}

// One worker's tile of the sum, whose result goes to `out`.
class Tile {
 public:
  Tile(Workspace::Scratch& scratch, uint64_t begin, uint64_t end, float* out)
      : work_(scratch.work()),
        sum_(work_ + lane_in_line(out)),
        out_(out),
        values_(scratch.values()),
        positions_(scratch.positions()),
        begin_(begin),
        end_(end) {}
  ~Tile() { SCANT_CHECK(waiting_ == 0 && lists_ == 0); }
  Tile(const Tile&) = delete;
  Tile& operator=(const Tile&) = delete;

  // The part of a record that lies in this tile, elements counted within the tensor. Quantised
  // blocks that fill the tile wait until several can be added at once, or until finish(); so do
  // the entries of sparse ones. Nothing of `absent` is added.
  void add(const RecordView& record, std::span<const Range> absent) {
    const RecordHeader& header = record.header();
    const uint64_t size = header.block_elements;
    const uint64_t from = (begin_ - header.first) / size;
    const uint64_t to = (end_ - header.first + size - 1) / size;
    const std::byte* const end =
        size == kDenseBlockElements ? record.view().data() + record.bytes() : nullptr;
    for (uint64_t b = from; b < to; ++b) {
      const BlockView block = record.block(b);
      const uint64_t at = header.first + b * size;
      const std::span<const Range> holes = ranges_within(absent, at, at + block.elements);
      if (holes.empty()) {
        add_block(block, at, end);
      } else {
        add_block_without(holes, block, at);
      }
    }
  }
  // out = weight * sum; the sum is zero for the next tile. When all that there is waits, quads are
  // summed in registers and entries in the first-level cache.
  void finish(float weight) {
    const size_t n = end_ - begin_;
    size_t done = 0;
    if (empty_ && waiting_ > 0) {
      kernels().mean_quads(kind_, sources_.data(), waiting_, n / kQuadElements, weight, out_);
      done = n / kQuadElements * kQuadElements;
      add_waiting_rest();
    }
    while (empty_ && lists_ > 0 && done < n) done += finish_piece(done, weight);
    if (done == n) lists_ = 0;
    add_all_waiting();
    kernels().finish(sum_ + done, n - done, weight, out_ + done);
  }

 private:
  static constexpr size_t kPieceElements = 4096;

  // The entries from `done` on, up to an end of a cache line of the result; gives their number.
  size_t finish_piece(size_t done, float weight) {
    const size_t lane = lane_in_line(out_ + done);
    const size_t piece = std::min(kPieceElements - lane, end_ - begin_ - done);
    for (size_t l = 0; l < lists_; ++l) {
      scatter(entries_[l], static_cast<uint32_t>(done), static_cast<uint32_t>(done + piece),
              work_ + lane);
    }
    kernels().finish(work_ + lane, piece, weight, out_ + done);
    return piece;
  }

  // What stands behind the last quad; then nothing waits.
  void add_waiting_rest() {
    const size_t at = (end_ - begin_) / kQuadElements * kQuadElements;
    const size_t n = end_ - begin_ - at;
    for (size_t s = 0; s < waiting_ && n > 0; ++s) {
      CodedValues rest = sources_[s];
      rest.scales += at / kGroupElements;
      rest.codes += at * bits(kind_) / 8;
      kernels().decode(kind_, rest, n, values_);
      for (size_t i = 0; i < n; ++i) sum_[at + i] += values_[i];
    }
    waiting_ = 0;
  }
  void add_all_waiting() {
    for (size_t l = 0; l < lists_; ++l) {
      scatter(entries_[l], 0, static_cast<uint32_t>(end_ - begin_), sum_);
      empty_ = false;
    }
    lists_ = 0;
    listed_ = 0;
    if (waiting_ == 0) return;
    kernels().add_quads(kind_, sources_.data(), waiting_, (end_ - begin_) / kQuadElements, sum_);
    add_waiting_rest();
    empty_ = false;
  }

  void add_block(const BlockView& block, uint64_t at, const std::byte* end) {
    const size_t n = block.header.entries;
    if (n == 0) return;
    const ValueKind kind = block.header.values;
    if (block.header.positions == 0 && quantised(kind) && at == begin_ && at + n == end_) {
      if (waiting_ == sources_.size() || kind_ != kind || lists_ > 0) add_all_waiting();
      kind_ = kind;
      sources_[waiting_++] = coded(block, end);
      return;
    }
    if (block.header.positions != 0 && at == begin_ && at + block.elements == end_) {
      if (waiting_ > 0 || lists_ == entries_.size() || listed_ + n > kSparseBlockElements)
        add_all_waiting();
      list(block);
      return;
    }
    add_all_waiting();
    empty_ = false;
    if (block.header.positions == 0) {
      add_dense(block, at);
    } else {
      add_sparse(block, at);
    }
  }

  void add_dense(const BlockView& block, uint64_t at) {
    const size_t n = block.header.entries;
    const ValueKind kind = block.header.values;
    if (!quantised(kind) && at >= begin_ && at + n <= end_) {
      kernels().add_values(kind, block.values.data(), n, sum_ + (at - begin_));
      return;
    }
    decode(block, values_);
    const uint64_t from = std::max(at, begin_);
    const uint64_t to = std::min(at + n, end_);
    for (uint64_t i = from; i < to; ++i) sum_[i - begin_] += values_[i - at];
  }

  // The block's entries, behind those that wait.
  Entries read(const BlockView& block) {
    Entries result{.positions = positions_ + listed_, .count = block.header.entries};
    read_block_positions(block, positions_ + listed_);
    if (block.header.values == ValueKind::bf16) {
      result.narrow = block.values.data();
    } else {
      decode(block, values_ + listed_);
      result.values = values_ + listed_;
    }
    return result;
  }
  void list(const BlockView& block) {
    entries_[lists_++] = read(block);
    listed_ += block.header.entries;
  }

  void add_sparse(const BlockView& block, uint64_t at) {
    const size_t n = block.header.entries;
    if (at >= begin_ && at + block.elements <= end_) {
      Entries entries = read(block);
      scatter(entries, 0, block.elements, sum_ + (at - begin_));
      return;
    }
    read_block_positions(block, positions_);
    decode(block, values_);
    for (size_t i = 0; i < n; ++i) {
      const uint64_t element = at + positions_[i];
      if (element >= begin_ && element < end_) sum_[element - begin_] += values_[i];
    }
  }

  // A sum that began with 0 is never -0: what is left out counts as a zero that is added.
  void add_block_without(std::span<const Range> holes, const BlockView& block, uint64_t at) {
    const size_t n = block.header.entries;
    add_all_waiting();
    empty_ = false;
    const bool sparse = block.header.positions != 0;
    if (sparse) read_block_positions(block, positions_);
    decode(block, values_);
    auto hole = holes.begin();
    for (size_t i = 0; i < n; ++i) {
      const uint64_t element = at + (sparse ? positions_[i] : i);
      if (element < begin_) continue;
      if (element >= end_) break;
      while (hole != holes.end() && hole->first + hole->elements <= element) ++hole;
      if (hole == holes.end() || element < hole->first) sum_[element - begin_] += values_[i];
    }
  }

  static void read_block_positions(const BlockView& block, uint16_t* positions) {
    const bool read = read_positions(block.positions, block.header.positions, block.elements,
                                     block.header.entries, positions);
    SCANT_CHECK(read, "a record was parsed and then changed");
  }

  // A block's values.
  static void decode(const BlockView& block, float* values) {
    const size_t n = block.header.entries;
    if (quantised(block.header.values)) {
      kernels().decode(block.header.values, coded(block), n, values);
      return;
    }
    std::fill_n(values, n, 0.0f);
    kernels().add_values(block.header.values, block.values.data(), n, values);
  }

  float* work_;
  float* sum_;  // stands in its cache line as the result does in its own
  float* out_;
  float* values_;
  uint16_t* positions_;
  uint64_t begin_;
  uint64_t end_;
  ValueKind kind_ = ValueKind::q8;
  std::array<CodedValues, 8> sources_;
  size_t waiting_ = 0;
  std::array<Entries, 8> entries_;
  size_t lists_ = 0;
  size_t listed_ = 0;  // entries in them
  bool empty_ = true;  // nothing was added to sum_
};

// Whether every record is of this tensor and covers [first, end), and what is absent can be.
Result<void> check_records(std::span<const RecordView> records, uint32_t tensor, Shape shape,
                           uint64_t first, uint64_t end,
                           std::span<const std::span<const Range>> absent) {
  SCANT_CHECK(absent.empty() || absent.size() == records.size());
  for (size_t i = 0; i < records.size(); ++i) {
    const RecordHeader& header = records[i].header();
    if (header.tensor != tensor)
      return mismatch(i, "the tensor", std::to_string(header.tensor), std::to_string(tensor));
    if (header.shape != shape) return mismatch(i, "the shape", text(header.shape), text(shape));
    if (end < first || first < header.first || end > header.first + header.elements) {
      return mismatch(
          i, "the range",
          std::to_string(header.elements) + " elements from " + std::to_string(header.first),
          std::to_string(end - first) + " from " + std::to_string(first) + " within it");
    }
    if (absent.empty()) continue;
    if (const auto fault = ranges_fault(absent[i], {header.first, header.elements})) {
      return Error{.code = ErrorCode::invalid_argument,
                   .message = "record " + std::to_string(i) + ": absent " + *fault};
    }
  }
  return {};
}

// Of a size that no record's block exceeds.
uint64_t tile_elements(std::span<const RecordView> records) {
  uint64_t tile = kDenseBlockElements;
  for (const RecordView& record : records)
    tile = std::max<uint64_t>(tile, record.header().block_elements);
  return tile;
}

}  // namespace

Result<void> accumulate(std::span<const RecordView> records, uint32_t tensor, Shape shape,
                        uint64_t first, std::span<float> out, float weight, Workspace& workspace,
                        std::span<const std::span<const Range>> absent) {
  const uint64_t end = first + out.size();
  if (auto checked = check_records(records, tensor, shape, first, end, absent); !checked)
    return checked;
  const uint64_t tile = tile_elements(records);
  // Tiles begin where blocks of the first record do, so that equal records are walked block by
  // block.
  const uint64_t origin = records.empty() ? first : records[0].header().first;
  const uint64_t tiles_before = (first - origin) / tile;
  const uint64_t tiles_end = (end - origin + tile - 1) / tile;
  if (out.empty()) return {};
  if (Result<void> prepared = workspace.prepare(); !prepared) return prepared;
  // A worker takes neighbours: what is fetched ahead is then its own.
  const uint64_t stretch = std::max<uint64_t>(kSparseBlockElements / 2 / tile, 1);
  std::array<bool, base::WorkerPool::kWorkersMax> cleared{};
  const uint64_t stretches = (tiles_end - tiles_before + stretch - 1) / stretch;
  const auto body = [&](size_t index, size_t worker) {
    const uint64_t from = tiles_before + index * stretch;
    Workspace::Scratch& scratch = workspace.scratch(worker);
    if (!cleared[worker]) std::fill_n(scratch.work(), tile + kLineFloats, 0.0f);
    cleared[worker] = true;  // finish() leaves it so
    for (uint64_t t = from; t < std::min(tiles_end, from + stretch); ++t) {
      const uint64_t tile_begin = std::max(first, origin + t * tile);
      const uint64_t tile_end = std::min(end, origin + (t + 1) * tile);
      Tile sum(scratch, tile_begin, tile_end, out.data() + (tile_begin - first));
      for (size_t i = 0; i < records.size(); ++i)
        sum.add(records[i], absent.empty() ? std::span<const Range>{} : absent[i]);
      sum.finish(weight);
    }
    kernels().flush();
  };
  workspace.pool().for_each(stretches, std::ref(body));  // which needs no memory
  return {};
}

}  // namespace scant::codec
