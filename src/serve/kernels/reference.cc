// The plain ways to multiply: they define the bits that all other implementations return, and runs
// where no other does. One row of weights at a time.
#include <algorithm>
#include <new>

#include "base/check.h"
#include "base/little_endian.h"
#include "codec/quantise/levels.h"
#include "codec/tile/sparse.h"
#include "serve/file/rows.h"
#include "serve/kernels/arithmetic.h"
#include "serve/kernels/targets.h"

namespace scant::serve {
namespace {

using codec::kTileColumns;
using codec::kTileRows;
using codec::ValueKind;

template <Form kPairs>
Form form_of(TensorKind kind, size_t) {
  switch (kind) {
    case TensorKind::f32:
    case TensorKind::f16:
      return Form::plain;
    case TensorKind::bf16:
    case TensorKind::bf16_tiles:
    case TensorKind::sparse_bf16:
      return kPairs;
    case TensorKind::q4_0:
    case TensorKind::q4_1:
    case TensorKind::q8_0:
      return Form::codes32;
    default:
      return Form::codes64;
  }
}

// --- Activations

void fill_codes(const Operand& operand, size_t panel, size_t group) {
  const size_t wide = group_columns(operand.form);
  int8_t* const codes = operand.codes(panel, group);
  const size_t at = operand.index(panel, group);
  for (size_t i = 0; i < operand.panel_tokens; ++i) {
    const bool there = i < operand.tokens_of(panel);
    const size_t columns = there ? std::min(wide, operand.columns - group * wide) : 0;
    const float* const from =
        operand.values +
        (there ? (panel * operand.panel_tokens + i) * operand.columns + group * wide : 0);
    uint32_t most = 0;
    for (size_t c = 0; c < columns; ++c) most = std::max(most, codec::magnitude_bits(from[c]));
    const GroupCodes of_group = group_codes(most);
    int32_t sum = 0;
    for (size_t c = 0; c < wide; ++c) {
      const bool zero = c >= columns || of_group.inverse == 0;
      const auto code =
          zero ? int8_t{0} : static_cast<int8_t>(std::lrint(from[c] * of_group.inverse));
      codes[i * wide + c] = code;
      sum += code;
    }
    operand.scales[at + i] = of_group.scale;
    operand.shifts[at + i] = of_group.scale * static_cast<float>(sum);
    operand.starts[at + i] = -128 * sum;
  }
}

void fill_rounded(const Operand& operand, size_t token) {
  const float* const from = operand.values + token * operand.columns;
  float* const to = operand.rounded(token);
  for (size_t c = 0; c < operand.groups * kPairColumns; ++c)
    to[c] = c < operand.columns ? codec::bf16_widen(codec::bf16_nearest(from[c])) : 0.0F;
}

uint16_t half_of(const Operand& operand, size_t token, size_t column) {
  if (token >= operand.tokens || column >= operand.columns) return 0;
  return codec::bf16_nearest(operand.values[token * operand.columns + column]);
}

void fill_halves(const Operand& operand, size_t panel, size_t block) {
  uint16_t* const to = operand.halves(panel, block);
  const size_t tokens = operand.panel_tokens;
  for (size_t i = 0; i < tokens; ++i) {
    for (size_t c = 0; c < kPairColumns; ++c) {
      const uint16_t half = half_of(operand, panel * tokens + i, block * kPairColumns + c);
      const size_t place =
          operand.form == Form::left16 ? i * kPairColumns + c : (c / 2 * tokens + i) * 2 + c % 2;
      to[place] = half;
    }
  }
}

void fill(const Operand& operand, size_t panel) {
  if (operand.form == Form::rounded) return fill_rounded(operand, panel);
  for (size_t group = 0; group < operand.groups; ++group) {
    if (operand.form == Form::codes32 || operand.form == Form::codes64) {
      fill_codes(operand, panel, group);
    } else {
      fill_halves(operand, panel, group);
    }
  }
}

// --- Weights of a strip

// Levels and scales of 16 rows.
struct Levels {
  int8_t* levels = nullptr;  // [row][columns of whole groups]
  float* scales = nullptr;   // [group][row]
  float* leasts = nullptr;   // of Q4_1
};

int level_of(ValueKind kind, unsigned code) {
  if (kind == ValueKind::q8) return static_cast<int8_t>(code);
  const unsigned sign = code >> (codec::bits(kind) - 1);
  const unsigned magnitude = code & ((1U << (codec::bits(kind) - 1)) - 1);
  const int level = codec::levels(kind)[magnitude];
  return sign != 0 ? -level : level;
}

unsigned code_at(ValueKind kind, const std::byte* tile, size_t row, size_t column) {
  const auto place =
      codec::code_place(kind, static_cast<uint32_t>(row), static_cast<uint32_t>(column));
  const unsigned width = kind == ValueKind::q3 ? 2 : codec::bits(kind);
  const unsigned low =
      std::to_integer<unsigned>(tile[place.byte]) >> place.bit & ((1U << width) - 1);
  if (kind != ValueKind::q3) return low;
  return low | (std::to_integer<unsigned>(tile[place.sign_byte]) >> place.sign_bit & 1U) << 2U;
}

void levels_of_tiles(const Tensor& weights, uint64_t strip, size_t groups, const Levels& out) {
  const ValueKind kind = strip_values(weights.kind);
  const Bytes bytes = strip_of(weights, strip);
  const uint16_t base = base_of(weights, strip);
  const std::byte* const codes = bytes.data() + codec::scale_bytes(kind, weights.shape.columns);
  for (size_t group = 0; group < groups; ++group) {
    for (size_t row = 0; row < kTileRows; ++row) {
      const size_t at = group * kTileRows + row;
      out.scales[at] = tile_scale(base, std::to_integer<uint8_t>(bytes[at]));
      for (size_t c = 0; c < kTileColumns; ++c) {
        const unsigned code = code_at(kind, codes + group * codec::tile_code_bytes(kind), row, c);
        out.levels[(row * groups + group) * kTileColumns + c] =
            static_cast<int8_t>(level_of(kind, code));
      }
    }
  }
}

void levels_of_sparse(const Tensor& weights, uint64_t strip, size_t groups, const Levels& out) {
  const ValueKind kind = strip_values(weights.kind);
  const Bytes bytes = strip_of(weights, strip);
  const uint16_t base = base_of(weights, strip);
  const std::byte* from =
      bytes.data() + codec::sparse_strip_head_bytes(kind, weights.shape.columns);
  const std::byte* const scales = bytes.data() + sizeof(uint64_t) * kTileRows * groups;
  const unsigned width = codec::bits(kind);
  for (size_t at = 0; at < groups * kTileRows; ++at) {
    const auto mask = base::load_little<uint64_t>(bytes.data() + sizeof(uint64_t) * at);
    out.scales[at] = tile_scale(base, std::to_integer<uint8_t>(scales[at]));
    int8_t* const to = out.levels + (at % kTileRows * groups + at / kTileRows) * kTileColumns;
    size_t kept = 0;
    for (size_t c = 0; c < kTileColumns; ++c) {
      if ((mask >> c & 1U) == 0) {
        to[c] = 0;
        continue;
      }
      const size_t bit = kept++ * width;
      const unsigned code =
          std::to_integer<unsigned>(from[bit / 8]) >> (bit % 8) & ((1U << width) - 1);
      to[c] = static_cast<int8_t>(level_of(kind, code));
    }
    from += codec::sparse_group_bytes(kind, kept);
  }
}

void levels_of_blocks(const Tensor& weights, uint64_t strip, size_t groups, const Levels& out) {
  const uint64_t block = *row_bytes(weights.kind, kGgufBlock);
  const uint64_t rows = std::min<uint64_t>(kTileRows, weights.shape.rows - strip * kTileRows);
  for (size_t row = 0; row < rows; ++row) {
    const uint64_t at = (strip * kTileRows + row) * groups * block;
    for (size_t group = 0; group < groups; ++group) {
      const std::byte* const from = weights.bytes.data() + at + group * block;
      const bool has_least = weights.kind == TensorKind::q4_1;
      const std::byte* const codes = from + (has_least ? 4 : 2);
      out.scales[group * kTileRows + row] = codec::f16_widen(base::load_little<uint16_t>(from));
      if (has_least)
        out.leasts[group * kTileRows + row] =
            codec::f16_widen(base::load_little<uint16_t>(from + 2));
      int8_t* const to = out.levels + (row * groups + group) * kGgufBlock;
      for (size_t c = 0; c < kGgufBlock; ++c) {
        if (weights.kind == TensorKind::q8_0) {
          to[c] = std::to_integer<int8_t>(codes[c]);
        } else {
          const unsigned both = std::to_integer<unsigned>(codes[c % 16]);
          const int code = static_cast<int>(c < 16 ? both & 15U : both >> 4U);
          to[c] = static_cast<int8_t>(has_least ? code : code - 8);
        }
      }
    }
  }
}

// Floats of 16 rows of a strip, filled up to `row` floats each. `work`: room for as many again.
void floats_of(const Tensor& weights, uint64_t strip, size_t row, float* work, float* out) {
  const size_t columns = weights.shape.columns;
  const size_t rows = std::min<uint64_t>(kTileRows, weights.shape.rows - strip * kTileRows);
  if (row_by_row(weights.kind)) {
    const uint64_t of_row = *row_bytes(weights.kind, columns);
    widen_rows(weights.kind, weights.bytes.subspan(strip * kTileRows * of_row, rows * of_row),
               columns, work);
  } else if (sparse(weights.kind)) {
    codec::unpack_sparse_strip(ValueKind::bf16, strip_of(weights, strip), 0, 0, rows, columns,
                               work);
  } else {
    auto* const halves = reinterpret_cast<uint16_t*>(out);
    codec::unpack_strip16(strip_of(weights, strip), 0, rows, columns, halves);
    for (size_t i = 0; i < rows * columns; ++i) work[i] = codec::bf16_widen(halves[i]);
  }
  for (size_t i = 0; i < rows; ++i) {
    std::copy_n(work + i * columns, columns, out + i * row);
    std::fill_n(out + i * row + columns, row - columns, 0.0F);
  }
}

// --- Products

float sum_of_codes(const Operand& x, size_t token, const Levels& weights, size_t row, bool leasts) {
  const size_t wide = group_columns(x.form);
  const size_t panel = token / x.panel_tokens;
  const size_t place = token % x.panel_tokens;
  float sum = 0;
  for (size_t group = 0; group < x.groups; ++group) {
    const int8_t* const codes = x.codes(panel, group) + place * wide;
    const int8_t* const levels = weights.levels + (row * x.groups + group) * wide;
    int32_t whole = 0;
    for (size_t c = 0; c < wide; ++c) whole += int32_t{levels[c]} * codes[c];
    const size_t at = x.index(panel, group) + place;
    const size_t of_row = group * kTileRows + row;
    sum = std::fma(static_cast<float>(whole), weights.scales[of_row] * x.scales[at], sum);
    if (leasts) sum = std::fma(weights.leasts[of_row], x.shifts[at], sum);
  }
  return sum;
}

float sum_of_pairs(const float* weights, const float* x, size_t blocks) {
  float sum = 0;
  for (size_t block = 0; block < blocks; ++block) {
    float even = 0;
    float odd = 0;
    for (size_t c = block * kPairColumns; c < (block + 1) * kPairColumns; c += 2) {
      even = flushed_fma(flush(weights[c]), flush(x[c]), even);
      odd = flushed_fma(flush(weights[c + 1]), flush(x[c + 1]), odd);
    }
    sum = flush(sum + flush(even + odd));
  }
  return sum;
}

// `x`: blocks of halves, `step` from each to the next.
float sum_of_dots(const float* weights, const uint16_t* x, size_t step, size_t blocks) {
  float chains[2] = {};
  for (size_t block = 0; block < blocks; ++block, weights += kPairColumns, x += step) {
    for (size_t c = 0; c < kPairColumns; c += 2) {
      float& chain = chains[c / 2 % 2];
      chain = flushed_fma(flush(weights[c + 1]), flush(codec::bf16_widen(x[c + 1])), chain);
      chain = flushed_fma(flush(weights[c]), flush(codec::bf16_widen(x[c])), chain);
    }
  }
  return flush(chains[0] + chains[1]);
}

// The same of a sparse row: a pair of columns has a lane.
float sum_of_dot_lanes(const float* weights, const uint16_t* x, size_t step, size_t blocks) {
  float lanes[16] = {};
  for (size_t block = 0; block < blocks; ++block, weights += kPairColumns, x += step) {
    for (size_t c = 0; c < kPairColumns; c += 2) {
      float& lane = lanes[c / 2];
      lane = flushed_fma(flush(weights[c + 1]), flush(codec::bf16_widen(x[c + 1])), lane);
      lane = flushed_fma(flush(weights[c]), flush(codec::bf16_widen(x[c])), lane);
    }
  }
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] = flush(lanes[i] + lanes[i + half]);
  }
  return lanes[0];
}

float sum_of_lanes(const float* weights, const float* x, size_t columns) {
  float lanes[16] = {};
  for (size_t c = 0; c < base::align_up(columns, 16); ++c)
    lanes[c % 16] = std::fma(weights[c], c < columns ? x[c] : 0.0F, lanes[c % 16]);
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

float sum_of(TensorKind kind, const Operand& x, size_t token, const float* weights) {
  if (x.form == Form::rounded) return sum_of_pairs(weights, x.rounded(token), x.groups);
  if (x.form == Form::plain) return sum_of_lanes(weights, x.values + token * x.columns, x.columns);
  const uint16_t* const first =
      x.halves(token / x.panel_tokens, 0) + token % x.panel_tokens * kPairColumns;
  const size_t step = x.panel_tokens * kPairColumns;
  return sparse(kind) ? sum_of_dot_lanes(weights, first, step, x.groups)
                      : sum_of_dots(weights, first, step, x.groups);
}

size_t padded_columns(size_t columns) { return base::align_up(columns, kTileColumns); }

size_t scratch_bytes(const Tensor& weights, size_t) {
  return 2 * sizeof(float) * kTileRows * padded_columns(weights.shape.columns);
}

void multiply_levels(const Part& part, uint64_t strip) {
  const Tensor& weights = *part.weights;
  const Operand& x = *part.operand;
  const size_t elements = kTileRows * padded_columns(weights.shape.columns);
  const Levels levels{.levels = reinterpret_cast<int8_t*>(part.scratch + sizeof(float) * elements),
                      .scales = reinterpret_cast<float*>(part.scratch),
                      .leasts = reinterpret_cast<float*>(part.scratch) + kTileRows * x.groups};
  if (row_by_row(weights.kind)) {
    levels_of_blocks(weights, strip, x.groups, levels);
  } else if (sparse(weights.kind)) {
    levels_of_sparse(weights, strip, x.groups, levels);
  } else {
    levels_of_tiles(weights, strip, x.groups, levels);
  }
  const uint64_t first = strip * kTileRows;
  for (uint64_t row = 0; row < std::min<uint64_t>(kTileRows, weights.shape.rows - first); ++row) {
    for (size_t token = 0; token < x.tokens; ++token)
      part.out[token * part.stride + first + row] =
          sum_of_codes(x, token, levels, row, weights.kind == TensorKind::q4_1);
  }
}

void multiply_floats(const Part& part, uint64_t strip) {
  const Tensor& weights = *part.weights;
  const Operand& x = *part.operand;
  const size_t wide = padded_columns(weights.shape.columns);
  auto* const floats = reinterpret_cast<float*>(part.scratch);
  floats_of(weights, strip, wide, floats + kTileRows * wide, floats);
  const uint64_t first = strip * kTileRows;
  for (uint64_t row = 0; row < std::min<uint64_t>(kTileRows, weights.shape.rows - first); ++row) {
    for (size_t token = 0; token < x.tokens; ++token) {
      const float* const of_row = floats + row * wide;
      part.out[token * part.stride + first + row] = sum_of(weights.kind, x, token, of_row);
    }
  }
}

void multiply_part(const Part& part) {
  const Form form = part.operand->form;
  for (uint64_t strip = part.strip_first; strip < part.strip_first + part.strips; ++strip) {
    if (form == Form::plain || form == Form::rounded || form == Form::left16) {
      multiply_floats(part, strip);
    } else {
      multiply_levels(part, strip);
    }
  }
}

void begin(size_t) {}
void end() {}

}  // namespace

const KernelTarget kReferenceTarget{.name = "reference",
                                    .form = form_of<Form::rounded>,
                                    .fill = fill,
                                    .scratch_bytes = scratch_bytes,
                                    .multiply = multiply_part,
                                    .begin = begin,
                                    .end = end};
const KernelTarget kDotReferenceTarget{.name = "reference of dots",
                                       .form = form_of<Form::left16>,
                                       .fill = fill,
                                       .scratch_bytes = scratch_bytes,
                                       .multiply = multiply_part,
                                       .begin = begin,
                                       .end = end,
                                       .reference = &kDotReferenceTarget};

}  // namespace scant::serve
