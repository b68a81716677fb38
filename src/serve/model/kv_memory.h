// Keys and values in pages of 16 tokens. docs/serve.md, "Models", has the layout. A page holds all
// layers, so that one copy or one share is all that a sequence needs. One owner thread; during a
// step the workers store tokens of their own, and later read.
#pragma once

#include "base/buffer.h"
#include "serve/model/decoder.h"
#include "serve/model/step_kernels.h"

namespace scant::serve {

class KvMemory {
 public:
  // ErrorCode::resource: no memory.
  [[nodiscard]] static Result<KvMemory> create(const Description& description, KvKind kind,
                                               uint32_t pages);

  // A token's key and value of one head: its place in the page is `slot`.
  void store(uint32_t page, uint32_t slot, uint32_t layer, uint32_t head, const float* key,
             const float* value);
  // Value d of the key of slot j is at [16 * d + j]; the room has as many floats. What no token has
  // been stored in is any value.
  [[nodiscard]] const float* keys(uint32_t page, uint32_t layer, uint32_t head,
                                  const StepKernels& kernels, float* room) const;
  // Value d of slot j is at [value_stride() * j + d].
  [[nodiscard]] const float* values(uint32_t page, uint32_t layer, uint32_t head,
                                    const StepKernels& kernels, float* room) const;
  void copy_page(uint32_t from, uint32_t to);

  [[nodiscard]] size_t value_stride() const { return base::align_up(head_size_, kLanes); }
  [[nodiscard]] uint32_t pages() const { return pages_; }
  [[nodiscard]] uint64_t bytes() const { return memory_.size(); }

 private:
  KvMemory() = default;
  [[nodiscard]] uint64_t at(uint32_t page, uint32_t layer, uint32_t head) const;

  KvKind kind_ = KvKind::f32;
  size_t head_size_ = 0;
  uint32_t kv_heads_ = 0;
  uint32_t pages_ = 0;
  uint64_t page_bytes_ = 0;
  uint64_t head_bytes_ = 0;
  base::Buffer memory_;
};

}  // namespace scant::serve
