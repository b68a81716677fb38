// Sums of pairs of bf16 in the order of AMX: docs/serve.md, "Sums of bf16". Included within the
// namespace of an instruction set.

inline constexpr size_t kPairVectors = 1;  // of sums, for each token of a strip

// Where tokens' activations of a block begin.
struct PairTokens {
  const float* at = nullptr;
  size_t apart = 0;  // floats from token to token
  SCANT_METHOD void next_block() { at += kPairColumns; }
};
SCANT_INLINE PairTokens pair_tokens(const Operand& operand, size_t token, size_t block) {
  return {operand.rounded(token) + block * kPairColumns, operand.groups * kPairColumns};
}

// Calls what.template operator()<how many>(first token).
template <typename What>
SCANT_INLINE void for_pair_tokens(const Operand& operand, const What& what) {
  for_blocks<kTokensAtOnce>(operand.tokens, what);
}

template <size_t kTokens>
struct PairSums {
  Vf sums[kTokens];
  Vf even[kTokens];
  Vf odd[kTokens];

  SCANT_METHOD void clear() {
    for (size_t t = 0; t < kTokens; ++t) sums[t] = zero_f();
  }
  SCANT_METHOD void load(const float* from) {
    for (size_t t = 0; t < kTokens; ++t) sums[t] = load_f(from + codec::kTileRows * t);
  }
  SCANT_METHOD void store(float* to) const {
    for (size_t t = 0; t < kTokens; ++t) store_f(to + codec::kTileRows * t, sums[t]);
  }
  SCANT_METHOD void begin_block() {
    for (size_t t = 0; t < kTokens; ++t) even[t] = odd[t] = zero_f();
  }
  SCANT_METHOD void pair(size_t k, Vi two, const PairTokens& x) {
    const Vf low = as_floats(up<16>(two));
    const Vf high = as_floats(both(two, every_i(static_cast<int32_t>(0xFFFF0000U))));
    for (size_t t = 0; t < kTokens; ++t) {
      even[t] = multiply_add(low, every_f(x.at[t * x.apart + 2 * k]), even[t]);
      odd[t] = multiply_add(high, every_f(x.at[t * x.apart + 2 * k + 1]), odd[t]);
    }
  }
  SCANT_METHOD void end_block() {
    for (size_t t = 0; t < kTokens; ++t) sums[t] = plus(sums[t], plus(even[t], odd[t]));
  }
};

// The sums of all tokens are what they were stored as.
SCANT_INLINE void finish_pair_sums(float*, size_t) {}
