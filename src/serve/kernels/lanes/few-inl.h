// Products of codes with few tokens: groups are multiplied in registers as they are read. Included
// within the namespace of an instruction set.

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

// The sums of a strip: in registers, or, of more tokens than registers are left for, in memory.
template <size_t kTokens>
struct Sums {
  static constexpr bool kInRegisters = kTokens <= kTokensAtOnce;
  float* to = nullptr;  // [token][row]
  Vf values[kInRegisters ? kTokens : 1];

  SCANT_METHOD explicit Sums(float* memory) : to(memory) {
    for (size_t t = 0; t < kTokens; ++t) set(t, zero_f());
  }
  SCANT_METHOD Vf get(size_t t) const {
    return kInRegisters ? values[t] : load_f(to + codec::kTileRows * t);
  }
  SCANT_METHOD void set(size_t t, Vf value) {
    if constexpr (kInRegisters) {
      values[t] = value;
    } else {
      store_f(to + codec::kTileRows * t, value);
    }
  }
  SCANT_METHOD void finish() const {
    for (size_t t = 0; kInRegisters && t < kTokens; ++t)
      store_f(to + codec::kTileRows * t, values[t]);
  }
};

template <TensorKind kind, size_t kTokens>
SCANT_APART void multiply_strip(const Source& source, const Operand& operand, float* to,
                                Prefetcher& of_part) {
  Source from = source;  // copies, so that what they hold stays in registers
  Prefetcher prefetcher = of_part;
  constexpr bool kNibbles = kind == TensorKind::q4_0 || kind == TensorKind::q4_1;
  Sums<kTokens> sums(to);
  for (size_t group = 0; group < operand.groups; ++group) {
    Multiply<kTokens> sink;
    const size_t at = operand.index(0, group);
    sink.wide = kind <= TensorKind::q8_0 ? kPairColumns : codec::kTileColumns;
    sink.codes = operand.codes(0, group);
    for (size_t t = 0; t < kTokens; ++t) {
      const int32_t start = operand.starts[at + t];  // -128 times the codes' sum
      sink.whole[t] = kNibbles ? every_i(start / 128 * kOffset<kind>) : start_of(start);
    }
    expand_group<kind>(from, sink, prefetcher);
    for (size_t t = 0; t < kTokens; ++t) {
      const Vf scale = times(sink.row_scales, every_f(operand.scales[at + t]));
      Vf sum = multiply_add(of_integers(sink.whole[t]), scale, sums.get(t));
      if constexpr (kind == TensorKind::q4_1)
        sum = multiply_add(sink.row_leasts, every_f(operand.shifts[at + t]), sum);
      sums.set(t, sum);
    }
  }
  sums.finish();
  of_part = prefetcher;
}

// From ten tokens on those of an odd number get one beside them that nobody has: its codes and
// scales lie within the operand's memory, and its sums are never read.
inline constexpr size_t kExactTokensMost = 9;
template <typename What>
SCANT_INLINE void for_few(size_t tokens, const What& what) {
  if constexpr (kTokensFew > kExactTokensMost) {
    if (tokens > kExactTokensMost)
      return for_count<kTokensFew / 2>((tokens + 1) / 2, [&]<size_t kHalf>() {
        if constexpr (2 * kHalf > kExactTokensMost) what.template operator()<2 * kHalf>();
      });
  }
  for_count<std::min(kTokensFew, kExactTokensMost)>(tokens, what);
}

static void multiply_few(const Part& part) {
  const Operand& operand = *part.operand;
  const Plan plan = plan_of(*part.weights, operand.tokens);
  auto* const sums = reinterpret_cast<float*>(part.scratch + plan.sums);
  Prefetcher prefetcher = prefetcher_of(part);
  for (uint64_t strip = part.strip_first; strip < part.strip_first + part.strips; ++strip) {
    const Source source = source_of_strip(part, strip, part.scratch + plan.rows);
    for_kind(source.kind, [&]<TensorKind kind>() {
      for_few(operand.tokens, [&]<size_t kTokens>() {
        multiply_strip<kind, kTokens>(source, operand, sums, prefetcher);
      });
    });
    store_sums(part, strip, sums);
  }
}
