// Products of bf16: pairs of columns in the lanes of sixteen rows. All arithmetic of this file
// takes denormals for zero, as AMX does. Included within the namespace of an instruction set.

// Sets how this thread treats denormals, and sets it back.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040U); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_;
};

template <size_t kTokens>
SCANT_APART void add_pairs(const std::byte* pairs, size_t blocks, const Operand& operand,
                           size_t token, size_t block_first, float* to) {
  Vf sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = load_f(to + codec::kTileRows * t);
  const Vi upper = every_i(static_cast<int32_t>(0xFFFF0000U));
  for (size_t block = 0; block < blocks; ++block, pairs += 64 * 16) {
    Vf even[kTokens];
    Vf odd[kTokens];
    for (size_t t = 0; t < kTokens; ++t) even[t] = odd[t] = zero_f();
    for (size_t pair = 0; pair < 16; ++pair) {
      const Vi two = load_i(pairs + 64 * pair);
      const Vf low = as_floats(up<16>(two));
      const Vf high = as_floats(both(two, upper));
      for (size_t t = 0; t < kTokens; ++t) {
        const float* const x =
            operand.rounded(token + t) + (block_first + block) * kPairColumns + 2 * pair;
        even[t] = multiply_add(low, every_f(x[0]), even[t]);
        odd[t] = multiply_add(high, every_f(x[1]), odd[t]);
      }
    }
    for (size_t t = 0; t < kTokens; ++t) sums[t] = plus(sums[t], plus(even[t], odd[t]));
  }
  for (size_t t = 0; t < kTokens; ++t) store_f(to + codec::kTileRows * t, sums[t]);
}

// The last columns of sixteen rows that end within a block, filled up with zeros, 64 bytes a row.
static void copy_edge(const std::byte* rows, size_t stride, size_t bytes, std::byte* to) {
  std::memset(to, 0, codec::kTileRows * 64);
  for (size_t row = 0; row < codec::kTileRows; ++row)
    std::memcpy(to + 64 * row, rows + row * stride, bytes);
}

// Pairs of the next `blocks` blocks of a strip: where they lie, or expanded to `to`.
static const std::byte* next_pairs(Source& from, size_t columns, size_t first, size_t blocks,
                                   std::byte* edge, std::byte* to, Prefetcher& prefetcher) {
  const std::byte* const lying = from.codes;
  switch (from.kind) {
    case TensorKind::bf16_tiles:
      // A strip ends with a whole tile; the operand's blocks may end in the middle of it.
      from.codes += blocks * 1024;
      for (size_t i = 0; i < blocks; ++i) prefetcher.next(1024);
      return lying;
    case TensorKind::bf16:
      for (size_t i = 0; i < blocks; ++i, from.rows += 64) {
        const size_t left = columns - (first + i) * kPairColumns;
        if (left < kPairColumns) {
          copy_edge(from.rows, from.stride, 2 * left, edge);
          turn_rows(edge, 64, 4, to + 1024 * i);
        } else {
          turn_rows(from.rows, from.stride, 4, to + 1024 * i);
        }
        prefetcher.next(1024);
      }
      return to;
    default:
      for (size_t i = 0; i < blocks; i += 2) {
        const std::byte* const begin = from.codes;
        expand_sparse_bf16(from, edge);
        from.bits += sizeof(uint64_t) * codec::kTileRows;
        turn_rows(edge, 128, 4, to + 1024 * i);
        // An odd number of blocks ends with the first half of a tile.
        if (i + 1 < blocks) turn_rows(edge + 64, 128, 4, to + 1024 * (i + 1));
        prefetcher.next(static_cast<size_t>(from.codes - begin) + 8 * codec::kTileRows);
      }
      return to;
  }
}

static void add_pairs_of_all(const std::byte* pairs, size_t blocks, const Operand& operand,
                             size_t block_first, float* sums) {
  for_blocks<kTokensAtOnce>(operand.tokens, [&]<size_t kTokens>(size_t token) {
    add_pairs<kTokens>(pairs, blocks, operand, token, block_first, sums + 16 * token);
  });
}

static void multiply_pairs(const Part& part) {
  const FlushDenormals flush;
  const Operand& operand = *part.operand;
  const size_t columns = part.weights->shape.columns;
  const Plan plan = plan_of(*part.weights, operand.tokens);
  auto* const sums = reinterpret_cast<float*>(part.scratch + plan.sums);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t i = 0; i < part.strips; ++i) {
    Source source = source_of_strip(part, part.strip_first + i, part.scratch + plan.rows);
    std::memset(sums, 0, operand.tokens * 64);
    for (size_t first = 0; first < operand.groups; first += plan.groups) {
      const size_t blocks = std::min(plan.groups, operand.groups - first);
      const std::byte* const pairs =
          next_pairs(source, columns, first, blocks, part.scratch + plan.edge,
                     part.scratch + plan.elements, prefetcher);
      add_pairs_of_all(pairs, blocks, operand, first, sums);
    }
    store_sums(part, part.strip_first + i, sums);
  }
}
