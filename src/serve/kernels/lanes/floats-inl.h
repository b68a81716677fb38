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
SCANT_INLINE void multiply_lanes(const std::byte* rows, size_t columns, const float* x, float* out,
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

template <bool kHalves, size_t kRows>
static void multiply_rows(const std::byte* rows, const Operand& operand, float* out,
                          size_t stride) {
  constexpr size_t kMany = 4;
  size_t t = 0;
  for (; t + kMany <= operand.tokens; t += kMany)
    multiply_lanes<kHalves, kRows, kMany>(
        rows, operand.columns, operand.values + t * operand.columns, out + t * stride, stride);
  for (; t < operand.tokens; ++t)
    multiply_lanes<kHalves, kRows, 1>(rows, operand.columns, operand.values + t * operand.columns,
                                      out + t * stride, stride);
}

template <bool kHalves>
static void multiply_floats(const Part& part) {
  const uint64_t columns = part.weights->shape.columns;
  const uint64_t first = part.strip_first * codec::kTileRows;
  const uint64_t end =
      std::min<uint64_t>(first + part.strips * codec::kTileRows, part.weights->shape.rows);
  const uint64_t of_row = columns * (kHalves ? 2 : 4);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t row = first; row < end;) {
    const std::byte* const rows = part.weights->bytes.data() + row * of_row;
    const uint64_t now = row + kRowsAtOnce <= end ? kRowsAtOnce : 1;
    if (now > 1) {
      multiply_rows<kHalves, kRowsAtOnce>(rows, *part.operand, part.out + row, part.stride);
    } else {
      multiply_rows<kHalves, 1>(rows, *part.operand, part.out + row, part.stride);
    }
    prefetcher.next(now * of_row);
    row += now;
  }
}
