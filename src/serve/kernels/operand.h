// Activations in the forms that kinds of weights read: docs/serve.md, "Products". A panel is up to
// 16 tokens side by side, as many as a tile register has rows; where fewer are multiplied the one
// panel has only those. What fills up the last panel, and rows of weights, is zero.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/aligned.h"
#include "codec/tile/tile.h"

namespace scant::serve {

inline constexpr size_t kPanelTokens = 16;
inline constexpr size_t kPairColumns = 32;  // of a block of bf16: 16 pairs

enum class Form : uint8_t {
  plain,    // floats as they were given
  codes32,  // codes of 8 bits, a scale for each 32 columns
  codes64,  // the same, for each 64 columns
  rounded,  // floats rounded to bf16, rows filled up to whole blocks
  left16,   // bf16: panel, block, token, column
  right16,  // bf16: panel, block, pair of columns, token, column of the pair
};
inline constexpr size_t kFormCount = 6;

[[nodiscard]] constexpr size_t group_columns(Form form) {
  return form == Form::plain ? 1 : form == Form::codes64 ? codec::kTileColumns : kPairColumns;
}

struct Operand {
  Form form = Form::plain;
  const float* values = nullptr;
  size_t tokens = 0;
  size_t columns = 0;
  size_t groups = 0;  // of a row; of blocks likewise
  size_t panel_tokens = 0;
  size_t panels = 0;
  std::byte* elements = nullptr;  // codes, floats or bf16
  // Of codes: [panel][group][token of the panel].
  float* scales = nullptr;
  float* shifts = nullptr;    // scale times the sum of the codes
  int32_t* starts = nullptr;  // -128 times that sum

  [[nodiscard]] size_t index(size_t panel, size_t group) const {
    return (panel * groups + group) * panel_tokens;
  }
  [[nodiscard]] int8_t* codes(size_t panel, size_t group) const {
    return reinterpret_cast<int8_t*>(elements) + index(panel, group) * group_columns(form);
  }
  [[nodiscard]] uint16_t* halves(size_t panel, size_t group) const {
    return reinterpret_cast<uint16_t*>(elements) + index(panel, group) * kPairColumns;
  }
  [[nodiscard]] float* rounded(size_t token) const {
    return reinterpret_cast<float*>(elements) + token * groups * kPairColumns;
  }
  [[nodiscard]] size_t tokens_of(size_t panel) const {
    return std::min(panel_tokens, tokens - panel * panel_tokens);
  }
};

// The memory of one form, kept from call to call.
class OperandMemory {
 public:
  // Shapes the form and its memory; nothing is written. May throw std::bad_alloc.
  Operand& shape(Form form, const float* values, size_t tokens, size_t columns);
  [[nodiscard]] Operand& operand() { return operand_; }
  [[nodiscard]] uint64_t memory_bytes() const { return memory_.capacity(); }
  bool ready = false;  // holds what was last set

 private:
  Operand operand_;
  base::AlignedVector<std::byte> memory_;
};

}  // namespace scant::serve
