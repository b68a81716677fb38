// Products by tiles of up to 16 rows of 64 bytes, and the functions of a KernelTarget. Included
// within the namespace of an instruction set, behind its lanes, expand-inl.h and the functions of
// tiles: AMX's instructions, or those of tests, which do the same in software.
// NOLINTBEGIN(misc-definitions-in-headers): each instruction set includes it once

namespace {

constexpr size_t kTileBytes = 1024;
// Fewer tokens are multiplied faster without tiles.
constexpr size_t kCodeTokensMin = 4;
constexpr size_t kPieceBlocks = 16;  // of bf16: with its activations it stays in L1

// --- Codes: activations are the left tile, quads of levels the right one

constexpr int kCodesLeft = 4;
constexpr int kCodesRight = 6;
// While sums of so many groups are scaled, tiles of as many more are multiplied.
constexpr size_t kDepth = 4;

void configure_codes(size_t tokens, size_t wide) {
  TileShapes shapes;
  for (size_t tile = 0; tile < kDepth; ++tile) shapes.set(tile, tokens, 64);
  shapes.set(kCodesLeft, tokens, wide);
  shapes.set(kCodesLeft + 1, tokens, wide);
  shapes.set(kCodesRight, wide / 4, 64);
  shapes.set(kCodesRight + 1, wide / 4, 64);
  configure(shapes);
}

// Sums of one group, for all tokens of the panel: to[token][row].
template <int kTile>
SCANT_INLINE void multiply_group(const Piece& piece, const Operand& operand, size_t panel, size_t g,
                                 int32_t* to) {
  const size_t wide = 4 * piece.quads;
  zero_tile<kTile>();
  constexpr int kLeft = kCodesLeft + kTile % 2;
  constexpr int kRight = kCodesRight + kTile % 2;
  load_tile<kLeft>(operand.codes(panel, piece.group_first + g), wide);
  load_tile<kRight>(piece.levels + 64 * piece.quads * g, 64);
  add_bytes<kTile, kLeft, kRight>();
  store_tile<kTile>(to);
}

template <size_t kTokens, bool kLeasts>
SCANT_INLINE void add_group(const Piece& piece, const Operand& operand, size_t panel, size_t g,
                            const int32_t* whole, Vf (&sums)[kTokens]) {
  const size_t at = operand.index(panel, piece.group_first + g);
  const Vf scales = load_f(piece.scales + codec::kTileRows * g);
  for (size_t t = 0; t < kTokens; ++t) {
    const Vf scale = times(scales, every_f(operand.scales[at + t]));
    sums[t] = multiply_add(of_integers(load_i(whole + 16 * t)), scale, sums[t]);
    if constexpr (kLeasts) {
      const Vf least = load_f(piece.leasts + codec::kTileRows * g);
      sums[t] = multiply_add(least, every_f(operand.shifts[at + t]), sums[t]);
    }
  }
}

// Up to kDepth groups from g on; returns how many.
template <size_t kTokens>
SCANT_INLINE size_t multiply_groups(const Piece& piece, const Operand& operand, size_t panel,
                                    size_t g, int32_t (*to)[16 * kTokens]) {
  const size_t count = std::min(kDepth, piece.groups - g);
  multiply_group<0>(piece, operand, panel, g, to[0]);
  if (count > 1) multiply_group<1>(piece, operand, panel, g + 1, to[1]);
  if (count > 2) multiply_group<2>(piece, operand, panel, g + 2, to[2]);
  if (count > 3) multiply_group<3>(piece, operand, panel, g + 3, to[3]);
  return count;
}

// A panel has at most kTokens tokens; what is computed for those that it lacks is never read.
template <size_t kTokens, bool kLeasts>
void add_panel_of(const Piece& piece, const Operand& operand, size_t panel, float* to) {
  alignas(64) int32_t whole[2][kDepth][16 * kTokens];
  if (operand.panel_tokens < kTokens) std::memset(whole, 0, sizeof whole);
  Vf sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = load_f(to + codec::kTileRows * t);
  memory_barrier();
  size_t count = multiply_groups<kTokens>(piece, operand, panel, 0, whole[0]);
  for (size_t g = 0, half = 0; g < piece.groups; half ^= 1) {
    const size_t next = g + count;
    size_t next_count = 0;
    if (next < piece.groups)
      next_count = multiply_groups<kTokens>(piece, operand, panel, next, whole[half ^ 1]);
    for (size_t i = 0; i < count; ++i)
      add_group<kTokens, kLeasts>(piece, operand, panel, g + i, whole[half][i], sums);
    g = next;
    count = next_count;
  }
  for (size_t t = 0; t < kTokens; ++t) store_f(to + codec::kTileRows * t, sums[t]);
}

template <bool kLeasts>
void add_panel(const Piece& piece, const Operand& operand, size_t panel, float* sums) {
  if (operand.panel_tokens <= 4) return add_panel_of<4, kLeasts>(piece, operand, panel, sums);
  if (operand.panel_tokens <= 8) return add_panel_of<8, kLeasts>(piece, operand, panel, sums);
  add_panel_of<16, kLeasts>(piece, operand, panel, sums);
}

void multiply_codes(const Part& part) {
  configure_codes(part.operand->panel_tokens, group_columns(part.operand->form));
  const bool leasts = part.weights->kind == TensorKind::q4_1;
  avx512vnni::multiply_codes(part, leasts ? add_panel<true> : add_panel<false>, kColumnsMany);
}

// --- bf16. Rows of weights are left tiles as they lie, and then a tile of sums has a row for each
// row of weights. Tiles of weights are right tiles as they lie, and sums have a row for each token.

constexpr int kWeights = 4;
constexpr int kTokens = 6;

// A run of blocks of two strips, or of one.
struct Run {
  std::array<const std::byte*, 2> weights{};
  size_t weights_stride = 0;  // from row to row of a tile
  size_t weights_step = 0;    // from block to block
  size_t blocks = 0;
  size_t block_first = 0;
};

template <bool kWeightsLeft, int kStrip, int kPanel>
SCANT_INLINE void add_block() {
  constexpr int kTo = 2 * kStrip + kPanel;
  if constexpr (kWeightsLeft) {
    add_halves<kTo, kWeights + kStrip, kTokens + kPanel>();
  } else {
    add_halves<kTo, kTokens + kPanel, kWeights + kStrip>();
  }
}

// Adds to the tiles of sums at to[strip][panel]; those of the second strip begin `apart` further.
template <bool kWeightsLeft, bool kTwoStrips, bool kTwoPanels>
void multiply_run(const Run& run, const Operand& operand, size_t panel, std::byte* to, size_t apart,
                  Prefetcher* prefetcher) {
  const size_t row = kWeightsLeft ? 4 * operand.panel_tokens : 64;
  memory_barrier();
  load_tile<0>(to, 64);
  if constexpr (kTwoPanels) load_tile<1>(to + kTileBytes, 64);
  if constexpr (kTwoStrips) load_tile<2>(to + apart, 64);
  if constexpr (kTwoStrips && kTwoPanels) load_tile<3>(to + apart + kTileBytes, 64);
  for (size_t block = 0; block < run.blocks; ++block) {
    const size_t at = block * run.weights_step;
    load_tile<kTokens>(operand.halves(panel, run.block_first + block), row);
    load_tile<kWeights>(run.weights[0] + at, run.weights_stride);
    add_block<kWeightsLeft, 0, 0>();
    if constexpr (kTwoPanels) {
      load_tile<kTokens + 1>(operand.halves(panel + 1, run.block_first + block), row);
      add_block<kWeightsLeft, 0, 1>();
    }
    if constexpr (kTwoStrips) {
      load_tile<kWeights + 1>(run.weights[1] + at, run.weights_stride);
      add_block<kWeightsLeft, 1, 0>();
    }
    if constexpr (kTwoStrips && kTwoPanels) add_block<kWeightsLeft, 1, 1>();
    if (prefetcher != nullptr) prefetcher->next(kTileBytes * (kTwoStrips ? 2 : 1));
  }
  store_tile<0>(to);
  if constexpr (kTwoPanels) store_tile<1>(to + kTileBytes);
  if constexpr (kTwoStrips) store_tile<2>(to + apart);
  if constexpr (kTwoStrips && kTwoPanels) store_tile<3>(to + apart + kTileBytes);
}

template <bool kWeightsLeft>
void multiply_panels(const Run& run, const Operand& operand, std::byte* to, size_t apart,
                     Prefetcher* prefetcher) {
  const bool two = run.weights[1] != nullptr;
  size_t panel = 0;
  for (; panel + 2 <= operand.panels; panel += 2) {
    std::byte* const at = to + panel * kTileBytes;
    if (two) {
      multiply_run<kWeightsLeft, true, true>(run, operand, panel, at, apart, prefetcher);
    } else {
      multiply_run<kWeightsLeft, false, true>(run, operand, panel, at, apart, prefetcher);
    }
    prefetcher = nullptr;
  }
  if (panel == operand.panels) return;
  std::byte* const at = to + panel * kTileBytes;
  if (two) {
    multiply_run<kWeightsLeft, true, false>(run, operand, panel, at, apart, prefetcher);
  } else {
    multiply_run<kWeightsLeft, false, false>(run, operand, panel, at, apart, prefetcher);
  }
}

void configure_halves(size_t tokens, bool weights_left) {
  TileShapes shapes;
  for (size_t tile = 0; tile < 4; ++tile)
    shapes.set(tile, weights_left ? 16 : tokens, weights_left ? 4 * tokens : 64);
  for (size_t tile = 0; tile < 2; ++tile) {
    shapes.set(kWeights + tile, 16, 64);
    shapes.set(kTokens + tile, weights_left ? 16 : tokens, weights_left ? 4 * tokens : 64);
  }
  configure(shapes);
}

// Where a worker's scratch holds what products of bf16 need.
struct HalvesPlan {
  size_t strips = 0;  // at a time
  size_t sums = 0;
  size_t expanded = 0;  // a piece of each strip of a sparse tensor
  size_t edge = 0;      // the last block of each strip's rows
  size_t rows = 0;      // a last strip of fewer than 16 rows, filled up
  size_t bytes = 0;
};
HalvesPlan halves_plan(const Tensor& weights, size_t tokens) {
  HalvesPlan plan;
  plan.strips = tokens > kPanelTokens ? kStripsMany : 2;
  const auto take = [&plan](size_t bytes) {
    const size_t begin = plan.bytes;
    plan.bytes += base::align_up(bytes, 64);
    return begin;
  };
  const bool rows = row_by_row(weights.kind);
  plan.sums = take(plan.strips * ((tokens + kPanelTokens - 1) / kPanelTokens) * kTileBytes);
  plan.expanded = take(sparse(weights.kind) ? plan.strips * kPieceBlocks * kTileBytes : 0);
  plan.edge = take(rows ? plan.strips * kTileBytes : 0);
  const bool whole = !rows || weights.shape.rows % codec::kTileRows == 0;
  plan.rows = take(whole ? 0 : codec::kTileRows * *row_bytes(weights.kind, weights.shape.columns));
  return plan;
}

void copy_edge(const std::byte* rows, size_t stride, size_t bytes, std::byte* to) {
  std::memset(to, 0, kTileBytes);
  for (size_t row = 0; row < codec::kTileRows; ++row)
    std::memcpy(to + 64 * row, rows + row * stride, bytes);
}

// A row of 64 columns; returns where its kept values end.
SCANT_INLINE const std::byte* expand_row16(uint64_t bits, const std::byte* from, std::byte* to) {
  const auto low = static_cast<__mmask32>(bits);
  const auto high = static_cast<__mmask32>(bits >> 32U);
  const std::byte* const middle = from + 2 * static_cast<size_t>(_mm_popcnt_u32(low));
  _mm512_store_si512(to, _mm512_maskz_expand_epi16(low, _mm512_loadu_si512(from)));
  _mm512_store_si512(to + 64, _mm512_maskz_expand_epi16(high, _mm512_loadu_si512(middle)));
  return middle + 2 * static_cast<size_t>(_mm_popcnt_u32(high));
}

// Expands a piece of a sparse strip: rows of kPieceBlocks * 64 bytes.
void expand_piece(Source& from, size_t blocks, std::byte* to, Prefetcher& prefetcher) {
  constexpr size_t kRow = kPieceBlocks * 64;
  for (size_t block = 0; block < blocks; block += 2) {
    const std::byte* const begin = from.codes;
    for (size_t row = 0; row < codec::kTileRows; ++row)
      from.codes = expand_row16(bits_of(from, row), from.codes, to + row * kRow + block * 64);
    from.bits += sizeof(uint64_t) * codec::kTileRows;
    prefetcher.next(static_cast<size_t>(from.codes - begin) + 8 * codec::kTileRows);
  }
}

// One strip's share of the run that begins with block `first`.
void add_strip(const Part& part, const HalvesPlan& plan, Source& source, size_t strip, size_t first,
               Prefetcher& prefetcher, Run& run, size_t place) {
  const size_t columns = part.weights->shape.columns;
  const std::byte*& weights = run.weights[place];
  if (source.kind == TensorKind::bf16_tiles) {
    weights = source.codes + first * kTileBytes;
    run.weights_stride = 64;
    run.weights_step = kTileBytes;
  } else if (source.kind == TensorKind::sparse_bf16) {
    std::byte* const to = part.scratch + plan.expanded + strip * kPieceBlocks * kTileBytes;
    expand_piece(source, run.blocks, to, prefetcher);
    weights = to;
    run.weights_stride = kPieceBlocks * 64;
    run.weights_step = 64;
  } else if ((first + 1) * kPairColumns > columns) {
    std::byte* const to = part.scratch + plan.edge + strip * kTileBytes;
    copy_edge(source.rows + first * 64, source.stride, 2 * (columns - first * kPairColumns), to);
    weights = to;
    run.weights_stride = 64;
  } else {
    weights = source.rows + first * 64;
    run.weights_stride = source.stride;
    run.weights_step = 64;
  }
}

// Blocks of the run that begins with block `first`: a last one that rows do not fill is a run
// alone.
size_t run_blocks(const Tensor& weights, size_t groups, size_t first) {
  const size_t whole =
      weights.kind == TensorKind::bf16 ? weights.shape.columns / kPairColumns : groups;
  return first < whole ? std::min(kPieceBlocks, whole - first) : 1;
}

void store_tile_of_sums(const Part& part, uint64_t strip, size_t panel, const std::byte* sums) {
  const Operand& operand = *part.operand;
  const uint64_t row = strip * codec::kTileRows;
  const size_t rows = std::min<uint64_t>(codec::kTileRows, part.weights->shape.rows - row);
  float* to = part.out + panel * kPanelTokens * part.stride + row;
  for (size_t token = 0; token < operand.tokens_of(panel); ++token, to += part.stride)
    store_first(to, load_f(reinterpret_cast<const float*>(sums) + 16 * token), rows);
}

template <bool kWeightsLeft>
void multiply_halves(const Part& part) {
  const Operand& operand = *part.operand;
  const HalvesPlan plan = halves_plan(*part.weights, operand.tokens);
  configure_halves(operand.panel_tokens, kWeightsLeft);
  std::byte* const sums = part.scratch + plan.sums;
  const size_t apart = operand.panels * kTileBytes;
  const Bytes bytes = part_bytes(part);
  const bool expanded = sparse(part.weights->kind);
  Prefetcher prefetcher(bytes, expanded ? kTileDistanceBytes : 2 * (bytes.size() / part.strips),
                        part.ahead, !expanded);
  for (uint64_t done = 0; done < part.strips; done += plan.strips) {
    const size_t strips = std::min<uint64_t>(plan.strips, part.strips - done);
    std::array<Source, kStripsMany> sources;
    for (size_t i = 0; i < strips; ++i)
      sources[i] = source_of_strip(part, part.strip_first + done + i, part.scratch + plan.rows);
    std::memset(sums, 0, strips * apart);
    for (size_t first = 0; first < operand.groups;) {
      const size_t blocks = run_blocks(*part.weights, operand.groups, first);
      for (size_t i = 0; i < strips; i += 2) {
        Run run{.blocks = blocks, .block_first = first};
        for (size_t k = 0; k < 2 && i + k < strips; ++k)
          add_strip(part, plan, sources[i + k], i + k, first, prefetcher, run, k);
        multiply_panels<kWeightsLeft>(run, operand, sums + i * apart, apart,
                                      expanded ? nullptr : &prefetcher);
      }
      first += blocks;
    }
    for (size_t i = 0; i < strips; ++i) {
      for (size_t panel = 0; panel < operand.panels; ++panel) {
        const std::byte* at = sums + i * apart + panel * kTileBytes;
        alignas(64) std::byte turned[kTileBytes];
        if constexpr (kWeightsLeft) {
          turn_rows(at, 64, 4, turned);
          at = turned;
        }
        store_tile_of_sums(part, part.strip_first + done + i, panel, at);
      }
    }
  }
}

}  // namespace

Form form(TensorKind kind, size_t tokens) {
  if (kind == TensorKind::bf16_tiles) return Form::left16;
  if (kind == TensorKind::bf16 || kind == TensorKind::sparse_bf16) return Form::right16;
  return lanes_form(kind, tokens);
}

size_t scratch_bytes(const Tensor& weights, size_t tokens) {
  const Form of = form(weights.kind, tokens);
  return of == Form::left16 || of == Form::right16 ? halves_plan(weights, tokens).bytes
                                                   : lanes_scratch_bytes(weights, tokens);
}

void fill(const Operand& operand, size_t panel) { avx512vnni::fill(operand, panel); }

void multiply(const Part& part) {
  switch (part.operand->form) {
    case Form::left16:
      return multiply_halves<false>(part);
    case Form::right16:
      return multiply_halves<true>(part);
    case Form::plain:
      return avx512vnni::multiply(part);
    default:
      if (part.operand->tokens < kCodeTokensMin) return avx512vnni::multiply(part);
      return multiply_codes(part);
  }
}

void end() { release(); }

// NOLINTEND(misc-definitions-in-headers)
