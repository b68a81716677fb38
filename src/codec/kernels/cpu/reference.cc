// The readable reference for kernels.h: what every vector kernel must equal, bit for bit, and what
// handles the last elements of a block everywhere.
#include <cmath>
#include <cstring>

#include "codec/kernels/cpu/internal.h"

namespace scant::codec {
namespace {

constexpr float kUnitsMax = 32767.0f;

// How many thresholds a magnitude in units has reached.
[[nodiscard]] size_t nearest_level(ValueKind kind, float magnitude) {
  size_t m = 0;
  while (m + 1 < levels(kind).size() && magnitude >= static_cast<float>(threshold_above(kind, m))) {
    ++m;
  }
  return m;
}

[[nodiscard]] uint32_t largest(const float* values, size_t n) {
  uint32_t result = 0;
  for (size_t i = 0; i < n; ++i) result = std::max(result, magnitude_bits(values[i]));
  return result;
}

[[nodiscard]] float mean_magnitude(const float* values, size_t n) {
  const float share = 1.0f / static_cast<float>(n);
  float lanes[kSumLanes] = {};
  for (size_t i = 0; i < n; ++i) lanes[i % kSumLanes] += std::fabs(values[i]) * share;
  return fold(lanes);
}

// Least squares over levels chosen with the scale `guess`: sum(|a| * l) / sum(l * l). Magnitudes
// count in whole units, which makes both sums exact integers.
[[nodiscard]] float least_squares(ValueKind kind, const float* values, size_t n, float guess) {
  const auto table = levels(kind);
  const float inverse = static_cast<float>(units(kind)) / guess;
  int32_t products = 0;
  int32_t squares = 0;
  for (size_t i = 0; i < n; ++i) {
    const float rounded = std::nearbyint(std::fabs(values[i]) * inverse);
    const float magnitude = std::min(rounded, kUnitsMax);
    const int32_t level = table[nearest_level(kind, magnitude)];
    products += static_cast<int32_t>(magnitude) * level;
    squares += level * level;
  }
  return guess * (1.0f / static_cast<float>(units(kind))) *
         (static_cast<float>(products) / static_cast<float>(squares));
}

[[nodiscard]] GroupScale named(uint32_t scale_bits, uint32_t base, float numerator) {
  GroupScale result{.code = scale_code(scale_bits, base)};
  if (result.code == 0) return result;
  result.scale = scale_value(base + result.code);
  result.inverse = numerator / result.scale;
  return result;
}

[[nodiscard]] GroupScale nearest_scale(ValueKind kind, const float* values, size_t n,
                                       uint32_t base) {
  if (kind == ValueKind::q1) {  // one level: its best scale is known at once
    return named(scale_bits_nearest(mean_magnitude(values, n) / float{kLevels1[0]}), base, 0);
  }
  const ScaleStart start = scale_start(kind);
  const float guess = start.of_mean * mean_magnitude(values, n) +
                      start.of_max * std::bit_cast<float>(largest(values, n));
  if (guess < kScaleMin) return {};
  const float scale = fits_scale(kind) ? least_squares(kind, values, n, guess) : guess;
  return named(scale_bits_nearest(scale), base, static_cast<float>(units(kind)));
}

[[nodiscard]] GroupScale group_scale(ValueKind kind, bool stochastic, const float* values, size_t n,
                                     uint32_t base) {
  if (kind != ValueKind::q8 && !stochastic) return nearest_scale(kind, values, n, base);
  const float top = kind == ValueKind::q8 ? 127.0f : static_cast<float>(levels(kind).back());
  return named(scale_bits_up(std::bit_cast<float>(largest(values, n)) / top), base, 1.0f);
}

// Codes: q8 the level itself; else the sign in the highest bit and a magnitude's number.
[[nodiscard]] uint8_t code_of(ValueKind kind, bool negative, size_t m) {
  return static_cast<uint8_t>((negative ? 1u << (bits(kind) - 1) : 0u) | m);
}

[[nodiscard]] uint8_t nearest_code(ValueKind kind, float value, const GroupScale& group) {
  if (kind == ValueKind::q8) {
    const float level = std::nearbyint(value * group.inverse);
    return static_cast<uint8_t>(static_cast<int8_t>(std::clamp(level, -127.0f, 127.0f)));
  }
  const float magnitude = std::trunc(std::fabs(value) * group.inverse);
  return code_of(kind, std::signbit(value), nearest_level(kind, magnitude));
}

// Each level is taken with the probability that makes the mean the value: between two levels, and
// between the two signs of the lowest one.
[[nodiscard]] uint8_t stochastic_code(ValueKind kind, float value, const GroupScale& group,
                                      float draw) {
  const float x = value * group.inverse;
  if (kind == ValueKind::q8) {
    return static_cast<uint8_t>(
        static_cast<int8_t>(std::clamp(std::floor(x + draw), -127.0f, 127.0f)));
  }
  const auto table = levels(kind);
  size_t m = 0;
  for (size_t next = 1; next < table.size(); ++next) {
    const auto gap = static_cast<float>(int{table[next]} - int{table[next - 1]});
    if (std::fabs(x) >= static_cast<float>(table[next - 1]) + draw * gap) m = next;
  }
  return code_of(kind, x < (2.0f * draw - 1.0f) * static_cast<float>(table[0]), m);
}

[[nodiscard]] float decoded(ValueKind kind, uint8_t code, float scale) {
  if (kind == ValueKind::q8) return static_cast<float>(static_cast<int8_t>(code)) * scale;
  const unsigned sign = bits(kind) - 1;
  const auto level = static_cast<float>(levels(kind)[code & ((1u << sign) - 1)]);
  return (code >> sign != 0 ? -level : level) * scale;
}

// Codes of one group; work becomes what is left. `first`: of the group within the block.
void quantise_group(ValueKind kind, Rounding rounding, size_t first, float* work, size_t n,
                    uint32_t base, uint8_t* scale, uint8_t* group_codes) {
  const GroupScale group = group_scale(kind, rounding.stochastic, work, n, base);
  *scale = group.code;
  for (size_t i = 0; i < n; ++i) {
    group_codes[i] = rounding.stochastic
                         ? stochastic_code(kind, work[i], group, draw_unit(rounding.key, first + i))
                         : nearest_code(kind, work[i], group);
    work[i] -= decoded(kind, group_codes[i], group.scale);
  }
}

void quantise_groups(ValueKind kind, Rounding rounding, size_t first, float* work, size_t n,
                     uint32_t base, uint8_t* scales, uint8_t* all_codes) {
  for (size_t i = 0; i < n; i += kGroupElements) {
    quantise_group(kind, rounding, first + i, work + i, std::min(kGroupElements, n - i), base,
                   scales + i / kGroupElements, all_codes + i);
  }
}

// 256 codes of `width` bits as eight streams of 32-bit words.
void pack_quad(const uint8_t* quad_codes, unsigned width, std::byte* to) {
  for (size_t lane = 0; lane < 8; ++lane) {
    uint32_t words[8] = {};
    for (unsigned i = 0; i < 32; ++i) {
      words[i * width / 32] |= uint32_t{quad_codes[8 * i + lane]} << (i * width % 32);
    }
    for (size_t k = 0; k < width; ++k) std::memcpy(to + 4 * (8 * k + lane), &words[k], 4);
  }
}

void unpack_quad(const std::byte* from, unsigned width, uint8_t* quad_codes) {
  for (size_t lane = 0; lane < 8; ++lane) {
    for (unsigned i = 0; i < 32; ++i) {
      uint32_t word = 0;
      std::memcpy(&word, from + 4 * (8 * (i * width / 32) + lane), 4);
      quad_codes[8 * i + lane] =
          static_cast<uint8_t>((word >> (i * width % 32)) & ((1u << width) - 1));
    }
  }
}

void quantise(ValueKind kind, Rounding rounding, float* work, size_t quads, uint32_t base,
              const GroupMagnitudes*, uint8_t* scales, std::byte* codes, Ahead) {
  for (size_t q = 0; q < quads; ++q) {
    uint8_t quad_codes[kQuadElements];
    quantise_groups(kind, rounding, q * kQuadElements, work + q * kQuadElements, kQuadElements,
                    base, scales + 4 * q, quad_codes);
    std::byte* const to = codes + 32 * bits(kind) * q;
    if (kind != ValueKind::q3) {
      pack_quad(quad_codes, bits(kind), to);
      continue;
    }
    uint8_t low[kQuadElements];
    uint8_t sign[kQuadElements];
    for (size_t i = 0; i < kQuadElements; ++i) {
      low[i] = quad_codes[i] & 3;
      sign[i] = static_cast<uint8_t>(quad_codes[i] >> 2);
    }
    pack_quad(low, 2, to);
    pack_quad(sign, 1, to + 64);
  }
}

void quantise_rest(ValueKind kind, Rounding rounding, size_t first, float* work, size_t n,
                   uint32_t base, uint8_t* scales, std::byte* codes) {
  uint8_t rest_codes[kQuadElements];
  quantise_groups(kind, rounding, first, work, n, base, scales, rest_codes);
  const unsigned width = bits(kind);
  std::fill_n(codes, rest_bytes(kind, n), std::byte{0});
  for (size_t i = 0; i < n; ++i) {
    const unsigned wide = unsigned{rest_codes[i]} << (i * width % 8);
    std::byte* const at = codes + i * width / 8;
    at[0] |= static_cast<std::byte>(wide);
    if (wide > 0xFF) at[1] |= static_cast<std::byte>(wide >> 8);
  }
}

// Calls put(i, value) for each value of a quad.
template <typename Put>
void read_quads(ValueKind kind, const CodedValues& source, size_t quads, const Put& put) {
  for (size_t q = 0; q < quads; ++q) {
    const std::byte* const from = source.codes + 32 * bits(kind) * q;
    uint8_t quad_codes[kQuadElements];
    unpack_quad(from, kind == ValueKind::q3 ? 2 : bits(kind), quad_codes);
    if (kind == ValueKind::q3) {
      uint8_t sign[kQuadElements];
      unpack_quad(from + 64, 1, sign);
      for (size_t i = 0; i < kQuadElements; ++i) {
        quad_codes[i] = static_cast<uint8_t>(quad_codes[i] | (sign[i] << 2));
      }
    }
    for (size_t i = 0; i < kQuadElements; ++i) {
      const uint8_t scale = source.scales[4 * q + i / kGroupElements];
      put(q * kQuadElements + i,
          decoded(kind, quad_codes[i], scale == 0 ? 0.0f : scale_value(source.base + scale)));
    }
  }
}

void add_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads, float* sum) {
  for (size_t s = 0; s < count; ++s)
    read_quads(kind, sources[s], quads, [&](size_t i, float value) { sum[i] += value; });
}

void mean_quads(ValueKind kind, const CodedValues* sources, size_t count, size_t quads,
                float weight, float* out) {
  std::fill_n(out, quads * kQuadElements, 0.0f);
  add_quads(kind, sources, count, quads, out);
  for (size_t i = 0; i < quads * kQuadElements; ++i) out[i] *= weight;
}

void decode(ValueKind kind, const CodedValues& source, size_t n, float* out) {
  const size_t quads = n / kQuadElements;
  read_quads(kind, source, quads, [&](size_t i, float value) { out[i] = value; });
  const size_t whole = quads * kQuadElements;
  const std::byte* const rest = source.codes + whole * bits(kind) / 8;
  const unsigned width = bits(kind);
  for (size_t i = 0; i < n - whole; ++i) {
    const size_t at = i * width / 8;
    unsigned wide = std::to_integer<unsigned>(rest[at]);
    if (i * width % 8 + width > 8) wide |= std::to_integer<unsigned>(rest[at + 1]) << 8;
    const auto code = static_cast<uint8_t>((wide >> (i * width % 8)) & ((1u << width) - 1));
    const uint8_t scale = source.scales[(whole + i) / kGroupElements];
    out[whole + i] = decoded(kind, code, scale == 0 ? 0.0f : scale_value(source.base + scale));
  }
}

Accumulated accumulate(const float* gradient, float* work, size_t n, float decay) {
  reference::Sums sums;
  reference::accumulate(gradient, work, 0, n, decay, sums);
  return {sums.magnitude_max, fold(sums.lanes)};
}

Accumulated accumulate_groups(const float* gradient, float* work, size_t n, float decay,
                              GroupMagnitudes& groups, Ahead) {
  const Accumulated result = accumulate(gradient, work, n, decay);
  for (size_t g = 0; g < n / kGroupElements; ++g) {
    const float* const group = work + g * kGroupElements;
    groups.mean[g] = mean_magnitude(group, kGroupElements);
    groups.largest[g] = std::bit_cast<float>(largest(group, kGroupElements));
  }
  return result;
}

Accumulated accumulate_groups_i8(const float* gradient, const int8_t* stored,
                                 const uint16_t* scales, float* work, size_t n, float decay,
                                 GroupMagnitudes& groups, Ahead ahead) {
  reference::load_i8(stored, scales, n, work);
  return accumulate_groups(gradient, work, n, decay, groups, ahead);
}

Selected select(const float* gradient, float* work, size_t n, float decay, float threshold,
                uint16_t* positions, float* values) {
  reference::Sums sums;
  const size_t count =
      reference::select(gradient, work, 0, n, decay, threshold, positions, values, sums);
  return {count, fold(sums.lanes)};
}

void store_bf16(const float* work, size_t n, DrawKey key, uint16_t* stored) {
  reference::store_bf16(work, 0, n, key, stored);
}

void store_i8(const float* work, size_t n, DrawKey key, int8_t* stored, uint16_t* scales) {
  reference::store_i8(work, 0, n, key, stored, scales);
}

}  // namespace

namespace reference {

void accumulate(const float* gradient, float* work, size_t first, size_t n, float decay,
                Sums& sums) {
  for (size_t i = first; i < first + n; ++i) {
    if (gradient != nullptr) work[i] = gradient[i] + decay * work[i];
    sums.lanes[i % kSumLanes] += work[i] * work[i];
    sums.magnitude_max = std::max(sums.magnitude_max, magnitude_bits(work[i]));
  }
}

size_t select(const float* gradient, float* work, size_t first, size_t n, float decay,
              float threshold, uint16_t* positions, float* values, Sums& sums) {
  accumulate(gradient, work, first, n, decay, sums);
  size_t count = 0;
  for (size_t i = first; i < first + n; ++i) {
    if (std::fabs(work[i]) < threshold) continue;  // a NaN is listed
    positions[count] = static_cast<uint16_t>(i);
    values[count] = work[i];
    ++count;
  }
  return count;
}

void narrow(ValueKind kind, float* work, size_t n, std::byte* values) {
  for (size_t i = 0; i < n; ++i) {
    const bool half = kind == ValueKind::f16;
    const uint16_t narrowed = half ? f16_nearest(work[i]) : bf16_nearest(work[i]);
    std::memcpy(values + 2 * i, &narrowed, 2);
    const float widened = half ? f16_widen(narrowed) : bf16_widen(narrowed);
    work[i] = is_finite(work[i]) ? work[i] - widened : 0.0f;
  }
}

void add_values(ValueKind kind, const std::byte* values, size_t n, float* sum) {
  for (size_t i = 0; i < n; ++i) {
    if (kind == ValueKind::f32) {
      float value = 0;
      std::memcpy(&value, values + 4 * i, 4);
      sum[i] += value;
    } else {
      uint16_t value = 0;
      std::memcpy(&value, values + 2 * i, 2);
      sum[i] += kind == ValueKind::f16 ? f16_widen(value) : bf16_widen(value);
    }
  }
}

void store_bf16(const float* work, size_t first, size_t n, DrawKey key, uint16_t* stored) {
  for (size_t i = first; i < first + n; ++i) stored[i] = bf16_stochastic(work[i], draw16(key, i));
}

void load_bf16(const uint16_t* stored, size_t n, float* work) {
  for (size_t i = 0; i < n; ++i) work[i] = bf16_widen(stored[i]);
}

void store_i8(const float* work, size_t first, size_t n, DrawKey key, int8_t* stored,
              uint16_t* scales) {
  for (size_t group = first; group < first + n; group += kGroupElements) {
    const size_t end = std::min(group + kGroupElements, first + n);
    const uint16_t scale = byte_scale(largest(work + group, end - group));
    const float inverse = scale == 0 ? 0.0f : 1.0f / bf16_widen(scale);
    scales[group / kGroupElements] = scale;
    for (size_t i = group; i < end; ++i) {
      const float level = std::nearbyint(work[i] * inverse + draw_offset(key, i));
      stored[i] = static_cast<int8_t>(std::clamp(level, -128.0f, 127.0f));
    }
  }
}

void load_i8(const int8_t* stored, const uint16_t* scales, size_t n, float* work) {
  for (size_t i = 0; i < n; ++i) {
    work[i] = static_cast<float>(stored[i]) * bf16_widen(scales[i / kGroupElements]);
  }
}

void finish(float* sum, size_t n, float weight, float* out) {
  for (size_t i = 0; i < n; ++i) {
    out[i] = weight * sum[i];
    sum[i] = 0;
  }
}

}  // namespace reference

const Kernels kScalarKernels = {
    .name = "scalar",
    .accumulate = accumulate,
    .accumulate_groups = accumulate_groups,
    .accumulate_groups_i8 = accumulate_groups_i8,
    .select = select,
    .quantise = quantise,
    .quantise_rest = quantise_rest,
    .add_quads = add_quads,
    .mean_quads = mean_quads,
    .decode = decode,
    .narrow = reference::narrow,
    .add_values = reference::add_values,
    .store_bf16 = store_bf16,
    .load_bf16 = reference::load_bf16,
    .store_i8 = store_i8,
    .load_i8 = reference::load_i8,
    .finish = reference::finish,
    .flush = [] {},
    .times_right = reference::times_right,
    .add_times_right = reference::add_times_right,
    .times_left = reference::times_left,
    .add_product = reference::add_product,
    .column_products = reference::column_products,
    .take_columns = reference::take_columns,
};

uint32_t scale_base(ValueKind kind, uint32_t magnitude_max) {
  // The least-squares scale is at most the maximum over the lowest level; one octave is for what
  // half units round up.
  const float lowest = kind == ValueKind::q8 ? 127.0f : static_cast<float>(levels(kind).front());
  const uint32_t top = scale_bits_up(std::bit_cast<float>(magnitude_max) / lowest) + 8;
  return top > 255 ? top - 255 : 0;
}

}  // namespace scant::codec
