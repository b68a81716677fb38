// Rows of a matrix to lanes: element k of sixteen rows becomes one vector. Included within the
// namespace of an instruction set, behind its lanes.

// Four columns of 32 bits of 16 rows: element k of each row to lane row of quads[k].
SCANT_INLINE void turn(const RowPlaces& rows, size_t offset, Vi (&quads)[4]) {
  const Vi row0 = four_rows(rows, offset);
  const Vi row1 = four_rows(rows, offset + rows.stride);
  const Vi row2 = four_rows(rows, offset + 2 * rows.stride);
  const Vi row3 = four_rows(rows, offset + 3 * rows.stride);
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
SCANT_INLINE void turn_rows_to(const RowPlaces& rows, size_t offset, size_t times,
                               const Sink& sink) {
  for (size_t i = 0; i < times; ++i) {
    Vi quads[4];
    turn(rows, offset + 16 * i, quads);
    for (size_t k = 0; k < 4; ++k) sink(4 * i + k, quads[k]);
  }
}
SCANT_INLINE void turn_rows(const std::byte* from, size_t stride, size_t times, std::byte* to) {
  const RowPlaces rows(from, stride);
  for (size_t i = 0; i < times; ++i) {
    Vi quads[4];
    turn(rows, 16 * i, quads);
    for (size_t k = 0; k < 4; ++k) store_i(to + 64 * (4 * i + k), quads[k]);
  }
}

// 64 bytes of each row, to sink(k, elements).
#if !SCANT_HAS_AVX512
template <typename Sink>
SCANT_INLINE void turn_lines_to(const std::byte* from, size_t stride, const Sink& sink) {
  turn_rows_to(RowPlaces(from, stride), 0, 4, sink);
}
#endif
