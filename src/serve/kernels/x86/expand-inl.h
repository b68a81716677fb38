// Strips of weights as sixteen lanes read them: quads of levels, or pairs of bf16, one lane for
// each row, in the order that tiles have in a file. Included within the namespace of an instruction
// set.

// Asks for bytes before they are read: those of this part, from `distance` behind its first one on,
// then those of the worker's next part.
class Prefetcher {
 public:
  // `far`: to L2, for rows, which are read side by side.
  Prefetcher(Bytes part, size_t distance, Bytes ahead, bool far)
      : at_(part.data() + std::min(distance, part.size())),
        end_(part.data() + part.size()),
        ahead_(ahead),
        far_(far) {}
  // So many bytes are being read.
  SCANT_METHOD void next(size_t bytes) {
    for (left_ += bytes; left_ >= kLine; left_ -= kLine) {
      if (at_ >= end_) {
        if (ahead_.empty()) return;
        at_ = ahead_.data();
        end_ = at_ + ahead_.size();
        ahead_ = {};
      }
      if (far_) {
        _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
      } else {
        _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T0);
      }
      at_ += kLine;
    }
  }

 private:
  static constexpr size_t kLine = 64;
  const std::byte* at_;
  const std::byte* end_;
  Bytes ahead_;
  bool far_;
  size_t left_ = 0;
};

SCANT_INLINE Prefetcher prefetcher_of(const Part& part) {
  const Bytes bytes = part_bytes(part);
  const bool far = row_by_row(part.weights->kind);
  return {bytes, far ? bytes.size() / part.strips : kTileDistanceBytes, part.ahead, far};
}

// Where a strip's groups are read, in ascending order.
struct Source {
  TensorKind kind = TensorKind::q8;
  const std::byte* rows = nullptr;    // of rows: the next group of the first row
  size_t stride = 0;                  // from row to row
  const std::byte* scales = nullptr;  // of tiles: of the next tile
  const std::byte* codes = nullptr;   // likewise
  const std::byte* bits = nullptr;    // of sparse tiles
  uint32_t base = 0;
};

// What a group becomes is given to a sink, quad by quad: quad(k, levels); or offset_quad(k, values)
// with kOffset<kind> to be taken from each value, which is below 16. Then scales() and leasts().
template <TensorKind kind>
constexpr int kOffset = kind == TensorKind::q4_0 ? 8 : 0;

// Writes the group to memory.
struct Store {
  std::byte* elements = nullptr;  // quads of levels
  float* row_scales = nullptr;
  float* row_leasts = nullptr;  // Q4_1
  SCANT_METHOD void quad(size_t k, Vi levels) const { store_i(elements + 64 * k, levels); }
  template <int offset>
  SCANT_METHOD void offset_quad(size_t k, Vi values) const {
    quad(k, minus8(values, every_i(offset * 0x01010101)));
  }
  SCANT_METHOD void scales(Vf value) const { store_f(row_scales, value); }
  SCANT_METHOD void leasts(Vf value) const { store_f(row_leasts, value); }
};

// `rows`: room for a last strip, filled up.
SCANT_INLINE Source source_of_strip(const Part& part, uint64_t strip, std::byte* rows) {
  const Tensor& weights = *part.weights;
  const size_t columns = weights.shape.columns;
  Source made{.kind = weights.kind};
  if (row_by_row(weights.kind)) {
    made.stride = *row_bytes(weights.kind, columns);
    made.rows = sixteen_rows(weights, strip, made.stride, rows);
    return made;
  }
  const codec::ValueKind kind = strip_values(weights.kind);
  const Bytes bytes = strip_of(weights, strip);
  made.base = base_of(weights, strip);
  if (sparse(weights.kind)) {
    made.bits = bytes.data();
    made.scales = bytes.data() + sizeof(uint64_t) * codec::kTileRows * codec::tiles(columns);
    made.codes = bytes.data() + codec::sparse_strip_head_bytes(kind, columns);
  } else {
    made.scales = bytes.data();
    made.codes = bytes.data() + codec::scale_bytes(kind, columns);
  }
  return made;
}

// Four columns of 32 bits of 16 rows: element k of each row to lane row of quads[k].
SCANT_INLINE void turn(const std::byte* from, size_t stride, Vi (&quads)[4]) {
  const Vi row0 = four_rows(from, stride);
  const Vi row1 = four_rows(from + stride, stride);
  const Vi row2 = four_rows(from + 2 * stride, stride);
  const Vi row3 = four_rows(from + 3 * stride, stride);
  const Vi low01 = low32(row0, row1);
  const Vi low23 = low32(row2, row3);
  const Vi high01 = high32(row0, row1);
  const Vi high23 = high32(row2, row3);
  quads[0] = low64(low01, low23);
  quads[1] = high64(low01, low23);
  quads[2] = low64(high01, high23);
  quads[3] = high64(high01, high23);
}
// So many times 16 bytes of each row, to sink(quad, elements).
template <typename Sink>
SCANT_INLINE void turn_rows_to(const std::byte* from, size_t stride, size_t times,
                               const Sink& sink) {
  for (size_t i = 0; i < times; ++i) {
    Vi quads[4];
    turn(from + 16 * i, stride, quads);
    for (size_t k = 0; k < 4; ++k) sink(4 * i + k, quads[k]);
  }
}
SCANT_INLINE void turn_rows(const std::byte* from, size_t stride, size_t times, std::byte* to) {
  for (size_t i = 0; i < times; ++i) {
    Vi quads[4];
    turn(from + 16 * i, stride, quads);
    for (size_t k = 0; k < 4; ++k) store_i(to + 64 * (4 * i + k), quads[k]);
  }
}

// 64 bytes of each row, to sink(k, elements).
#if !SCANT_HAS_AVX512
template <typename Sink>
SCANT_INLINE void turn_lines_to(const std::byte* from, size_t stride, const Sink& sink) {
  turn_rows_to(from, stride, 4, sink);
}
#endif

// --- GGUF's blocks

template <typename Sink>
SCANT_INLINE void expand_q8_0(const Source& from, Sink& sink) {
  turn_rows_to(from.rows + 2, from.stride, 2, [&](size_t k, Vi levels) { sink.quad(k, levels); });
  sink.scales(scales_of_rows(from.rows, from.stride));
}

template <TensorKind kind, typename Sink>
SCANT_INLINE void expand_nibbles(const Source& from, Sink& sink) {
  Vi quads[4];
  turn(from.rows + (kind == TensorKind::q4_1 ? 4 : 2), from.stride, quads);
  const Vi low = every_i(0x0F0F0F0F);
  for (size_t k = 0; k < 4; ++k) {
    sink.template offset_quad<kOffset<kind>>(k, both(quads[k], low));
    sink.template offset_quad<kOffset<kind>>(k + 4, both(down<4>(quads[k]), low));
  }
  if constexpr (kind == TensorKind::q4_1) {
    const Vi numbers = numbers_of_rows(from.rows, from.stride);
    sink.scales(of_low_halves(numbers));
    sink.leasts(of_low_halves(down<16>(numbers)));
  } else {
    sink.scales(scales_of_rows(from.rows, from.stride));
  }
}

// --- Tiles

// Levels by code, the sign included.
template <codec::ValueKind kind>
SCANT_INLINE __m128i level_table() {
  alignas(16) int8_t table[16] = {};
  constexpr auto levels = codec::levels(kind);
  for (size_t i = 0; i < levels.size(); ++i) {
    table[i] = static_cast<int8_t>(levels[i]);
    table[i + levels.size()] = static_cast<int8_t>(-static_cast<int>(levels[i]));
  }
  return _mm_load_si128(reinterpret_cast<const __m128i*>(table));
}

template <typename Sink>
SCANT_INLINE void expand_q8(const Source& from, Sink& sink) {
  for (size_t k = 0; k < 16; ++k) sink.quad(k, load_i(from.codes + 64 * k));
  sink.scales(tile_scales(from.scales, from.base));
}

template <typename Sink>
SCANT_INLINE void expand_q4(const Source& from, Sink& sink) {
  const __m128i table = level_table<codec::ValueKind::q4>();
  const Vi low = every_i(0x0F0F0F0F);
  sink.scales(tile_scales(from.scales, from.base));
  for (size_t p = 0; p < 8; ++p) {
    const Vi codes = load_i(from.codes + 64 * p);
    sink.quad(2 * p, look_up(table, both(codes, low)));
    sink.quad(2 * p + 1, look_up(table, both(down<4>(codes), low)));
  }
}

// Quad 4 * p + m has the bits 2 * m of each byte, and a sign in a word of its own.
template <codec::ValueKind kind, int kQuad, typename Sink>
SCANT_INLINE void expand_two_bits(const Source& from, Vi codes, size_t p, __m128i table,
                                  Sink& sink) {
  const size_t quad = 4 * p + kQuad;
  Vi index = both(down<2 * kQuad>(codes), every_i(0x03030303));
  if constexpr (kind == codec::ValueKind::q3) {
    uint64_t signs = 0;
    std::memcpy(&signs, from.codes + 256 + 8 * quad, sizeof signs);
    index = choose(signs, either(index, every_i(0x04040404)), index);
  }
  sink.quad(quad, look_up(table, index));
}

template <codec::ValueKind kind, typename Sink>
SCANT_INLINE void expand_pairs_of_bits(const Source& from, Sink& sink) {
  const __m128i table = level_table<kind>();
  sink.scales(tile_scales(from.scales, from.base));
  for (size_t p = 0; p < 4; ++p) {
    const Vi codes = load_i(from.codes + 64 * p);
    expand_two_bits<kind, 0>(from, codes, p, table, sink);
    expand_two_bits<kind, 1>(from, codes, p, table, sink);
    expand_two_bits<kind, 2>(from, codes, p, table, sink);
    expand_two_bits<kind, 3>(from, codes, p, table, sink);
  }
}

// --- Sparse tiles. Up to 64 bytes behind the kept values of a row may be read: tables follow those
// of every tensor.

SCANT_INLINE uint64_t bits_of(const Source& from, size_t row) {
  uint64_t bits = 0;
  std::memcpy(&bits, from.bits + sizeof bits * row, sizeof bits);
  return bits;
}

#if SCANT_HAS_VNNI
// 64 bytes of each of sixteen rows: elements whose bits are set follow one another at `from`, the
// others are zero.
class Lines {
 public:
  SCANT_METHOD void set16(size_t row, uint32_t bits, const std::byte* from) {
    rows_[row] = _mm512_maskz_expand_epi16(bits, apart(load_i(from)));
  }
  SCANT_METHOD void set8(size_t row, uint64_t bits, const std::byte* from) {
    rows_[row] = _mm512_maskz_expand_epi8(bits, apart(load_i(from)));
  }
  // Codes of 4 bits, the lower half of a byte first.
  SCANT_METHOD void set4(size_t row, uint64_t bits, const std::byte* from, __m128i table) {
    const Vi wide =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    const Vi codes = both(either(wide, _mm512_slli_epi16(wide, 4)), every_i(0x0F0F0F0F));
    rows_[row] = _mm512_maskz_expand_epi8(bits, look_up(table, codes));
  }
  // Element k of 32 bits of each row, to sink(k, elements).
  template <typename Sink>
  SCANT_METHOD void turn_to(const Sink& sink) {
    turn_registers(rows_);
    for (size_t k = 0; k < 16; ++k) sink(k, rows_[k]);
  }

 private:
  // A load of its own: Zen 4 takes ten times as long to expand from memory.
  SCANT_METHOD static Vi apart(Vi loaded) {
    asm("" : "+v"(loaded));
    return loaded;
  }
  Vi rows_[codec::kTileRows];
};
// AMX: a row of 64 columns; returns where its kept values end.
SCANT_INLINE const std::byte* expand_row16(uint64_t bits, const std::byte* from, std::byte* to) {
  const auto low = static_cast<__mmask32>(bits);
  const auto high = static_cast<__mmask32>(bits >> 32U);
  const std::byte* const middle = from + 2 * static_cast<size_t>(_mm_popcnt_u32(low));
  _mm512_store_si512(to, _mm512_maskz_expand_epi16(low, _mm512_loadu_si512(from)));
  _mm512_store_si512(to + 64, _mm512_maskz_expand_epi16(high, _mm512_loadu_si512(middle)));
  return middle + 2 * static_cast<size_t>(_mm_popcnt_u32(high));
}
#else
// The same, by a table of which bytes go where, for each eight bits.
class Lines {
 public:
  SCANT_METHOD void set16(size_t row, uint32_t bits, const std::byte* from) {
    for (size_t i = 0; i < 4; ++i, bits >>= 8U) {
      const auto* const places = reinterpret_cast<const __m128i*>(kPlaces16.of[bits & 255U]);
      store(row, 16 * i, _mm_shuffle_epi8(load_128(from), _mm_load_si128(places)));
      from += 2 * static_cast<size_t>(_mm_popcnt_u32(bits & 255U));
    }
  }
  SCANT_METHOD void set8(size_t row, uint64_t bits, const std::byte* from) {
    for (size_t i = 0; i < 8; ++i, bits >>= 8U) {
      const auto* const places = reinterpret_cast<const __m128i*>(kPlaces8.of[bits & 255U]);
      const __m128i eight = _mm_shuffle_epi8(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), _mm_loadl_epi64(places));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(rows_ + 64 * row + 8 * i), eight);
      from += static_cast<size_t>(_mm_popcnt_u64(bits & 255U));
    }
  }
  SCANT_METHOD void set4(size_t row, uint64_t bits, const std::byte* from, __m128i table) {
    alignas(16) std::byte kept[codec::kTileColumns + 8];
    const __m128i low = _mm_set1_epi8(15);
    for (size_t i = 0; i < 2; ++i) {
      const __m128i two = load_128(from + 16 * i);
      const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(two, low));
      const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(two, 4), low));
      auto* const out = reinterpret_cast<__m128i*>(kept + 32 * i);
      _mm_store_si128(out, _mm_unpacklo_epi8(even, odd));
      _mm_store_si128(out + 1, _mm_unpackhi_epi8(even, odd));
    }
    set8(row, bits, kept);
  }
  template <typename Sink>
  SCANT_METHOD void turn_to(const Sink& sink) const {
    turn_lines_to(rows_, 64, sink);
  }

 private:
  SCANT_METHOD static __m128i load_128(const std::byte* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  }
  SCANT_METHOD void store(size_t row, size_t at, __m128i value) {
    _mm_store_si128(reinterpret_cast<__m128i*>(rows_ + 64 * row + at), value);
  }
  alignas(64) std::byte rows_[codec::kTileRows * 64];
};
#endif

// Where the kept values of each row of a sparse tile go on: those of its upper 32 columns.
struct SparseRows {
  const std::byte* at[codec::kTileRows];
};
// The lower 32 columns of sixteen rows of bf16, or the upper ones, to sink(pair, elements). The
// lower ones set `rows`, and advance the source.
template <bool kUpper, typename Sink>
SCANT_INLINE void expand_sparse_pairs(Source& from, SparseRows& rows, const Sink& sink) {
  Lines lines;
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    const uint64_t all = bits_of(from, row);
    const auto bits = static_cast<uint32_t>(kUpper ? all >> 32U : all);
    const std::byte* const at = kUpper ? rows.at[row] : from.codes;
    lines.set16(row, bits, at);
    if constexpr (!kUpper) {
      rows.at[row] = at + 2 * static_cast<size_t>(_mm_popcnt_u32(bits));
      from.codes = at + 2 * static_cast<size_t>(_mm_popcnt_u64(all));
    }
  }
  lines.turn_to(sink);
}

template <typename Sink>
SCANT_INLINE void expand_sparse_q8(Source& from, Sink& sink) {
  Lines lines;
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    const uint64_t bits = bits_of(from, row);
    lines.set8(row, bits, from.codes);
    from.codes += _mm_popcnt_u64(bits);
  }
  lines.turn_to([&](size_t k, Vi levels) { sink.quad(k, levels); });
  sink.scales(tile_scales(from.scales, from.base));
}

template <typename Sink>
SCANT_INLINE void expand_sparse_q4(Source& from, Sink& sink) {
  const __m128i table = level_table<codec::ValueKind::q4>();
  Lines lines;
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    const uint64_t bits = bits_of(from, row);
    lines.set4(row, bits, from.codes, table);
    from.codes += (_mm_popcnt_u64(bits) + 1) / 2;
  }
  lines.turn_to([&](size_t k, Vi levels) { sink.quad(k, levels); });
  sink.scales(tile_scales(from.scales, from.base));
}

// --- All kinds

// Gives the next group to the sink, and asks for as many bytes as it has.
template <TensorKind kind, typename Sink>
SCANT_INLINE void expand_group(Source& from, Sink& sink, Prefetcher& prefetcher) {
  using codec::ValueKind;
  const std::byte* const begin = from.codes;
  if constexpr (kind == TensorKind::q8_0) expand_q8_0(from, sink);
  if constexpr (kind == TensorKind::q4_0 || kind == TensorKind::q4_1)
    expand_nibbles<kind>(from, sink);
  if constexpr (kind == TensorKind::q8) expand_q8(from, sink);
  if constexpr (kind == TensorKind::q4) expand_q4(from, sink);
  if constexpr (kind == TensorKind::q3) expand_pairs_of_bits<ValueKind::q3>(from, sink);
  if constexpr (kind == TensorKind::q2) expand_pairs_of_bits<ValueKind::q2>(from, sink);
  if constexpr (kind == TensorKind::sparse_q8) expand_sparse_q8(from, sink);
  if constexpr (kind == TensorKind::sparse_q4) expand_sparse_q4(from, sink);
  if constexpr (kind <= TensorKind::q8_0) {
    constexpr size_t kBytes = kind == TensorKind::q4_0 ? 18 : kind == TensorKind::q4_1 ? 20 : 34;
    from.rows += kBytes;
    prefetcher.next(codec::kTileRows * kBytes);
  } else {
    constexpr bool kSparse = kind >= TensorKind::sparse_bf16;
    constexpr size_t kBits = kind == TensorKind::q8   ? 8
                             : kind == TensorKind::q4 ? 4
                             : kind == TensorKind::q3 ? 3
                                                      : 2;
    from.scales += codec::kTileRows;
    if constexpr (kSparse) from.bits += sizeof(uint64_t) * codec::kTileRows;
    if constexpr (!kSparse) from.codes += codec::kTileRows * codec::kTileColumns * kBits / 8;
    const auto codes = static_cast<size_t>(from.codes - begin);
    prefetcher.next(codes + (kSparse ? 9 : 1) * codec::kTileRows);
  }
}
