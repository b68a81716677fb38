// Products of codes: weights with levels and scales. Strips are expanded a piece at a time, and all
// tokens are multiplied with a piece while it lies in the cache. Included within the namespace of
// an instruction set.

template <size_t kTokens, bool kLeasts>
SCANT_INLINE void add_codes(const Piece& piece, const Operand& operand, size_t panel, size_t token,
                            float* to) {
  const size_t wide = 4 * piece.quads;
  Vf sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = load_f(to + codec::kTileRows * t);
  for (size_t g = 0; g < piece.groups; ++g) {
    const size_t group = piece.group_first + g;
    const int8_t* const codes = operand.codes(panel, group) + token * wide;
    const size_t at = operand.index(panel, group) + token;
    const std::byte* const levels = piece.levels + 64 * piece.quads * g;
    Vi whole[kTokens];
    for (size_t t = 0; t < kTokens; ++t) whole[t] = start_of(operand.starts[at + t]);
    for (size_t q = 0; q < piece.quads; ++q) {
      const Weights weights = weights_of(load_i(levels + 64 * q));
      for (size_t t = 0; t < kTokens; ++t) {
        int32_t four = 0;
        std::memcpy(&four, codes + t * wide + 4 * q, sizeof four);
        whole[t] = add_products(whole[t], weights, every_i(four));
      }
    }
    const Vf scales = load_f(piece.scales + codec::kTileRows * g);
    for (size_t t = 0; t < kTokens; ++t) {
      const Vf scale = times(scales, every_f(operand.scales[at + t]));
      sums[t] = multiply_add(of_integers(whole[t]), scale, sums[t]);
      if constexpr (kLeasts) {
        const Vf least = load_f(piece.leasts + codec::kTileRows * g);
        sums[t] = multiply_add(least, every_f(operand.shifts[at + t]), sums[t]);
      }
    }
  }
  for (size_t t = 0; t < kTokens; ++t) store_f(to + codec::kTileRows * t, sums[t]);
}

template <bool kLeasts>
static void add_panel_of(const Piece& piece, const Operand& operand, size_t panel, float* sums) {
  const size_t tokens = operand.tokens_of(panel);
  size_t token = 0;
  for (; token + kTokensAtOnce <= tokens; token += kTokensAtOnce)
    add_codes<kTokensAtOnce, kLeasts>(piece, operand, panel, token, sums + 16 * token);
  if constexpr (kTokensAtOnce > 2) {
    for (; token + 2 <= tokens; token += 2)
      add_codes<2, kLeasts>(piece, operand, panel, token, sums + 16 * token);
  }
  for (; token < tokens; ++token)
    add_codes<1, kLeasts>(piece, operand, panel, token, sums + 16 * token);
}

void add_panel(const Piece& piece, const Operand& operand, size_t panel, float* sums) {
  if (piece.leasts != nullptr) return add_panel_of<true>(piece, operand, panel, sums);
  add_panel_of<false>(piece, operand, panel, sums);
}

static void expand(Source& from, size_t count, Place to, Prefetcher& prefetcher) {
  using codec::ValueKind;
  switch (from.kind) {
    case TensorKind::q4_0:
      return expand_blocks(from, count, 18, to, prefetcher, expand_q4_0);
    case TensorKind::q4_1:
      return expand_blocks(from, count, 20, to, prefetcher, expand_q4_1);
    case TensorKind::q8_0:
      return expand_blocks(from, count, 34, to, prefetcher, expand_q8_0);
    case TensorKind::q8:
      return expand_tiles<ValueKind::q8>(
          from, count, to, prefetcher, [](const Source& source, const Place& place) {
            store_f(place.scales, tile_scales(source.scales, source.base));
          });
    case TensorKind::q4:
      return expand_tiles<ValueKind::q4>(from, count, to, prefetcher, expand_q4);
    case TensorKind::q3:
      return expand_tiles<ValueKind::q3>(from, count, to, prefetcher,
                                         expand_pairs_of_bits<ValueKind::q3>);
    case TensorKind::q2:
      return expand_tiles<ValueKind::q2>(from, count, to, prefetcher,
                                         expand_pairs_of_bits<ValueKind::q2>);
    case TensorKind::sparse_q8:
      return expand_sparse(from, count, to, prefetcher, expand_sparse_q8);
    default:
      SCANT_CHECK(from.kind == TensorKind::sparse_q4);
      return expand_sparse(from, count, to, prefetcher, expand_sparse_q4);
  }
}

// The next piece of strip `i` of those at hand.
static Piece expand_piece(const Part& part, const Plan& plan, size_t i, size_t first,
                          Source& source, Prefetcher& prefetcher) {
  const size_t groups = std::min(plan.groups, part.operand->groups - first);
  const size_t at = i * plan.groups;
  const Place to{.elements = part.scratch + plan.elements + at * plan.quads * 64,
                 .scales = reinterpret_cast<float*>(part.scratch + plan.scales) + at * 16,
                 .leasts = source.kind == TensorKind::q4_1
                               ? reinterpret_cast<float*>(part.scratch + plan.leasts) + at * 16
                               : nullptr};
  const std::byte* const lying = source.codes;
  expand(source, groups, to, prefetcher);
  return {.levels = source.kind == TensorKind::q8 ? lying : to.elements,
          .scales = to.scales,
          .leasts = to.leasts,
          .group_first = first,
          .groups = groups,
          .quads = plan.quads};
}

static void store_sums(const Part& part, uint64_t strip, const float* sums) {
  const uint64_t row = strip * codec::kTileRows;
  const size_t rows = std::min<uint64_t>(codec::kTileRows, part.weights->shape.rows - row);
  float* to = part.out + row;
  for (size_t token = 0; token < part.operand->tokens; ++token, to += part.stride) {
    const Vf sum = load_f(sums + codec::kTileRows * token);
    if (rows == codec::kTileRows) {
      store_f(to, sum);
    } else {
      store_first(to, sum, rows);
    }
  }
}

void multiply_codes(const Part& part, AddPanel add) {
  const Operand& operand = *part.operand;
  const Plan plan = plan_of(*part.weights, operand.tokens);
  const size_t of_strip = base::align_up(operand.tokens, kPanelTokens) * 16;
  auto* const sums = reinterpret_cast<float*>(part.scratch + plan.sums);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t done = 0; done < part.strips; done += plan.strips) {
    const size_t strips = std::min<uint64_t>(plan.strips, part.strips - done);
    Source sources[kStripsMany];
    Piece pieces[kStripsMany];
    for (size_t i = 0; i < strips; ++i)
      sources[i] = source_of_strip(part, part.strip_first + done + i, part.scratch + plan.rows);
    std::memset(sums, 0, strips * of_strip * sizeof(float));
    for (size_t first = 0; first < operand.groups; first += plan.groups) {
      for (size_t i = 0; i < strips; ++i)
        pieces[i] = expand_piece(part, plan, i, first, sources[i], prefetcher);
      for (size_t panel = 0; panel < operand.panels; ++panel) {
        for (size_t i = 0; i < strips; ++i)
          add(pieces[i], operand, panel, sums + i * of_strip + panel * kPanelTokens * 16);
      }
    }
    for (size_t i = 0; i < strips; ++i)
      store_sums(part, part.strip_first + done + i, sums + i * of_strip);
  }
}
