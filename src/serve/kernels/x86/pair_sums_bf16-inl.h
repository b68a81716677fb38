// Sums of pairs of bf16 in the order of VDPBF16PS: docs/serve.md, "Sums of bf16". Two chains for
// each token, of the even pairs and of the odd ones, since an addition takes six cycles. Included
// within the namespace of an instruction set.

inline constexpr size_t kPairVectors = 2;  // of sums, for each token of a strip

// Where tokens' activations of a block begin: tokens of a panel lie side by side.
struct PairTokens {
  const uint16_t* at = nullptr;
  size_t step = 0;  // from block to block
  SCANT_METHOD void next_block() { at += step; }
};
SCANT_INLINE PairTokens pair_tokens(const Operand& operand, size_t token, size_t block) {
  const size_t panel = token / operand.panel_tokens;
  return {operand.halves(panel, block) + token % operand.panel_tokens * kPairColumns,
          operand.panel_tokens * kPairColumns};
}

// Calls what.template operator()<how many>(first token).
template <typename What>
SCANT_INLINE void for_pair_tokens(const Operand& operand, const What& what) {
  for (size_t panel = 0; panel < operand.panels; ++panel) {
    for_blocks<kTokensAtOnce>(operand.tokens_of(panel), [&]<size_t kTokens>(size_t token) {
      what.template operator()<kTokens>(panel * operand.panel_tokens + token);
    });
  }
}

template <size_t kTokens>
struct PairSums {
  Vf chains[kTokens][2];

  SCANT_METHOD void clear() {
    for (size_t t = 0; t < kTokens; ++t) chains[t][0] = chains[t][1] = zero_f();
  }
  SCANT_METHOD void load(const float* from) {
    for (size_t t = 0; t < kTokens; ++t) {
      chains[t][0] = load_f(from + 2 * codec::kTileRows * t);
      chains[t][1] = load_f(from + 2 * codec::kTileRows * t + codec::kTileRows);
    }
  }
  SCANT_METHOD void store(float* to) const {
    for (size_t t = 0; t < kTokens; ++t) {
      store_f(to + 2 * codec::kTileRows * t, chains[t][0]);
      store_f(to + 2 * codec::kTileRows * t + codec::kTileRows, chains[t][1]);
    }
  }
  SCANT_METHOD void begin_block() {}
  template <size_t k>
  SCANT_METHOD void pair(std::integral_constant<size_t, k>, Vi two, const PairTokens& x) {
    for (size_t t = 0; t < kTokens; ++t) {
      int32_t both_columns = 0;
      std::memcpy(&both_columns, x.at + t * kPairColumns + 2 * k, sizeof both_columns);
      Vf& chain = chains[t][k % 2];
      chain = _mm512_dpbf16_ps(chain, (__m512bh)two, (__m512bh)every_i(both_columns));
    }
  }
  SCANT_METHOD void end_block() {}
};

// Two chains of each token become its sum, in place.
static void finish_pair_sums(float* sums, size_t tokens) {
  for (size_t t = 0; t < tokens; ++t) {
    const float* const from = sums + 2 * codec::kTileRows * t;
    store_f(sums + codec::kTileRows * t, plus(load_f(from), load_f(from + codec::kTileRows)));
  }
}
