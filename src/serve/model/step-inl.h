// The kernels of a step, written over sixteen lanes. Included inside a namespace that has Lanes
// with their operations, kRowsTogether and kLanesTogether: once for each instruction set
// (step_simd.cc) and once without vectors (step_reference.cc).

// The first n lanes, the others 0.
inline Lanes load_some(const float* from, size_t n) {
  float all[kLanes] = {};
  for (size_t i = 0; i < n; ++i) all[i] = from[i];
  return load(all);
}
inline void store_some(const Lanes& x, size_t n, float* to) {
  float all[kLanes];
  store(x, all);
  for (size_t i = 0; i < n; ++i) to[i] = all[i];
}
// Calls of(begin, load, store) for lanes 0 to 15, 16 to 31, and so on; the last ones may be fewer.
template <typename Of>
inline void in_lanes(size_t n, const Of& of) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    of([i](const float* from) { return load(from + i); },
       [i](const Lanes& x, float* to) { store(x, to + i); });
  }
  if (i == n) return;
  of([i, n](const float* from) { return load_some(from + i, n - i); },
     [i, n](const Lanes& x, float* to) { store_some(x, n - i, to + i); });
}

// Lane i takes lane i + 8, then i + 4, 2, 1.
inline float fold(const Lanes& x) {
  float lanes[kLanes];
  store(x, lanes);
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// ---- functions ---------------------------------------------------------------------------------

// Taylor's series of degree 7 behind the power of two. Below -87.3 it is 0, above 88.3 it stays.
inline Lanes exp(const Lanes& x) {
  const Lanes least = set(-87.3f);
  const Lanes within = max(min(x, set(88.3f)), least);
  const Lanes n = round(mul(within, set(1.44269504f)));
  Lanes r = fma(n, set(-0.693145752f), within);  // the first 16 bits of ln 2, then the rest
  r = fma(n, set(-1.42860677e-6f), r);
  Lanes sum = set(1.0f / 5040);
  sum = fma(sum, r, set(1.0f / 720));
  sum = fma(sum, r, set(1.0f / 120));
  sum = fma(sum, r, set(1.0f / 24));
  sum = fma(sum, r, set(1.0f / 6));
  sum = fma(sum, r, set(0.5f));
  sum = fma(sum, r, set(1.0f));
  sum = fma(sum, r, set(1.0f));
  const Lanes value = mul(sum, power_of_two(n));
  return where_nan(x, where_less(x, least, set(0.0f), value));
}
// x / (1 + exp(-t))
inline Lanes times_sigmoid(const Lanes& x, const Lanes& t) {
  return div(x, add(set(1.0f), exp(sub(set(0.0f), t))));
}
inline Lanes silu_of(const Lanes& x) { return times_sigmoid(x, x); }
// x / 2 * (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2 / pi) * (x + 0.044715 x^3)
inline Lanes gelu_tanh_of(const Lanes& x) {
  const Lanes square = mul(x, x);
  const Lanes cubic = fma(square, set(0.0356774081f), set(0.797884561f));
  return times_sigmoid(x, mul(set(2.0f), mul(x, cubic)));
}
// x * P, P the distribution of the normal one. With z = |x| / sqrt(2), 1 - P of |x| is
// exp(-z^2) / 2 times a polynomial in t = 1 / (1 + 0.3275911 z): Abramowitz and Stegun, 7.1.26.
inline Lanes gelu_of(const Lanes& x) {
  const Lanes z = mul(abs(x), set(0.707106781f));
  const Lanes t = div(set(1.0f), fma(z, set(0.3275911f), set(1.0f)));
  Lanes sum = set(1.061405429f);
  sum = fma(sum, t, set(-1.453152027f));
  sum = fma(sum, t, set(1.421413741f));
  sum = fma(sum, t, set(-0.284496736f));
  sum = fma(sum, t, set(0.254829592f));
  const Lanes tail = mul(set(0.5f), mul(mul(sum, t), exp(sub(set(0.0f), mul(z, z)))));
  const Lanes share = where_less(x, set(0.0f), tail, sub(set(1.0f), tail));
  return mul(x, share);
}

template <typename Of>
inline void activate(const float* x, const float* up, size_t n, float* out, const Of& of) {
  in_lanes(n, [&](const auto& get, const auto& put) {
    const Lanes value = of(get(x));
    put(up == nullptr ? value : mul(value, get(up)), out);
  });
}
inline void silu(const float* x, const float* up, size_t n, float* out) {
  activate(x, up, n, out, [](const Lanes& v) { return silu_of(v); });
}
inline void gelu_tanh(const float* x, const float* up, size_t n, float* out) {
  activate(x, up, n, out, [](const Lanes& v) { return gelu_tanh_of(v); });
}
inline void gelu(const float* x, const float* up, size_t n, float* out) {
  activate(x, up, n, out, [](const Lanes& v) { return gelu_of(v); });
}

inline void add_to(const float* x, size_t n, float* to) {
  in_lanes(n, [&](const auto& get, const auto& put) { put(add(get(to), get(x)), to); });
}
inline void divide(float* x, float by, size_t n) {
  in_lanes(n, [&](const auto& get, const auto& put) { put(div(get(x), set(by)), x); });
}

// ---- norms -------------------------------------------------------------------------------------

inline float inverse_root(float mean_square, float epsilon) {
  return 1.0f / std::sqrt(mean_square + epsilon);
}

inline void rms_norm(const float* x, const float* weight, float epsilon, size_t n, float* out) {
  Lanes squares = set(0.0f);
  in_lanes(n, [&](const auto& get, const auto&) {
    const Lanes v = get(x);
    squares = fma(v, v, squares);
  });
  const Lanes by = set(inverse_root(fold(squares) / static_cast<float>(n), epsilon));
  in_lanes(n,
           [&](const auto& get, const auto& put) { put(mul(mul(get(x), by), get(weight)), out); });
}

inline void layer_norm(const float* x, const float* weight, const float* bias, float epsilon,
                       size_t n, float* out) {
  Lanes sums = set(0.0f);
  in_lanes(n, [&](const auto& get, const auto&) { sums = add(sums, get(x)); });
  const Lanes mean = set(fold(sums) / static_cast<float>(n));
  Lanes squares = set(0.0f);
  size_t left = n;  // lanes behind the last value are no differences
  in_lanes(n, [&](const auto& get, const auto&) {
    Lanes v = sub(get(x), mean);
    if (left < kLanes) {
      float lanes[kLanes];
      store(v, lanes);
      v = load_some(lanes, left);
    }
    left -= kLanes;
    squares = fma(v, v, squares);
  });
  const Lanes by = set(inverse_root(fold(squares) / static_cast<float>(n), epsilon));
  in_lanes(n, [&](const auto& get, const auto& put) {
    put(fma(mul(sub(get(x), mean), by), get(weight), get(bias)), out);
  });
}

// ---- rope --------------------------------------------------------------------------------------

inline void rotate_halves(const float* cosines, const float* sines, size_t half, float* x) {
  in_lanes(half, [&](const auto& get, const auto& put) {
    const Lanes a = get(x);
    const Lanes b = get(x + half);
    const Lanes c = get(cosines);
    const Lanes s = get(sines);
    put(sub(mul(a, c), mul(b, s)), x);
    put(add(mul(b, c), mul(a, s)), x + half);
  });
}

inline void rotate_neighbours(const float* cosines, const float* sines, size_t half, float* x) {
  for (size_t i = 0; i < half; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    x[2 * i] = a * cosines[i] - b * sines[i];
    x[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

// ---- pages -------------------------------------------------------------------------------------

inline void widen_bf16(const uint16_t* from, size_t n, float* out) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load_bf16(from + i), out + i);
  uint16_t rest[kLanes] = {};
  for (size_t j = i; j < n; ++j) rest[j - i] = from[j];
  if (i < n) store_some(load_bf16(rest), n - i, out + i);
}
inline void widen_keys_i8(const int8_t* from, const float* scales, size_t head_size, float* out) {
  const Lanes by = load(scales);
  for (size_t d = 0; d < head_size; ++d)
    store(mul(load_i8(from + d * kLanes), by), out + d * kLanes);
}
inline void widen_i8(const int8_t* from, float scale, size_t n, float* out) {
  const Lanes by = set(scale);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(mul(load_i8(from + i), by), out + i);
  int8_t rest[kLanes] = {};
  for (size_t j = i; j < n; ++j) rest[j - i] = from[j];
  if (i < n) store_some(mul(load_i8(rest), by), n - i, out + i);
}

// ---- attention ---------------------------------------------------------------------------------

template <size_t kRows, size_t kPages>
inline void scores_of(const float* queries, const float* const* keys, size_t head_size,
                      float* scores) {
  Lanes sums[kRows][kPages];
  for (auto& row : sums) {
    for (Lanes& one : row) one = set(0.0f);
  }
  for (size_t d = 0; d < head_size; ++d) {
    Lanes k[kPages];
    for (size_t page = 0; page < kPages; ++page) k[page] = load(keys[page] + d * kLanes);
    for (size_t row = 0; row < kRows; ++row) {
      const Lanes q = set(queries[row * head_size + d]);
      for (size_t page = 0; page < kPages; ++page)
        sums[row][page] = fma(q, k[page], sums[row][page]);
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t page = 0; page < kPages; ++page)
      store(sums[row][page], scores + row * kBlockTokens + page * kLanes);
  }
}

template <size_t kRows>
inline void scores_of_rows(const float* queries, const float* const* keys, size_t pages,
                           size_t head_size, float* scores) {
  size_t page = 0;
  for (; page + kLanesTogether <= pages; page += kLanesTogether)
    scores_of<kRows, kLanesTogether>(queries, keys + page, head_size, scores + page * kLanes);
  for (; page < pages; ++page)
    scores_of<kRows, 1>(queries, keys + page, head_size, scores + page * kLanes);
}

inline void scores(const float* queries, size_t rows, const float* const* keys, size_t pages,
                   size_t head_size, float* out) {
  size_t row = 0;
  for (; row + kRowsTogether <= rows; row += kRowsTogether)
    scores_of_rows<kRowsTogether>(queries + row * head_size, keys, pages, head_size,
                                  out + row * kBlockTokens);
  for (; row < rows; ++row)
    scores_of_rows<1>(queries + row * head_size, keys, pages, head_size, out + row * kBlockTokens);
}

inline void softmax(float* scores, Seen seen, SoftmaxRow& row) {
  const size_t begin = seen.first / kLanes * kLanes;
  const size_t end = (seen.end + kLanes - 1) / kLanes * kLanes;
  for (size_t i = begin; i < seen.first; ++i) scores[i] = -INFINITY;
  for (size_t i = seen.end; i < end; ++i) scores[i] = -INFINITY;
  Lanes most = load(scores + begin);
  for (size_t i = begin + kLanes; i < end; i += kLanes) most = max(most, load(scores + i));
  const float block_largest = largest_of(most);
  const float largest = block_largest > row.largest ? block_largest : row.largest;
  row.correction = 1;
  if (largest != row.largest) {
    float lanes[kLanes];
    store(exp(sub(set(row.largest), set(largest))), lanes);
    row.correction = lanes[0];
    row.largest = largest;
  }
  Lanes sums = mul(load(row.sums), set(row.correction));
  for (size_t i = begin; i < end; i += kLanes) {
    const Lanes weight = exp(sub(load(scores + i), set(largest)));
    store(weight, scores + i);
    sums = add(sums, weight);
  }
  store(sums, row.sums);
}

template <size_t kRows, size_t kColumns>
inline void values_of(const float* weights, Seen seen, const SoftmaxRow* softmax_rows,
                      const float* const* values, size_t columns, size_t at, float* out) {
  Lanes sums[kRows][kColumns];
  for (size_t row = 0; row < kRows; ++row) {
    const Lanes by = set(softmax_rows[row].correction);
    for (size_t c = 0; c < kColumns; ++c)
      sums[row][c] = mul(load(out + row * columns + at + c * kLanes), by);
  }
  for (size_t key = seen.first; key < seen.end;) {
    const size_t stop = std::min<size_t>(seen.end, (key / kLanes + 1) * kLanes);
    const float* from = values[key / kLanes] + key % kLanes * columns + at;
    for (; key < stop; ++key, from += columns) {
      Lanes v[kColumns];
      for (size_t c = 0; c < kColumns; ++c) v[c] = load(from + c * kLanes);
      for (size_t row = 0; row < kRows; ++row) {
        const Lanes weight = set(weights[row * kBlockTokens + key]);
        for (size_t c = 0; c < kColumns; ++c) sums[row][c] = fma(weight, v[c], sums[row][c]);
      }
    }
  }
  for (size_t row = 0; row < kRows; ++row) {
    for (size_t c = 0; c < kColumns; ++c)
      store(sums[row][c], out + row * columns + at + c * kLanes);
  }
}

template <size_t kRows>
inline void values_of_rows(const float* weights, Seen seen, const SoftmaxRow* softmax_rows,
                           const float* const* values, size_t columns, float* out) {
  size_t at = 0;
  for (; at + kLanesTogether * kLanes <= columns; at += kLanesTogether * kLanes)
    values_of<kRows, kLanesTogether>(weights, seen, softmax_rows, values, columns, at, out);
  for (; at < columns; at += kLanes)
    values_of<kRows, 1>(weights, seen, softmax_rows, values, columns, at, out);
}

// Rows go together where they see the same keys.
inline void values(const float* weights, const Seen* seen, const SoftmaxRow* softmax_rows,
                   size_t rows, const float* const* values, size_t columns, float* out) {
  for (size_t row = 0; row < rows;) {
    size_t same = 1;
    while (same < kRowsTogether && row + same < rows && seen[row + same].first == seen[row].first &&
           seen[row + same].end == seen[row].end)
      ++same;
    if (same == kRowsTogether) {
      values_of_rows<kRowsTogether>(weights + row * kBlockTokens, seen[row], softmax_rows + row,
                                    values, columns, out + row * columns);
    } else {
      same = 1;
      values_of_rows<1>(weights + row * kBlockTokens, seen[row], softmax_rows + row, values,
                        columns, out + row * columns);
    }
    row += same;
  }
}

constexpr StepKernels step_kernels(const char* name) {
  return {.name = name,
          .rms_norm = rms_norm,
          .layer_norm = layer_norm,
          .silu = silu,
          .gelu_tanh = gelu_tanh,
          .gelu = gelu,
          .add = add_to,
          .rotate_halves = rotate_halves,
          .rotate_neighbours = rotate_neighbours,
          .widen_bf16 = widen_bf16,
          .widen_keys_i8 = widen_keys_i8,
          .widen_i8 = widen_i8,
          .scores = scores,
          .softmax = softmax,
          .values = values,
          .divide = divide};
}
