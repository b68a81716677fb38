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
  __attribute__((always_inline)) void next(size_t bytes) {
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

// What a group becomes.
struct Place {
  std::byte* elements = nullptr;  // quads of levels, or pairs
  float* scales = nullptr;
  float* leasts = nullptr;  // Q4_1
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
// So many times 16 bytes of each row.
SCANT_INLINE void turn_rows(const std::byte* from, size_t stride, size_t times, std::byte* to) {
  for (size_t i = 0; i < times; ++i) {
    Vi quads[4];
    turn(from + 16 * i, stride, quads);
    for (size_t k = 0; k < 4; ++k) store_i(to + 64 * (4 * i + k), quads[k]);
  }
}

// --- GGUF's blocks

SCANT_INLINE void expand_q8_0(const Source& from, const Place& to) {
  store_f(to.scales, of_low_halves(gather(from.rows, from.stride)));
  turn_rows(from.rows + 2, from.stride, 2, to.elements);
}

SCANT_INLINE void expand_nibbles(const Source& from, size_t head, Vi less, const Place& to) {
  Vi quads[4];
  turn(from.rows + head, from.stride, quads);
  const Vi low = every_i(0x0F0F0F0F);
  for (size_t k = 0; k < 4; ++k) {
    store_i(to.elements + 64 * k, minus8(both(quads[k], low), less));
    store_i(to.elements + 64 * (k + 4), minus8(both(down<4>(quads[k]), low), less));
  }
}

SCANT_INLINE void expand_q4_0(const Source& from, const Place& to) {
  store_f(to.scales, of_low_halves(gather(from.rows, from.stride)));
  expand_nibbles(from, 2, every_i(0x08080808), to);
}

SCANT_INLINE void expand_q4_1(const Source& from, const Place& to) {
  const Vi both_numbers = gather(from.rows, from.stride);
  store_f(to.scales, of_low_halves(both_numbers));
  store_f(to.leasts, of_low_halves(down<16>(both_numbers)));
  expand_nibbles(from, 4, every_i(0), to);
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

SCANT_INLINE void expand_q4(const Source& from, const Place& to) {
  const __m128i table = level_table<codec::ValueKind::q4>();
  const Vi low = every_i(0x0F0F0F0F);
  store_f(to.scales, tile_scales(from.scales, from.base));
  for (size_t p = 0; p < 8; ++p) {
    const Vi codes = load_i(from.codes + 64 * p);
    store_i(to.elements + 128 * p, look_up(table, both(codes, low)));
    store_i(to.elements + 128 * p + 64, look_up(table, both(down<4>(codes), low)));
  }
}

// Quad 4 * p + m has the bits 2 * m of each byte, and a sign in a word of its own.
template <codec::ValueKind kind, int kQuad>
SCANT_INLINE void expand_two_bits(const Source& from, Vi codes, size_t p, __m128i table,
                                  const Place& to) {
  const size_t quad = 4 * p + kQuad;
  Vi index = both(down<2 * kQuad>(codes), every_i(0x03030303));
  if constexpr (kind == codec::ValueKind::q3) {
    uint64_t signs = 0;
    std::memcpy(&signs, from.codes + 256 + 8 * quad, sizeof signs);
    index = choose(signs, either(index, every_i(0x04040404)), index);
  }
  store_i(to.elements + 64 * quad, look_up(table, index));
}

template <codec::ValueKind kind>
SCANT_INLINE void expand_pairs_of_bits(const Source& from, const Place& to) {
  const __m128i table = level_table<kind>();
  store_f(to.scales, tile_scales(from.scales, from.base));
  for (size_t p = 0; p < 4; ++p) {
    const Vi codes = load_i(from.codes + 64 * p);
    expand_two_bits<kind, 0>(from, codes, p, table, to);
    expand_two_bits<kind, 1>(from, codes, p, table, to);
    expand_two_bits<kind, 2>(from, codes, p, table, to);
    expand_two_bits<kind, 3>(from, codes, p, table, to);
  }
}

// --- Sparse tiles

// A row of 64 columns from the kept values that begin at `from`; returns where they end. Up to 64
// bytes behind that may be read: tables follow the values of every tensor.
#if SCANT_HAS_VNNI
SCANT_INLINE const std::byte* expand_row16(uint64_t bits, const std::byte* from, std::byte* to) {
  const auto low = static_cast<__mmask32>(bits);
  const auto high = static_cast<__mmask32>(bits >> 32U);
  const std::byte* const middle = from + 2 * static_cast<size_t>(_mm_popcnt_u32(low));
  _mm512_store_si512(to, _mm512_maskz_expand_epi16(low, _mm512_loadu_si512(from)));
  _mm512_store_si512(to + 64, _mm512_maskz_expand_epi16(high, _mm512_loadu_si512(middle)));
  return middle + 2 * static_cast<size_t>(_mm_popcnt_u32(high));
}
SCANT_INLINE void expand_row8(uint64_t bits, const std::byte* from, std::byte* to) {
  _mm512_store_si512(to, _mm512_maskz_expand_epi8(bits, _mm512_loadu_si512(from)));
}
#else
SCANT_INLINE const std::byte* expand_row16(uint64_t bits, const std::byte* from, std::byte* to) {
  for (size_t i = 0; i < 16; ++i, bits >>= 4U) {
    uint64_t four = 0;
    std::memcpy(&four, from, sizeof four);
    const uint64_t places = _pdep_u64(bits & 15U, 0x0001000100010001U) * 0xFFFFU;
    four = _pdep_u64(four, places);
    std::memcpy(to + 8 * i, &four, sizeof four);
    from += 2 * static_cast<size_t>(_mm_popcnt_u64(bits & 15U));
  }
  return from;
}
SCANT_INLINE void expand_row8(uint64_t bits, const std::byte* from, std::byte* to) {
  for (size_t i = 0; i < 8; ++i, bits >>= 8U) {
    uint64_t eight = 0;
    std::memcpy(&eight, from, sizeof eight);
    const uint64_t places = _pdep_u64(bits & 255U, 0x0101010101010101U) * 0xFFU;
    eight = _pdep_u64(eight, places);
    std::memcpy(to + 8 * i, &eight, sizeof eight);
    from += static_cast<size_t>(_mm_popcnt_u64(bits & 255U));
  }
}
#endif

SCANT_INLINE uint64_t bits_of(const Source& from, size_t row) {
  uint64_t bits = 0;
  std::memcpy(&bits, from.bits + sizeof bits * row, sizeof bits);
  return bits;
}

// 64 columns of 16 rows, 128 bytes a row.
SCANT_INLINE void expand_sparse_bf16(Source& from, std::byte* rows) {
  for (size_t row = 0; row < codec::kTileRows; ++row)
    from.codes = expand_row16(bits_of(from, row), from.codes, rows + 128 * row);
}

SCANT_INLINE void expand_sparse_q8(Source& from, const Place& to) {
  alignas(64) std::byte rows[codec::kTileRows * codec::kTileColumns];
  store_f(to.scales, tile_scales(from.scales, from.base));
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    const uint64_t bits = bits_of(from, row);
    expand_row8(bits, from.codes, rows + 64 * row);
    from.codes += _mm_popcnt_u64(bits);
  }
  turn_rows(rows, 64, 4, to.elements);
}

SCANT_INLINE void expand_sparse_q4(Source& from, const Place& to) {
  alignas(64) std::byte rows[codec::kTileRows * codec::kTileColumns];
  alignas(64) std::byte kept[codec::kTileColumns + 8];
  const __m128i table = level_table<codec::ValueKind::q4>();
  const __m128i low = _mm_set1_epi8(15);
  store_f(to.scales, tile_scales(from.scales, from.base));
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    const uint64_t bits = bits_of(from, row);
    for (size_t i = 0; i < 2; ++i) {
      const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.codes + 16 * i));
      const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(two, low));
      const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(two, 4), low));
      auto* const out = reinterpret_cast<__m128i*>(kept + 32 * i);
      _mm_store_si128(out, _mm_unpacklo_epi8(even, odd));
      _mm_store_si128(out + 1, _mm_unpackhi_epi8(even, odd));
    }
    expand_row8(bits, kept, rows + 64 * row);
    from.codes += (_mm_popcnt_u64(bits) + 1) / 2;
  }
  turn_rows(rows, 64, 4, to.elements);
}

// --- All kinds

// Expands `count` groups; levels of q8 are read where they lie.
template <typename Expand>
SCANT_INLINE void expand_each(Source& from, size_t count, size_t quads, Place to,
                              Prefetcher& prefetcher, size_t bytes, const Expand& expand) {
  for (size_t i = 0; i < count; ++i) {
    expand(from, to);
    prefetcher.next(bytes);
    to.elements += 64 * quads;
    to.scales += codec::kTileRows;
    if (to.leasts != nullptr) to.leasts += codec::kTileRows;
  }
}

template <typename Expand>
SCANT_INLINE void expand_blocks(Source& from, size_t count, size_t bytes, Place to,
                                Prefetcher& prefetcher, const Expand& expand) {
  expand_each(from, count, 8, to, prefetcher, codec::kTileRows * bytes,
              [&](Source& source, const Place& place) {
                expand(source, place);
                source.rows += bytes;
              });
}

template <codec::ValueKind kind, typename Expand>
SCANT_INLINE void expand_tiles(Source& from, size_t count, Place to, Prefetcher& prefetcher,
                               const Expand& expand) {
  constexpr size_t kBytes = codec::tile_code_bytes(kind);
  expand_each(from, count, 16, to, prefetcher, kBytes + codec::kTileRows,
              [&](Source& source, const Place& place) {
                expand(source, place);
                source.scales += codec::kTileRows;
                source.codes += kBytes;
              });
}

template <typename Expand>
SCANT_INLINE void expand_sparse(Source& from, size_t count, Place to, Prefetcher& prefetcher,
                                const Expand& expand) {
  for (size_t i = 0; i < count; ++i) {
    const std::byte* const begin = from.codes;
    expand(from, to);
    from.scales += codec::kTileRows;
    from.bits += sizeof(uint64_t) * codec::kTileRows;
    to.elements += 64 * 16;
    to.scales += codec::kTileRows;
    prefetcher.next(static_cast<size_t>(from.codes - begin) + 9 * codec::kTileRows);
  }
}
