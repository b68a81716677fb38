// Products of codes: weights with levels and scales. Strips are expanded a piece at a time, and all
// tokens are multiplied with a piece while it lies in the cache. Included within the namespace of
// an instruction set.

template <size_t kTokens, bool kLeasts>
SCANT_APART void add_codes(const Piece& piece, const Operand& operand, size_t panel, size_t token,
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
  for_blocks<kTokensAtOnce>(operand.tokens_of(panel), [&]<size_t kTokens>(size_t token) {
    add_codes<kTokens, kLeasts>(piece, operand, panel, token, sums + 16 * token);
  });
}

// NOLINTNEXTLINE(misc-definitions-in-headers): each instruction set includes it once
void add_panel(const Piece& piece, const Operand& operand, size_t panel, float* sums) {
  if (piece.leasts != nullptr) return add_panel_of<true>(piece, operand, panel, sums);
  add_panel_of<false>(piece, operand, panel, sums);
}

// Calls what.template operator()<kind>() for a kind that is read as codes.
template <typename What>
SCANT_INLINE void for_kind(TensorKind kind, const What& what) {
  switch (kind) {
    case TensorKind::q4_0:
      return what.template operator()<TensorKind::q4_0>();
    case TensorKind::q4_1:
      return what.template operator()<TensorKind::q4_1>();
    case TensorKind::q8_0:
      return what.template operator()<TensorKind::q8_0>();
    case TensorKind::q8:
      return what.template operator()<TensorKind::q8>();
    case TensorKind::q4:
      return what.template operator()<TensorKind::q4>();
    case TensorKind::q3:
      return what.template operator()<TensorKind::q3>();
    case TensorKind::q2:
      return what.template operator()<TensorKind::q2>();
    case TensorKind::sparse_q8:
      return what.template operator()<TensorKind::sparse_q8>();
    default:
      SCANT_CHECK(kind == TensorKind::sparse_q4);
      return what.template operator()<TensorKind::sparse_q4>();
  }
}

template <TensorKind kind>
static void expand(Source& from, size_t count, size_t quads, Store to, Prefetcher& prefetcher) {
  for (size_t i = 0; i < count; ++i) {
    expand_group<kind>(from, to, prefetcher);
    to.elements += 64 * quads;
    to.row_scales += codec::kTileRows;
    if (to.row_leasts != nullptr) to.row_leasts += codec::kTileRows;
  }
}

// The next piece of strip `i` of those at hand.
static Piece expand_piece(const Part& part, const Plan& plan, size_t i, size_t first,
                          Source& source, Prefetcher& prefetcher) {
  const size_t groups = std::min(plan.groups, part.operand->groups - first);
  const size_t at = i * plan.groups;
  const Store to{.elements = part.scratch + plan.elements + at * plan.quads * 64,
                 .row_scales = reinterpret_cast<float*>(part.scratch + plan.scales) + at * 16,
                 .row_leasts = source.kind == TensorKind::q4_1
                                   ? reinterpret_cast<float*>(part.scratch + plan.leasts) + at * 16
                                   : nullptr};
  for_kind(source.kind,
           [&]<TensorKind kind>() { expand<kind>(source, groups, plan.quads, to, prefetcher); });
  return {.levels = to.elements,
          .scales = to.row_scales,
          .leasts = to.row_leasts,
          .group_first = first,
          .groups = groups,
          .quads = plan.quads};
}

// NOLINTNEXTLINE(misc-definitions-in-headers): each instruction set includes it once
void multiply_codes(const Part& part, AddPanel add, size_t columns) {
  const Operand& operand = *part.operand;
  Plan plan = plan_of(*part.weights, operand.tokens);
  plan.groups = std::min(plan.groups, columns / group_columns(operand.form));
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
      for (size_t panel = 0; panel < operand.panels; panel += kPanelsAtOnce) {
        const size_t end = std::min(panel + kPanelsAtOnce, operand.panels);
        for (size_t i = 0; i < strips; ++i) {
          for (size_t one = panel; one < end; ++one)
            add(pieces[i], operand, one, sums + i * of_strip + one * kPanelTokens * 16);
        }
      }
    }
    for (size_t i = 0; i < strips; ++i)
      store_sums(part, part.strip_first + done + i, sums + i * of_strip);
  }
}
