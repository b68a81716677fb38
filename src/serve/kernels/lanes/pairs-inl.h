// Products of bf16: pairs of columns in the lanes of sixteen rows. All arithmetic of this file
// takes denormals for zero. Included within the namespace of an instruction set, behind PairSums,
// which has the order of additions.

// The last columns of sixteen rows that end within a block, filled up with zeros, 64 bytes a row.
static void copy_edge(const std::byte* rows, size_t stride, size_t bytes, std::byte* to) {
  std::memset(to, 0, codec::kTileRows * 64);
  for (size_t row = 0; row < codec::kTileRows; ++row)
    std::memcpy(to + 64 * row, rows + row * stride, bytes);
}

// A strip's blocks in ascending order.
template <TensorKind kind>
struct Blocks {
  Source& from;
  std::byte* edge;
  size_t columns_left;
  SparseRows sparse_rows;
  bool upper = false;

  // The next block's pairs, to sink(pair, elements).
  template <typename Sink>
  SCANT_METHOD void next(Prefetcher& prefetcher, const Sink& sink) {
    const std::byte* const begin = from.codes;
    if constexpr (kind == TensorKind::bf16_tiles) {
      for_sixteen([&](auto k) SCANT_METHOD { sink(k, load_i(from.codes + 64 * k)); });
      from.codes += 1024;
    } else if constexpr (kind == TensorKind::bf16) {
      const size_t columns = std::min(columns_left, kPairColumns);
      if (columns < kPairColumns) copy_edge(from.rows, from.stride, 2 * columns, edge);
      const bool whole = columns == kPairColumns;
      turn_lines_to(whole ? from.rows : edge, whole ? from.stride : 64, sink);
      columns_left -= columns;
      from.rows += 64;
      prefetcher.next(1024);
    } else if (!upper) {
      expand_sparse_pairs<false>(from, sparse_rows, sink);
      upper = true;
    } else {
      expand_sparse_pairs<true>(from, sparse_rows, sink);
      from.bits += sizeof(uint64_t) * codec::kTileRows;
      upper = false;
    }
    if constexpr (kind == TensorKind::bf16_tiles || kind == TensorKind::sparse_bf16) {
      const bool bits = kind == TensorKind::sparse_bf16 && !upper;
      prefetcher.next(static_cast<size_t>(from.codes - begin) + (bits ? 8 * codec::kTileRows : 0));
    }
  }
};
template <TensorKind kind>
SCANT_INLINE Blocks<kind> blocks_of(const Part& part, const Plan& plan, Source& source) {
  return {source, part.scratch + plan.edge, part.weights->shape.columns, {}};
}

// --- Few tokens: blocks are multiplied as they are read

template <TensorKind kind, size_t kTokens>
SCANT_APART void multiply_blocks(const Part& part, const Plan& plan, Source& source, float* to,
                                 Prefetcher& prefetcher) {
  const Operand& operand = *part.operand;
  PairTokens x = pair_tokens(operand, 0, 0);
  Blocks<kind> blocks = blocks_of<kind>(part, plan, source);
  PairSums<kTokens> sums;
  sums.clear();
  for (size_t block = 0; block < operand.groups; ++block, x.next_block()) {
    sums.begin_block();
    blocks.next(prefetcher, [&](auto k, Vi two) SCANT_METHOD { sums.pair(k, two, x); });
    sums.end_block();
  }
  sums.store(to);
}

// --- More tokens: pieces of a strip lie in L1

template <size_t kTokens>
SCANT_APART void add_pairs(const std::byte* pairs, size_t blocks, PairTokens x, float* to) {
  PairSums<kTokens> sums;
  sums.load(to);
  for (size_t block = 0; block < blocks; ++block, pairs += 64 * 16, x.next_block()) {
    sums.begin_block();
    for_sixteen([&](auto k) SCANT_METHOD { sums.pair(k, load_i(pairs + 64 * k), x); });
    sums.end_block();
  }
  sums.store(to);
}

template <TensorKind kind>
static void multiply_pieces(const Part& part, const Plan& plan, Source& source, float* sums,
                            Prefetcher& prefetcher) {
  const Operand& operand = *part.operand;
  // A short piece lets memory work meanwhile; but where it is expanded, sums come and go with each.
  const size_t few = kind == TensorKind::bf16_tiles ? kColumnsFew / 2 : kColumnsFew;
  const size_t columns = operand.tokens > kPanelTokens ? kColumnsMany / 2 : few;
  Blocks<kind> from = blocks_of<kind>(part, plan, source);
  std::memset(sums, 0, operand.tokens * kPairVectors * 64);
  for (size_t first = 0; first < operand.groups; first += columns / kPairColumns) {
    const size_t blocks = std::min(columns / kPairColumns, operand.groups - first);
    const std::byte* pairs = source.codes;
    if constexpr (kind == TensorKind::bf16_tiles) {
      source.codes += blocks * 1024;
      prefetcher.next(blocks * 1024);
    } else {
      std::byte* to = part.scratch + plan.elements;
      pairs = to;
      for (size_t i = 0; i < blocks; ++i, to += 1024)
        from.next(prefetcher, [&](size_t k, Vi two) { store_i(to + 64 * k, two); });
    }
    for_pair_tokens(operand, [&]<size_t kTokens>(size_t token) {
      add_pairs<kTokens>(pairs, blocks, pair_tokens(operand, token, first),
                         sums + kPairVectors * codec::kTileRows * token);
    });
  }
}

template <TensorKind kind>
static void multiply_pairs_of(const Part& part) {
  const FlushDenormals flush;
  const Plan plan = plan_of(*part.weights, part.operand->tokens);
  auto* const sums = reinterpret_cast<float*>(part.scratch + plan.sums);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t i = 0; i < part.strips; ++i) {
    Source source = source_of_strip(part, part.strip_first + i, part.scratch + plan.rows);
    if (part.operand->tokens > kPairTokensFew) {
      multiply_pieces<kind>(part, plan, source, sums, prefetcher);
    } else {
      for_count<kPairTokensFew>(part.operand->tokens, [&]<size_t kTokens>() {
        multiply_blocks<kind, kTokens>(part, plan, source, sums, prefetcher);
      });
    }
    finish_pair_sums(sums, part.operand->tokens);
    store_sums(part, part.strip_first + i, sums);
  }
}

static void multiply_pairs(const Part& part) {
  switch (part.weights->kind) {
    case TensorKind::bf16:
      return multiply_pairs_of<TensorKind::bf16>(part);
    case TensorKind::bf16_tiles:
      return multiply_pairs_of<TensorKind::bf16_tiles>(part);
    default:
      return multiply_pairs_of<TensorKind::sparse_bf16>(part);
  }
}
