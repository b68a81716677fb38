// Vector kernels of the skinny products: a matrix times a few columns, its transpose times a few
// columns, and the product of two factors. Compiled once for each instruction set (Highway's
// foreach_target, headers alone). Tiles of sums stay in registers; what is left of a tile's rows or
// columns goes through narrower tiles. Every multiply-add rounds once, on every instruction set.
#include "codec/kernels/cpu/simd.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "codec/kernels/cpu/products.cc"
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "codec/kernels/cpu/internal.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)

HWY_BEFORE_NAMESPACE();
namespace scant::codec::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using Dw = hn::CappedTag<float, kSumLanes>;
using Vw = hn::Vec<Dw>;
constexpr size_t kWide = hn::MaxLanes(Dw());
constexpr size_t kVectors = kSumLanes / kWide;  // of sixteen lanes

// times_left() reads and writes its sums once for so many rows. More would not fit the cache.
constexpr size_t kRowsAtATime = 16;

using Ds = hn::CappedTag<float, 4>;
using Vs = hn::Vec<Ds>;

// Sixteen lanes folded to four: x + 8 to x, then + 4.
template <class D>
HWY_INLINE Vs folded_once(D d, hn::Vec<D> lanes) {
  if constexpr (hn::MaxLanes(d) == 4) {
    return lanes;
  } else {
    const hn::Half<D> half;
    return folded_once(half, hn::Add(hn::LowerHalf(half, lanes), hn::UpperHalf(half, lanes)));
  }
}
template <size_t kCount>
HWY_INLINE Vs quarter(const Vw (&lanes)[kCount]) {
  if constexpr (kCount == 4) {
    return folded_once(Dw(), hn::Add(hn::Add(lanes[0], lanes[2]), hn::Add(lanes[1], lanes[3])));
  } else if constexpr (kCount == 2) {
    return folded_once(Dw(), hn::Add(lanes[0], lanes[1]));
  } else {
    return folded_once(Dw(), lanes[0]);
  }
}
// The four lanes of each, folded: x + 2 to x, then + 1.
HWY_INLINE Vs fold_across(Vs a, Vs b, Vs c, Vs d) {
  const Ds four;
  const Vs ab = hn::Add(hn::ConcatLowerLower(four, b, a), hn::ConcatUpperUpper(four, b, a));
  const Vs cd = hn::Add(hn::ConcatLowerLower(four, d, c), hn::ConcatUpperUpper(four, d, c));
  return hn::Add(hn::ConcatEven(four, cd, ab), hn::ConcatOdd(four, cd, ab));
}

HWY_INLINE Vw load_first(const float* from, size_t n) {
  return n >= kWide ? hn::LoadU(Dw(), from) : hn::MaskedLoad(hn::FirstN(Dw(), n), Dw(), from);
}
HWY_INLINE void store_first(Vw value, float* to, size_t n) {
  if (n >= kWide) return hn::StoreU(value, Dw(), to);
  hn::BlendedStore(value, hn::FirstN(Dw(), n), Dw(), to);
}

// What is added to a matrix before it is multiplied; rows are as far apart as the matrix's.
struct Kept {
  const float* values = nullptr;
  float decay = 0;
  float* to = nullptr;  // the matrix
};

// Adds the sixteen lanes of kRows rows times kRank columns to `left`. With kKept, `kept` is first
// added to the rows.
template <size_t kRows, size_t kRank, bool kKept>
HWY_INLINE void times_right_tile(const Matrix& a, [[maybe_unused]] Kept kept, size_t row,
                                 const Factor& right, size_t first, float* left) {
  Vw sums[kRows][kRank][kVectors];
  for (auto& of_row : sums) {
    for (auto& of_column : of_row) {
      for (Vw& sum : of_column) sum = hn::Zero(Dw());
    }
  }
  const float* const by = right.values + first * right.stride;
  [[maybe_unused]] const Vw decay = hn::Set(Dw(), kept.decay);
  const auto add = [&](size_t j, size_t n) HWY_ATTR {
    for (size_t v = 0; v < kVectors; ++v) {
      const size_t at = v * kWide;
      const size_t here = n > at ? n - at : 0;
      Vw values[kRows];
      for (size_t i = 0; i < kRows; ++i) {
        const size_t place = (row + i) * a.stride + j + at;
        values[i] = load_first(a.values + place, here);
        if constexpr (kKept) {
          const Vw more = hn::Mul(decay, load_first(kept.values + place, here));
          values[i] = hn::Add(values[i], more);
          store_first(values[i], kept.to + place, here);
          __builtin_prefetch(a.values + place + kRows * a.stride, 1, 3);
          __builtin_prefetch(kept.values + place + kRows * a.stride, 0, 3);
        }
      }
      for (size_t k = 0; k < kRank; ++k) {
        const Vw column = load_first(by + k * right.stride + j + at, here);
        for (size_t i = 0; i < kRows; ++i) {
          sums[i][k][v] = hn::MulAdd(values[i], column, sums[i][k][v]);
        }
      }
    }
  };
  size_t j = 0;
  for (; j + kSumLanes <= a.columns; j += kSumLanes) add(j, kSumLanes);
  if (j < a.columns) add(j, a.columns - j);
  for (size_t i = 0; i < kRows; ++i) {
    float* const to = left + (row + i) * right.rank + first;
    for (size_t k = 0; k < kRank; k += 4) {
      Vs four[4];
      for (size_t c = 0; c < 4; ++c) four[c] = k + c < kRank ? quarter(sums[i][k + c]) : Vs();
      alignas(16) float folded[4];
      hn::Store(fold_across(four[0], four[1], four[2], four[3]), Ds(), folded);
      for (size_t c = 0; c < 4 && k + c < kRank; ++c) to[k + c] += folded[c];
    }
  }
}

// Takes as many columns at a time as registers hold sums. The first ones also add what is kept.
template <size_t kRows, size_t kRank, bool kKept>
HWY_INLINE void times_right_rows(const Matrix& a, Kept kept, size_t row, const Factor& right,
                                 float* left, size_t k = 0) {
  bool whole = !kKept || k > 0;
  for (; k + kRank <= right.rank; k += kRank) {
    if (whole) {
      times_right_tile<kRows, kRank, false>(a, kept, row, right, k, left);
    } else {
      times_right_tile<kRows, kRank, true>(a, kept, row, right, k, left);
      whole = true;
    }
  }
  if constexpr (kRank > 1) {
    if (k == right.rank) return;
    if (whole) {
      times_right_rows<kRows, kRank / 2, false>(a, kept, row, right, left, k);
    } else {
      times_right_rows<kRows, kRank / 2, true>(a, kept, row, right, left, k);
    }
  }
}

template <bool kKept>
HWY_INLINE void times_right_all(const Matrix& a, Kept kept, const Factor& right, float* left) {
  constexpr size_t kRows = 3;
  constexpr size_t kRank = kVectors == 1 ? 8 : 2;
  size_t row = 0;
  for (; row + kRows <= a.rows; row += kRows) {
    times_right_rows<kRows, kRank, kKept>(a, kept, row, right, left);
  }
  for (; row < a.rows; ++row) times_right_rows<1, kRank, kKept>(a, kept, row, right, left);
}

// Columns [j, j + kBlock vectors) of kRank rows of the result; `n` of the columns are there.
template <size_t kBlock, size_t kRank>
HWY_INLINE void times_left_tile(const Matrix& a, const float* left, const FactorOut& right,
                                size_t first, size_t j, size_t n) {
  Vw sums[kRank][kBlock];
  const auto here = [&](size_t b) { return n > b * kWide ? n - b * kWide : 0; };
  float* const to = right.values + first * right.stride + j;
  for (size_t k = 0; k < kRank; ++k) {
    for (size_t b = 0; b < kBlock; ++b) {
      sums[k][b] = load_first(to + k * right.stride + b * kWide, here(b));
    }
  }
  for (size_t i = 0; i < a.rows; ++i) {
    Vw values[kBlock];
    for (size_t b = 0; b < kBlock; ++b) {
      values[b] = load_first(a.values + i * a.stride + j + b * kWide, here(b));
    }
    for (size_t k = 0; k < kRank; ++k) {
      const Vw by = hn::Set(Dw(), left[i * right.rank + first + k]);
      for (size_t b = 0; b < kBlock; ++b) sums[k][b] = hn::MulAdd(values[b], by, sums[k][b]);
    }
  }
  for (size_t k = 0; k < kRank; ++k) {
    for (size_t b = 0; b < kBlock; ++b) {
      store_first(sums[k][b], to + k * right.stride + b * kWide, here(b));
    }
  }
}

template <size_t kBlock, size_t kRank>
HWY_INLINE void times_left_columns(const Matrix& a, const float* left, const FactorOut& right,
                                   size_t j, size_t n, size_t k = 0) {
  for (; k + kRank <= right.rank; k += kRank) {
    times_left_tile<kBlock, kRank>(a, left, right, k, j, n);
  }
  if constexpr (kRank > 1) {
    if (k < right.rank) times_left_columns<kBlock, kRank / 2>(a, left, right, j, n, k);
  }
}

// kRows rows of kBlock vectors.
template <size_t kRows, size_t kBlock>
HWY_INLINE void add_product_tile(const float* left, const Factor& right, const float* from,
                                 const MatrixOut& out, size_t row, size_t j, size_t n) {
  Vw sums[kRows][kBlock];
  const auto here = [&](size_t b) { return n > b * kWide ? n - b * kWide : 0; };
  const size_t first = row * out.stride + j;
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t b = 0; b < kBlock; ++b) {
      sums[i][b] = load_first(from + first + i * out.stride + b * kWide, here(b));
    }
  }
  for (size_t k = 0; k < right.rank; ++k) {
    Vw columns[kBlock];
    for (size_t b = 0; b < kBlock; ++b) {
      columns[b] = load_first(right.values + k * right.stride + j + b * kWide, here(b));
    }
    for (size_t i = 0; i < kRows; ++i) {
      const Vw by = hn::Set(Dw(), left[(row + i) * right.rank + k]);
      for (size_t b = 0; b < kBlock; ++b) sums[i][b] = hn::MulAdd(by, columns[b], sums[i][b]);
    }
  }
  for (size_t i = 0; i < kRows; ++i) {
    for (size_t b = 0; b < kBlock; ++b) {
      store_first(sums[i][b], out.values + first + i * out.stride + b * kWide, here(b));
    }
  }
}

template <size_t kRows>
HWY_INLINE void add_product_rows(const float* left, const Factor& right, const float* from,
                                 const MatrixOut& out, size_t row) {
  constexpr size_t kBlock = kVectors == 1 ? 4 : 2;
  size_t j = 0;
  for (; j + kBlock * kWide <= out.columns; j += kBlock * kWide) {
    add_product_tile<kRows, kBlock>(left, right, from, out, row, j, kBlock * kWide);
  }
  for (; j < out.columns; j += kWide) {
    add_product_tile<kRows, 1>(left, right, from, out, row, j, out.columns - j);
  }
}

using Dd = hn::CappedTag<double, 8>;
using Vd = hn::Vec<Dd>;
constexpr size_t kDoubles = hn::MaxLanes(Dd());
constexpr size_t kDoubleVectors = kSumLanes / kDoubles;  // of sixteen lanes

template <size_t kColumns>
HWY_INLINE void column_products_tile(const Columns& columns, size_t first, const double* by,
                                     double* to) {
  Vd sums[kColumns][kDoubleVectors];
  for (auto& of_column : sums) {
    for (Vd& sum : of_column) sum = hn::Zero(Dd());
  }
  const double* const from = columns.values + first * columns.stride;
  for (size_t i = 0; i < columns.stride; i += kSumLanes) {
    for (size_t v = 0; v < kDoubleVectors; ++v) {
      const Vd times = hn::LoadU(Dd(), by + i + v * kDoubles);
      for (size_t k = 0; k < kColumns; ++k) {
        const Vd value = hn::LoadU(Dd(), from + k * columns.stride + i + v * kDoubles);
        sums[k][v] = hn::MulAdd(value, times, sums[k][v]);
      }
    }
  }
  for (size_t k = 0; k < kColumns; ++k) {
    double lanes[kSumLanes];
    for (size_t v = 0; v < kDoubleVectors; ++v) {
      hn::StoreU(sums[k][v], Dd(), lanes + v * kDoubles);
    }
    to[first + k] = fold(lanes);
  }
}

}  // namespace

void column_products(const Columns& columns, const double* by, double* sums) {
  constexpr size_t kColumns = kDoubleVectors == 2 ? 8 : 2;
  size_t k = 0;
  for (; k + kColumns <= columns.count; k += kColumns) {
    column_products_tile<kColumns>(columns, k, by, sums);
  }
  for (; k < columns.count; ++k) column_products_tile<1>(columns, k, by, sums);
}

void take_columns(const Columns& columns, const double* times, double* from) {
  for (size_t i = 0; i < columns.stride; i += kSumLanes) {
    Vd left[kDoubleVectors];
    for (size_t v = 0; v < kDoubleVectors; ++v) left[v] = hn::LoadU(Dd(), from + i + v * kDoubles);
    for (size_t k = 0; k < columns.count; ++k) {
      const Vd by = hn::Set(Dd(), times[k]);
      const double* const column = columns.values + k * columns.stride + i;
      for (size_t v = 0; v < kDoubleVectors; ++v) {
        left[v] = hn::NegMulAdd(by, hn::LoadU(Dd(), column + v * kDoubles), left[v]);
      }
    }
    for (size_t v = 0; v < kDoubleVectors; ++v) hn::StoreU(left[v], Dd(), from + i + v * kDoubles);
  }
}

void times_right(const Matrix& a, const Factor& right, float* left) {
  times_right_all<false>(a, {}, right, left);
}

void add_times_right(const MatrixOut& a, const float* kept, float decay, const Factor& right,
                     float* left) {
  times_right_all<true>({a.values, a.stride, a.rows, a.columns}, {kept, decay, a.values}, right,
                        left);
}

void times_left(const Matrix& a, const float* left, const FactorOut& right) {
  constexpr size_t kBlock = 2;
  constexpr size_t kRank = kVectors == 1 ? 8 : 4;
  for (size_t row = 0; row < a.rows; row += kRowsAtATime) {
    const Matrix some{a.values + row * a.stride, a.stride, std::min(kRowsAtATime, a.rows - row),
                      a.columns};
    const float* const by = left + row * right.rank;
    size_t j = 0;
    for (; j + kBlock * kWide <= a.columns; j += kBlock * kWide) {
      times_left_columns<kBlock, kRank>(some, by, right, j, kBlock * kWide);
    }
    for (; j < a.columns; j += kWide)
      times_left_columns<1, kRank>(some, by, right, j, a.columns - j);
  }
}

void add_product(const float* left, const Factor& right, const float* from, const MatrixOut& out) {
  constexpr size_t kRows = kVectors == 1 ? 4 : 3;
  size_t row = 0;
  for (; row + kRows <= out.rows; row += kRows)
    add_product_rows<kRows>(left, right, from, out, row);
  for (; row < out.rows; ++row) add_product_rows<1>(left, right, from, out, row);
}

}  // namespace scant::codec::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // an instruction set with kernels
