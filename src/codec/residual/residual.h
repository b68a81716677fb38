// What a tensor's range keeps of the gradients that were not sent. Three ways to keep it behind one
// class: f32 in place; bf16 and groups of int8 with one scale, both rounded stochastically, so that
// small additions are not lost. A range begins at a multiple of 64 elements of its tensor, so
// groups lie on the tensor's own grid and move from store to store without rounding. No thread of
// its own: blocks of different elements may be loaded and stored at once.
#pragma once

#include <optional>
#include <span>

#include "base/buffer.h"
#include "codec/quantise/rounding.h"
#include "scant/base/result.h"

namespace scant::codec {

// none: nothing is kept, what is not sent is dropped.
enum class ResidualKind : uint8_t { none, f32, bf16, i8 };
inline constexpr int kResidualKindCount = 4;
[[nodiscard]] const char* name(ResidualKind kind);
[[nodiscard]] std::optional<ResidualKind> residual_kind(std::string_view name);

class ResidualStore {
 public:
  // For elements [first, first + count) of a tensor, all zero.
  [[nodiscard]] static Result<ResidualStore> create(ResidualKind kind, uint64_t first,
                                                    uint64_t count);
  void clear();  // all zero again

  [[nodiscard]] ResidualKind kind() const { return kind_; }
  [[nodiscard]] uint64_t first() const { return first_; }
  [[nodiscard]] uint64_t count() const { return count_; }
  [[nodiscard]] size_t element_bytes() const;  // without scales
  [[nodiscard]] size_t memory_bytes() const { return data_.size() + scale_memory_.size(); }

  // f32: the residual itself, element 0 being first(); null otherwise.
  [[nodiscard]] float* in_place();
  [[nodiscard]] const float* in_place() const;

  // Elements by their place in the tensor, in whole groups of 64 (the store's last may be shorter).
  // Storing rounds with draws of `key`.
  void load(uint64_t first, size_t count, float* work) const;
  void store(uint64_t first, size_t count, const float* work, DrawKey key);

  // i8: what an element and all behind it are stored as; the first of a group of 64.
  struct Levels {
    const int8_t* levels;
    const uint16_t* scales;
  };
  [[nodiscard]] Levels levels(uint64_t first) const;

  // Adds what another store keeps of the elements that both have. Where this one is zero and both
  // are of one kind, groups are copied and nothing is rounded.
  void merge(const ResidualStore& other, DrawKey key);

  // Raw content, for saving: data, then scales.
  [[nodiscard]] MutableBytes data() { return data_.view(); }
  [[nodiscard]] Bytes data() const { return data_.view(); }
  [[nodiscard]] std::span<uint16_t> scales() { return scales_; }
  [[nodiscard]] std::span<const uint16_t> scales() const { return scales_; }

 private:
  ResidualStore(ResidualKind kind, uint64_t first, uint64_t count, base::Buffer data,
                base::Buffer scales);
  [[nodiscard]] bool is_zero(uint64_t begin, uint64_t end) const;
  void copy_group(const ResidualStore& other, uint64_t begin, uint64_t end);

  ResidualKind kind_;
  uint64_t first_;
  uint64_t count_;
  base::Buffer data_;
  base::Buffer scale_memory_;
  std::span<uint16_t> scales_;  // i8: bf16 bits, one a group of the tensor's grid
};

}  // namespace scant::codec
