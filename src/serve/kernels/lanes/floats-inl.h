// Products of f32 and f16: column c in lane c mod 16. Included within the namespace of an
// instruction set.

template <bool kHalves>
SCANT_INLINE Vf load_weights(const std::byte* from) {
  if constexpr (kHalves) {
    return of_halves(from);
  } else {
    return load_f(reinterpret_cast<const float*>(from));
  }
}

// The last n columns of a row, n below 16; the rest is zero, and nothing behind them is read.
template <bool kHalves>
SCANT_INLINE Vf load_last_weights(const std::byte* from, size_t n) {
  alignas(64) std::byte last[64] = {};
  std::memcpy(last, from, n * (kHalves ? 2 : 4));
  return load_weights<kHalves>(last);
}

template <bool kHalves, size_t kRows, size_t kTokens>
SCANT_APART void multiply_lanes(const std::byte* rows, size_t columns, const float* x, float* out,
                                size_t stride) {
  constexpr size_t kBytes = kHalves ? 2 : 4;
  Vf sums[kRows][kTokens];
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t t = 0; t < kTokens; ++t) sums[r][t] = zero_f();
  }
  size_t c = 0;
  for (; c + 16 <= columns; c += 16) {
    Vf tokens[kTokens];
    for (size_t t = 0; t < kTokens; ++t) tokens[t] = load_f(x + t * columns + c);
    for (size_t r = 0; r < kRows; ++r) {
      const Vf weights = load_weights<kHalves>(rows + (r * columns + c) * kBytes);
      for (size_t t = 0; t < kTokens; ++t)
        sums[r][t] = multiply_add(weights, tokens[t], sums[r][t]);
    }
  }
  for (size_t r = 0; c < columns && r < kRows; ++r) {
    const Vf weights = load_last_weights<kHalves>(rows + (r * columns + c) * kBytes, columns - c);
    for (size_t t = 0; t < kTokens; ++t) {
      const Vf token = load_first(x + t * columns + c, columns - c);
      sums[r][t] = multiply_add(weights, token, sums[r][t]);
    }
  }
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t t = 0; t < kTokens; ++t) out[t * stride + r] = fold(sums[r][t]);
  }
}

template <bool kHalves>
static void multiply_rows(const std::byte* rows, size_t count, const Operand& operand, size_t first,
                          size_t tokens, float* out, size_t stride) {
  const float* const x = operand.values + first * operand.columns;
  float* const to = out + first * stride;
  for_count<kFloatTokensAtOnce>(tokens, [&]<size_t kTokens>() {
    if (count == kRowsAtOnce) {
      multiply_lanes<kHalves, kRowsAtOnce, kTokens>(rows, operand.columns, x, to, stride);
    } else {
      for (size_t row = 0; row < count; ++row)
        multiply_lanes<kHalves, 1, kTokens>(rows + row * operand.columns * (kHalves ? 2 : 4),
                                            operand.columns, x, to + row, stride);
    }
  });
}

// Many tokens: rows of a block stay in L2 while a few tokens after the other, which lie in L1, are
// multiplied with all of them.
template <bool kHalves>
static void multiply_floats(const Part& part) {
  const Operand& operand = *part.operand;
  const uint64_t of_row = operand.columns * (kHalves ? 2 : 4);
  const uint64_t first = part.strip_first * codec::kTileRows;
  const uint64_t end =
      std::min<uint64_t>(first + part.strips * codec::kTileRows, part.weights->shape.rows);
  const uint64_t blocks = operand.tokens > kPanelTokens ? kRowBlockBytes / of_row / kRowsAtOnce : 1;
  const uint64_t of_block = std::max<uint64_t>(blocks, 1) * kRowsAtOnce;
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t block = first; block < end; block += of_block) {
    const uint64_t block_end = std::min(block + of_block, end);
    for (size_t token = 0, tokens = 0; token < operand.tokens; token += tokens) {
      const size_t left = operand.tokens - token;
      tokens = (left - 1) / ((left + kFloatTokensAtOnce - 1) / kFloatTokensAtOnce) + 1;
      for (uint64_t row = block; row < block_end; row += kRowsAtOnce) {
        const uint64_t rows = std::min<uint64_t>(kRowsAtOnce, block_end - row);
        multiply_rows<kHalves>(part.weights->bytes.data() + row * of_row, rows, operand, token,
                               tokens, part.out + row, part.stride);
        if (token == 0) prefetcher.next(rows * of_row);
      }
    }
  }
}
