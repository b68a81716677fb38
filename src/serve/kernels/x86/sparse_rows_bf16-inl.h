// Products of sparse bf16: columns lie in lanes, so that rows need not be turned. docs/serve.md,
// "Sums of bf16". Included within the namespace of an instruction set that has VDPBF16PS.

inline constexpr size_t kSparseTokensFew = 8;     // whose sums lie in L1 while weights are read
inline constexpr size_t kSparseTokensAtOnce = 6;  // as many sums of four rows as registers hold
inline constexpr size_t kSparseRowsAtOnce = 4;
inline constexpr size_t kRowLanes = codec::kTileRows * 16;  // floats: lanes of a strip's rows

struct SparsePlan {
  size_t sums = 0;   // [token][row]
  size_t lanes = 0;  // [token][row][lane]
  size_t rows = 0;   // a whole strip, expanded
  size_t row_bytes = 0;
  size_t bytes = 0;
};
SCANT_INLINE SparsePlan sparse_plan(const Tensor& weights, size_t tokens) {
  SparsePlan plan;
  plan.lanes = base::align_up(tokens, kPanelTokens) * 64;
  plan.rows = plan.lanes + kSparseTokensFew * kRowLanes * sizeof(float);
  // One line more: rows of 4 KiB would share the same lines of L1.
  plan.row_bytes = 128 * codec::tiles(weights.shape.columns) + 64;
  plan.bytes = plan.rows + (tokens > kSparseTokensFew ? codec::kTileRows * plan.row_bytes : 0);
  return plan;
}

// A load of its own: Zen 4 takes ten times as long to expand from memory.
SCANT_INLINE Vi expand_halves(uint32_t bits, const std::byte* from) {
  Vi loaded = load_i(from);
  asm("" : "+v"(loaded));
  return _mm512_maskz_expand_epi16(bits, loaded);
}
// Reads a sparse strip row by row. A copy of the source's places, so that they stay in registers.
class SparseReader {
 public:
  SCANT_METHOD SparseReader(const Source& from, Prefetcher& prefetcher)
      : bits_(from.bits), codes_(from.codes), begin_(from.codes), prefetcher_(prefetcher) {}
  // The next row of the tile, to sink(its lower 32 columns, its upper ones).
  template <typename Sink>
  SCANT_METHOD void row(size_t row, const Sink& sink) {
    uint64_t bits = 0;
    std::memcpy(&bits, bits_ + sizeof bits * row, sizeof bits);
    const auto low = static_cast<uint32_t>(bits);
    const auto high = static_cast<uint32_t>(bits >> 32U);
    const std::byte* const middle = codes_ + 2 * kept_of(low);
    sink(expand_halves(low, codes_), expand_halves(high, middle));
    codes_ += 2 * kept_of(bits);
  }
  SCANT_METHOD void next_tile() {
    bits_ += sizeof(uint64_t) * codec::kTileRows;
    prefetcher_.next(static_cast<size_t>(codes_ - begin_) + sizeof(uint64_t) * codec::kTileRows);
    begin_ = codes_;
  }

 private:
  const std::byte* bits_;
  const std::byte* codes_;
  const std::byte* begin_;  // of the tile
  Prefetcher& prefetcher_;
};

SCANT_INLINE Vf add_dots(Vf sum, Vi weights, const uint16_t* x) {
  return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)load_i(x));
}
// Lanes of sixteen rows become their sums: lane i takes lane i + 8, then + 4, + 2, + 1.
SCANT_INLINE Vf fold_rows(const float* lanes) {
  Vi rows[16];
  for (size_t row = 0; row < 16; ++row) rows[row] = load_i(lanes + 16 * row);
  turn_registers(rows);
  Vf sums[16];
  for (size_t k = 0; k < 16; ++k) sums[k] = as_floats(rows[k]);
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t k = 0; k < half; ++k) sums[k] = plus(sums[k], sums[k + half]);
  }
  return sums[0];
}

// --- Few tokens: multiplied as weights are read

// One token's sums stay in registers.
SCANT_APART void multiply_sparse_one(SparseReader from, const Operand& operand, float* lanes) {
  Vf sums[16];
  for_sixteen([&](auto row) SCANT_METHOD { sums[row] = zero_f(); });
  size_t block = 0;
  for (; block + 2 <= operand.groups; block += 2) {
    const uint16_t* const x = operand.halves(0, block);
    for_sixteen([&](auto row) SCANT_METHOD {
      from.row(row, [&](Vi low, Vi high) SCANT_METHOD {
        sums[row] = add_dots(add_dots(sums[row], low, x), high, x + kPairColumns);
      });
    });
    from.next_tile();
  }
  if (block < operand.groups) {
    for_sixteen([&](auto row) SCANT_METHOD {
      from.row(row, [&](Vi low, Vi) SCANT_METHOD {
        sums[row] = add_dots(sums[row], low, operand.halves(0, block));
      });
    });
  }
  for_sixteen([&](auto row) SCANT_METHOD { store_f(lanes + 16 * row, sums[row]); });
}

template <size_t kTokens>
SCANT_APART void multiply_sparse_few(SparseReader from, const Operand& operand, float* lanes) {
  std::memset(lanes, 0, kTokens * kRowLanes * sizeof(float));
  for (size_t block = 0; block < operand.groups; block += 2) {
    const uint16_t* const x = operand.halves(0, block);
    const bool whole = block + 2 <= operand.groups;
    for (size_t row = 0; row < codec::kTileRows; ++row) {
      from.row(row, [&](Vi low, Vi high) SCANT_METHOD {
        for (size_t t = 0; t < kTokens; ++t) {
          float* const at = lanes + t * kRowLanes + 16 * row;
          Vf sum = add_dots(load_f(at), low, x + t * kPairColumns);
          if (whole) sum = add_dots(sum, high, x + (kTokens + t) * kPairColumns);
          store_f(at, sum);
        }
      });
    }
    from.next_tile();
  }
}

// --- More tokens: a strip is expanded, rows lie in L2

SCANT_APART void expand_strip(SparseReader from, size_t tiles, size_t row_bytes, std::byte* to) {
  for (size_t tile = 0; tile < tiles; ++tile) {
    for (size_t row = 0; row < codec::kTileRows; ++row) {
      std::byte* const at = to + row * row_bytes + 128 * tile;
      from.row(row, [&](Vi low, Vi high) SCANT_METHOD {
        store_i(at, low);
        store_i(at + 64, high);
      });
    }
    from.next_tile();
  }
}

// Four rows with tokens of a panel from `x` on, `step` from block to block.
template <size_t kTokens>
SCANT_APART void multiply_expanded(const std::byte* rows, size_t row_bytes, const uint16_t* x,
                                   size_t step, size_t blocks, float* lanes) {
  Vf sums[kSparseRowsAtOnce][kTokens];
  for (auto& of_row : sums) {
    for (Vf& sum : of_row) sum = zero_f();
  }
  for (size_t block = 0; block < blocks; ++block, rows += 64, x += step) {
    Vi weights[kSparseRowsAtOnce];
    for (size_t row = 0; row < kSparseRowsAtOnce; ++row)
      weights[row] = load_i(rows + row * row_bytes);
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t row = 0; row < kSparseRowsAtOnce; ++row)
        sums[row][t] = add_dots(sums[row][t], weights[row], x + t * kPairColumns);
    }
  }
  for (size_t row = 0; row < kSparseRowsAtOnce; ++row) {
    for (size_t t = 0; t < kTokens; ++t) store_f(lanes + t * kRowLanes + 16 * row, sums[row][t]);
  }
}

static void multiply_sparse_many(const SparsePlan& plan, const Operand& operand,
                                 std::byte* scratch) {
  auto* const lanes = reinterpret_cast<float*>(scratch + plan.lanes);
  auto* const sums = reinterpret_cast<float*>(scratch + plan.sums);
  const size_t step = operand.panel_tokens * kPairColumns;
  for (size_t panel = 0; panel < operand.panels; ++panel) {
    for_blocks<kSparseTokensAtOnce>(operand.tokens_of(panel), [&]<size_t kTokens>(size_t token) {
      const uint16_t* const x = operand.halves(panel, 0) + token * kPairColumns;
      for (size_t row = 0; row < codec::kTileRows; row += kSparseRowsAtOnce)
        multiply_expanded<kTokens>(scratch + plan.rows + row * plan.row_bytes, plan.row_bytes, x,
                                   step, operand.groups, lanes + 16 * row);
      float* const to = sums + 16 * (panel * operand.panel_tokens + token);
      for (size_t t = 0; t < kTokens; ++t) store_f(to + 16 * t, fold_rows(lanes + t * kRowLanes));
    });
  }
}

static void multiply_sparse_strip(const Part& part, const SparsePlan& plan,
                                  const SparseReader& from) {
  const Operand& operand = *part.operand;
  if (operand.tokens > kSparseTokensFew) {
    expand_strip(from, codec::tiles(operand.columns), plan.row_bytes, part.scratch + plan.rows);
    return multiply_sparse_many(plan, operand, part.scratch);
  }
  auto* const lanes = reinterpret_cast<float*>(part.scratch + plan.lanes);
  auto* const sums = reinterpret_cast<float*>(part.scratch + plan.sums);
  for_count<kSparseTokensFew>(operand.tokens, [&]<size_t kTokens>() {
    if constexpr (kTokens == 1) {
      multiply_sparse_one(from, operand, lanes);
    } else {
      multiply_sparse_few<kTokens>(from, operand, lanes);
    }
  });
  for (size_t t = 0; t < operand.tokens; ++t)
    store_f(sums + 16 * t, fold_rows(lanes + t * kRowLanes));
}

static void multiply_sparse(const Part& part) {
  const FlushDenormals flush;
  const SparsePlan plan = sparse_plan(*part.weights, part.operand->tokens);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t i = 0; i < part.strips; ++i) {
    const Source source = source_of_strip(part, part.strip_first + i, nullptr);
    multiply_sparse_strip(part, plan, SparseReader(source, prefetcher));
    store_sums(part, part.strip_first + i,
               reinterpret_cast<const float*>(part.scratch + plan.sums));
  }
}
