// Attention of a few tokens of one sequence to the keys and values in its pages, for one head of
// keys. The order of all sums is that of docs/serve.md, "Models": it depends on positions alone.
// Any worker, with a room of its own.
#pragma once

#include <span>
#include <vector>

#include "base/aligned.h"
#include "serve/model/kv_memory.h"

namespace scant::serve {

struct AttentionShape {
  explicit AttentionShape(const Description& description);
  size_t head_size;
  size_t kv_heads;
  size_t group;     // heads of queries that share one of keys
  uint32_t window;  // how many tokens are seen; 0: all
  float scale;
  // The first position that a token sees.
  [[nodiscard]] uint32_t first_seen(uint32_t position) const {
    return window == 0 || position < window ? 0 : position - window + 1;
  }
  // Tokens that are attended for at a time.
  [[nodiscard]] size_t tokens_at_a_time() const;
};

// Consecutive tokens of a sequence.
struct AttentionTokens {
  std::span<const uint32_t> pages;  // of the sequence
  uint32_t position = 0;            // of the first
  uint32_t tokens = 0;
  const float* queries = nullptr;  // of the first: all heads
  size_t query_stride = 0;         // from token to token
  float* out = nullptr;            // likewise
  size_t out_stride = 0;
};

class AttentionRoom {
 public:
  // Memory for any call. May throw std::bad_alloc.
  explicit AttentionRoom(const AttentionShape& shape);
  [[nodiscard]] uint64_t bytes() const { return sizeof(float) * floats_.size(); }
  [[nodiscard]] uint64_t work() const { return work_; }  // multiply-adds so far

 private:
  friend class Attending;
  base::AlignedVector<float> floats_;
  std::vector<SoftmaxRow> softmax_;
  std::vector<Seen> seen_;
  uint64_t work_ = 0;
};

// At most tokens_at_a_time() tokens.
void attend(const AttentionShape& shape, const KvMemory& memory, const StepKernels& kernels,
            uint32_t layer, uint32_t kv_head, const AttentionTokens& tokens, AttentionRoom& room);

}  // namespace scant::serve
