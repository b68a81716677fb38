#include "serve/model/attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace scant::serve {
namespace {

constexpr size_t kRowsMax = 32;  // share what is loaded of a page; more would not fit the L1 cache
constexpr size_t kBlockPages = kBlockTokens / kPageTokens;

}  // namespace

AttentionShape::AttentionShape(const Description& d)
    : head_size(d.head_size),
      kv_heads(d.kv_heads),
      group(d.heads / d.kv_heads),
      window(d.window),
      scale(1.0f / std::sqrt(static_cast<float>(d.head_size))) {}

size_t AttentionShape::tokens_at_a_time() const { return std::max<size_t>(1, kRowsMax / group); }

AttentionRoom::AttentionRoom(const AttentionShape& shape) {
  const size_t rows = shape.tokens_at_a_time() * shape.group;
  const size_t columns = base::align_up(shape.head_size, kLanes);
  softmax_.resize(rows);
  seen_.resize(rows);
  floats_.resize(rows * (base::align_up(shape.head_size, kLanes) + kBlockTokens + columns) +
                 kBlockTokens * (shape.head_size + columns));
}

// One call of attend(). A row is a head of a token: token t's head g of the group is row
// t * group + g.
class Attending {
 public:
  Attending(const AttentionShape& shape, const AttentionTokens& tokens, size_t columns,
            AttentionRoom& room)
      : shape_(shape),
        tokens_(tokens),
        room_(room),
        columns_(columns),
        rows_(tokens.tokens * shape.group),
        queries_(room.floats_.data()),
        scores_(queries_ + rows_ * base::align_up(shape.head_size, kLanes)),
        out_(scores_ + rows_ * kBlockTokens),
        keys_room_(out_ + rows_ * columns),
        values_room_(keys_room_ + kBlockTokens * shape.head_size) {}

  void begin(uint32_t kv_head) {
    const size_t n = shape_.head_size;
    for (size_t row = 0; row < rows_; ++row) {
      const float* const from = tokens_.queries + row / shape_.group * tokens_.query_stride +
                                (kv_head * shape_.group + row % shape_.group) * n;
      for (size_t d = 0; d < n; ++d) queries_[row * n + d] = from[d] * shape_.scale;
      room_.softmax_[row] = {.largest = -INFINITY, .correction = 0, .sums = {}};
    }
    std::fill_n(out_, rows_ * columns_, 0.0f);
  }

  void block(const KvMemory& memory, const StepKernels& kernels, uint32_t layer, uint32_t kv_head,
             uint32_t at) {
    const auto [first_row, end_row] = see(at);
    if (first_row == end_row) return;
    // Pages between the first key and the last one that any row sees.
    const size_t first = room_.seen_[first_row].first / kPageTokens;
    const size_t end = (room_.seen_[end_row - 1].end + kPageTokens - 1) / kPageTokens;
    const float* keys[kBlockPages] = {};
    const float* values[kBlockPages] = {};
    for (size_t i = first; i < end; ++i) {
      const uint32_t page = tokens_.pages[at / kPageTokens + i];
      keys[i] = memory.keys(page, layer, kv_head, kernels,
                            keys_room_ + i * kPageTokens * shape_.head_size);
      values[i] =
          memory.values(page, layer, kv_head, kernels, values_room_ + i * kPageTokens * columns_);
    }
    const size_t rows = end_row - first_row;
    float* const scores = scores_ + first_row * kBlockTokens;
    kernels.scores(queries_ + first_row * shape_.head_size, rows, keys + first, end - first,
                   shape_.head_size, scores + first * kPageTokens);
    uint64_t pairs = rows * (end - first) * kPageTokens;
    for (size_t row = first_row; row < end_row; ++row) {
      kernels.softmax(scores_ + row * kBlockTokens, room_.seen_[row], room_.softmax_[row]);
      pairs += room_.seen_[row].end - room_.seen_[row].first;
    }
    kernels.values(scores, room_.seen_.data() + first_row, room_.softmax_.data() + first_row, rows,
                   values, columns_, out_ + first_row * columns_);
    room_.work_ += pairs * shape_.head_size;
  }

  void end(const StepKernels& kernels, uint32_t kv_head) {
    const size_t n = shape_.head_size;
    for (size_t row = 0; row < rows_; ++row) {
      float lanes[kLanes];
      std::copy_n(room_.softmax_[row].sums, kLanes, lanes);
      for (size_t half = kLanes / 2; half > 0; half /= 2) {
        for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      float* const to = tokens_.out + row / shape_.group * tokens_.out_stride +
                        (kv_head * shape_.group + row % shape_.group) * n;
      std::copy_n(out_ + row * columns_, n, to);
      kernels.divide(to, lanes[0], n);
    }
  }

 private:
  struct Rows {
    size_t first;
    size_t end;
  };
  // Which rows see keys of the block at this position, and which keys.
  Rows see(uint32_t at) {
    Rows rows{rows_, 0};
    for (size_t row = 0; row < rows_; ++row) {
      const auto position = tokens_.position + static_cast<uint32_t>(row / shape_.group);
      const uint32_t first = std::max(shape_.first_seen(position), at);
      const uint32_t end = std::min(position + 1, at + static_cast<uint32_t>(kBlockTokens));
      if (first >= end) continue;
      room_.seen_[row] = {.first = first - at, .end = end - at};
      rows.first = std::min(rows.first, row);
      rows.end = row + 1;
    }
    rows.first = std::min(rows.first, rows.end);
    return rows;
  }

  const AttentionShape& shape_;
  const AttentionTokens& tokens_;
  AttentionRoom& room_;
  size_t columns_;
  size_t rows_;
  float* queries_;
  float* scores_;
  float* out_;
  float* keys_room_;
  float* values_room_;
};

void attend(const AttentionShape& shape, const KvMemory& memory, const StepKernels& kernels,
            uint32_t layer, uint32_t kv_head, const AttentionTokens& tokens, AttentionRoom& room) {
  SCANT_CHECK(tokens.tokens > 0 && tokens.tokens <= shape.tokens_at_a_time());
  Attending now(shape, tokens, memory.value_stride(), room);
  now.begin(kv_head);
  const uint32_t last = tokens.position + tokens.tokens - 1;
  constexpr auto kStep = static_cast<uint32_t>(kBlockTokens);
  for (uint32_t at = shape.first_seen(tokens.position) / kStep * kStep; at <= last; at += kStep)
    now.block(memory, kernels, layer, kv_head, at);
  now.end(kernels, kv_head);
}

}  // namespace scant::serve
