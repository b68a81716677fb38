// Activations as codes and as bf16. Included within the namespace of an instruction set.

// Sixteen floats, zeros behind the n-th; n may be larger.
SCANT_INLINE Vf load_up_to(const float* from, ptrdiff_t n) {
  if (n >= 16) return load_f(from);
  return n <= 0 ? zero_f() : load_first(from, static_cast<size_t>(n));
}

template <size_t kVectors>
SCANT_INLINE void fill_group(const Operand& operand, const float* from, ptrdiff_t columns,
                             int8_t* codes, size_t at) {
  Vf values[kVectors];
  Vi most = every_i(0);
  for (size_t i = 0; i < kVectors; ++i) {
    values[i] = load_up_to(from + 16 * i, columns - static_cast<ptrdiff_t>(16 * i));
    most = larger(most, both(as_integers(values[i]), every_i(0x7FFFFFFF)));
  }
  const GroupCodes of_group = group_codes(static_cast<uint32_t>(largest(most)));
  operand.scales[at] = of_group.scale;
  if (of_group.inverse == 0) {
    std::memset(codes, 0, 16 * kVectors);
    operand.shifts[at] = of_group.scale * 0.0F;
    operand.starts[at] = 0;
    return;
  }
  Vi sum = every_i(0);
  for (size_t i = 0; i < kVectors; ++i) {
    const Vi whole = nearest(times(values[i], every_f(of_group.inverse)));
    store_bytes(codes + 16 * i, whole);
    sum = sum_of(sum, whole);
  }
  const int32_t total = total_of(sum);
  operand.shifts[at] = of_group.scale * static_cast<float>(total);
  operand.starts[at] = -128 * total;
}

static void fill_codes(const Operand& operand, size_t panel) {
  const size_t wide = group_columns(operand.form);
  const size_t tokens = operand.tokens_of(panel);
  for (size_t group = 0; group < operand.groups; ++group) {
    const size_t at = operand.index(panel, group);
    int8_t* const codes = operand.codes(panel, group);
    const auto columns = static_cast<ptrdiff_t>(operand.columns - group * wide);
    for (size_t i = 0; i < tokens; ++i) {
      const float* const from =
          operand.values + (panel * operand.panel_tokens + i) * operand.columns + group * wide;
      if (wide == codec::kTileColumns) {
        fill_group<4>(operand, from, columns, codes + wide * i, at + i);
      } else {
        fill_group<2>(operand, from, columns, codes + wide * i, at + i);
      }
    }
    const size_t left = operand.panel_tokens - tokens;
    std::memset(codes + wide * tokens, 0, wide * left);
    std::memset(operand.scales + at + tokens, 0, sizeof(float) * left);
    std::memset(operand.shifts + at + tokens, 0, sizeof(float) * left);
    std::memset(operand.starts + at + tokens, 0, sizeof(int32_t) * left);
  }
}

// The upper 16 bits of each lane: bf16, nearest even. As codec::bf16_nearest() has it, a finite
// value stays finite and a NaN stays a NaN.
SCANT_INLINE Vi round_pairs(Vi bits) {
  const Vi magnitude = both(bits, every_i(0x7FFFFFFF));
  const Vi sign = both(bits, every_i(static_cast<int32_t>(0x80000000U)));
  const Vi odd = both(down<16>(magnitude), every_i(1));
  const Vi rounded = smaller(sum_of(magnitude, sum_of(odd, every_i(0x7FFF))), every_i(0x7F7FFFFF));
  // Infinity and NaN as they are, but the NaN's highest bit of 23 is set.
  const Vi strange = larger(magnitude, every_i(0x7F800000));
  const Vi quiet = either(magnitude, every_i(0x00400000));
  const Vi kept = where_above(magnitude, 0x7F800000, quiet, strange);
  const Vi result = where_above(magnitude, 0x7F7FFFFF, kept, rounded);
  return both(either(sign, result), every_i(static_cast<int32_t>(0xFFFF0000U)));
}

static void fill_rounded(const Operand& operand, size_t token) {
  const float* const from = operand.values + token * operand.columns;
  float* const to = operand.rounded(token);
  for (size_t c = 0; c < operand.groups * kPairColumns; c += 16) {
    const Vf values =
        load_up_to(from + c, static_cast<ptrdiff_t>(operand.columns) - static_cast<ptrdiff_t>(c));
    store_f(to + c, as_floats(round_pairs(as_integers(values))));
  }
}

// Columns from `column` on of a token, as bf16: a block of 64 bytes.
SCANT_INLINE void round_block(const Operand& operand, size_t token, size_t column, std::byte* to) {
  for (size_t c = column; c < column + kPairColumns; c += 16) {
    const auto left = static_cast<ptrdiff_t>(operand.columns) - static_cast<ptrdiff_t>(c);
    const Vf values = load_up_to(operand.values + token * operand.columns + c, left);
    store_upper_halves(to + 2 * (c - column), round_pairs(as_integers(values)));
  }
}

// For AMX: rows of tokens, or of pairs of columns.
static void fill_halves(const Operand& operand, size_t panel) {
  const size_t tokens = operand.panel_tokens;
  const size_t there = operand.tokens_of(panel);
  for (size_t block = 0; block < operand.groups; ++block) {
    auto* const to = reinterpret_cast<std::byte*>(operand.halves(panel, block));
    alignas(64) std::byte turned[kPanelTokens * 64];
    std::byte* const rows = operand.form == Form::left16 ? to : turned;
    for (size_t i = 0; i < there; ++i)
      round_block(operand, panel * tokens + i, block * kPairColumns, rows + 64 * i);
    std::memset(rows + 64 * there, 0, 64 * (tokens - there));
    if (operand.form == Form::left16) continue;
    if (tokens == kPanelTokens) {
      turn_rows(rows, 64, 4, to);
    } else {
      for (size_t pair = 0; pair < 16; ++pair) {
        for (size_t i = 0; i < tokens; ++i)
          std::memcpy(to + 4 * (pair * tokens + i), rows + 64 * i + 4 * pair, 4);
      }
    }
  }
}

// NOLINTNEXTLINE(misc-definitions-in-headers): each instruction set includes it once
void fill(const Operand& operand, size_t panel) {
  if (operand.form == Form::rounded) return fill_rounded(operand, panel);
  if (operand.form == Form::codes32 || operand.form == Form::codes64)
    return fill_codes(operand, panel);
  fill_halves(operand, panel);
}
