// How sums of a strip leave. Included within the namespace of an instruction set, behind its lanes.

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
