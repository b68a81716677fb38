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
        __builtin_prefetch(at_, 0, 2);
      } else {
        __builtin_prefetch(at_, 0, 3);
      }
      at_ += kLine;
    }
  }
  // As many as a compiler knows of, for blocks of rows, whose kernels have no instruction to spare:
  // the last ones of a part, less than that, are not asked for.
  template <size_t kBytes>
  SCANT_METHOD void next() {
    if (kBytes > static_cast<size_t>(end_ - at_)) {
      if (ahead_.size() < kBytes) return;
      at_ = ahead_.data();
      end_ = at_ + ahead_.size();
      ahead_ = {};
    }
    if (far_) {
      for (size_t i = 0; i < kBytes; i += kLine) __builtin_prefetch(at_ + i, 0, 2);
    } else {
      for (size_t i = 0; i < kBytes; i += kLine) __builtin_prefetch(at_ + i, 0, 3);
    }
    at_ += kBytes;
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
  const TensorKind kind = part.weights->kind;
  if (row_by_row(kind)) return {bytes, bytes.size() / part.strips, part.ahead, true};
  const bool far = sparse(kind) || kind == TensorKind::q8 || kind == TensorKind::q4;
  return {bytes, far ? kFarDistanceBytes : kTileDistanceBytes, part.ahead, far};
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

// --- GGUF's blocks

template <typename Sink>
SCANT_INLINE void expand_q8_0(const Source& from, Sink& sink) {
  const RowPlaces rows(from.rows, from.stride);
  turn_rows_to(rows, 2, 2, [&](size_t k, Vi levels) { sink.quad(k, levels); });
  sink.scales(scales_of_rows(rows));
}

template <TensorKind kind, typename Sink>
SCANT_INLINE void expand_nibbles(const Source& from, Sink& sink) {
  const RowPlaces rows(from.rows, from.stride);
  Vi quads[4];
  turn(rows, kind == TensorKind::q4_1 ? 4 : 2, quads);
  const Vi low = every_i(0x0F0F0F0F);
  for (size_t k = 0; k < 4; ++k) {
    sink.template offset_quad<kOffset<kind>>(k, both(quads[k], low));
    sink.template offset_quad<kOffset<kind>>(k + 4, both(down<4>(quads[k]), low));
  }
  if constexpr (kind == TensorKind::q4_1) {
    const Vi numbers = numbers_of_rows(rows);
    sink.scales(of_low_halves(numbers));
    sink.leasts(of_low_halves(down<16>(numbers)));
  } else {
    sink.scales(scales_of_rows(rows));
  }
}

// --- Tiles

// Levels by code, the sign included.
template <codec::ValueKind kind>
SCANT_INLINE V128 level_table() {
  alignas(16) int8_t table[16] = {};
  constexpr auto levels = codec::levels(kind);
  for (size_t i = 0; i < levels.size(); ++i) {
    table[i] = static_cast<int8_t>(levels[i]);
    table[i + levels.size()] = static_cast<int8_t>(-static_cast<int>(levels[i]));
  }
  return load_128(table);
}

template <typename Sink>
SCANT_INLINE void expand_q8(const Source& from, Sink& sink) {
  for (size_t k = 0; k < 16; ++k) sink.quad(k, load_i(from.codes + 64 * k));
  sink.scales(tile_scales(from.scales, from.base));
}

template <typename Sink>
SCANT_INLINE void expand_q4(const Source& from, Sink& sink) {
  const V128 table = level_table<codec::ValueKind::q4>();
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
SCANT_INLINE void expand_two_bits(const Source& from, Vi codes, size_t p, V128 table, Sink& sink) {
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
  const V128 table = level_table<kind>();
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
      rows.at[row] = at + 2 * kept_of(bits);
      from.codes = at + 2 * kept_of(all);
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
    from.codes += kept_of(bits);
  }
  lines.turn_to([&](size_t k, Vi levels) { sink.quad(k, levels); });
  sink.scales(tile_scales(from.scales, from.base));
}

template <typename Sink>
SCANT_INLINE void expand_sparse_q4(Source& from, Sink& sink) {
  const V128 table = level_table<codec::ValueKind::q4>();
  Lines lines;
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    const uint64_t bits = bits_of(from, row);
    lines.set4(row, bits, from.codes, table);
    from.codes += (kept_of(bits) + 1) / 2;
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
    prefetcher.template next<codec::kTileRows * kBytes>();
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
