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

// --- Many tokens

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

// NOLINTNEXTLINE(misc-definitions-in-headers): each instruction set includes it once
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

// --- Few tokens: groups are multiplied in registers as they are read

// Multiplies the group with tokens of the one panel.
template <size_t kTokens>
struct Multiply {
  const int8_t* codes = nullptr;
  size_t wide = 0;
  Vi whole[kTokens];
  Vf row_scales;
  Vf row_leasts;

  SCANT_METHOD Vi four(size_t t, size_t k) const {
    int32_t value = 0;
    std::memcpy(&value, codes + t * wide + 4 * k, sizeof value);
    return every_i(value);
  }
  SCANT_METHOD void quad(size_t k, Vi levels) {
    const Weights weights = weights_of(levels);
    for (size_t t = 0; t < kTokens; ++t) whole[t] = add_products(whole[t], weights, four(t, k));
  }
  template <int>
  SCANT_METHOD void offset_quad(size_t k, Vi values) {
    for (size_t t = 0; t < kTokens; ++t)
      whole[t] = add_products_of_nibbles(whole[t], values, four(t, k));
  }
  SCANT_METHOD void scales(Vf value) { row_scales = value; }
  SCANT_METHOD void leasts(Vf value) { row_leasts = value; }
};

template <TensorKind kind, size_t kTokens>
static void multiply_strip(Source& from, const Operand& operand, float* to,
                           Prefetcher& prefetcher) {
  constexpr bool kNibbles = kind == TensorKind::q4_0 || kind == TensorKind::q4_1;
  Vf sums[kTokens];
  for (size_t t = 0; t < kTokens; ++t) sums[t] = zero_f();
  for (size_t group = 0; group < operand.groups; ++group) {
    Multiply<kTokens> sink;
    const size_t at = operand.index(0, group);
    sink.codes = operand.codes(0, group);
    sink.wide = group_columns(operand.form);
    for (size_t t = 0; t < kTokens; ++t) {
      const int32_t start = operand.starts[at + t];  // -128 times the codes' sum
      sink.whole[t] = kNibbles ? every_i(start / 128 * kOffset<kind>) : start_of(start);
    }
    expand_group<kind>(from, sink, prefetcher);
    for (size_t t = 0; t < kTokens; ++t) {
      const Vf scale = times(sink.row_scales, every_f(operand.scales[at + t]));
      sums[t] = multiply_add(of_integers(sink.whole[t]), scale, sums[t]);
      if constexpr (kind == TensorKind::q4_1)
        sums[t] = multiply_add(sink.row_leasts, every_f(operand.shifts[at + t]), sums[t]);
    }
  }
  for (size_t t = 0; t < kTokens; ++t) store_f(to + codec::kTileRows * t, sums[t]);
}

template <size_t kTokens>
static void multiply_few(const Part& part) {
  const Plan plan = plan_of(*part.weights, kTokens);
  auto* const sums = reinterpret_cast<float*>(part.scratch + plan.sums);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t strip = part.strip_first; strip < part.strip_first + part.strips; ++strip) {
    Source source = source_of_strip(part, strip, part.scratch + plan.rows);
    for_kind(source.kind, [&]<TensorKind kind>() {
      multiply_strip<kind, kTokens>(source, *part.operand, sums, prefetcher);
    });
    store_sums(part, strip, sums);
  }
}
