// Tensors of every kind for tests and benchmarks of products: random bytes that a file could hold.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "base/little_endian.h"
#include "base/rng.h"
#include "codec/tile/sparse.h"
#include "serve/file/tensor_kind.h"

namespace scant::serve::testing {

enum class Values {
  moderate,  // around 1
  extreme,   // scales and floats over all of their range
  strange,   // NaN and infinite floats and scales among them, where the kind has them
};

struct OwnedTensor {
  Tensor tensor;
  base::AlignedVector<std::byte> bytes;
};

inline uint16_t draw_bf16(base::Rng& rng, Values values) {
  const auto bits = static_cast<uint16_t>(rng.next());
  if (values == Values::moderate)
    return static_cast<uint16_t>((bits & 0x807FU) | (122U + rng.below(8)) << 7U);
  const bool finite = (bits & 0x7F80U) != 0x7F80U;
  return finite || (values == Values::strange && rng.chance(0.3)) ? bits : uint16_t{0x3F80};
}

inline uint16_t draw_f16(base::Rng& rng, Values values) {
  const auto bits = static_cast<uint16_t>(rng.next());
  if (values == Values::moderate)
    return static_cast<uint16_t>((bits & 0x83FFU) | (10U + rng.below(8)) << 10U);
  const bool finite = (bits & 0x7C00U) != 0x7C00U;
  return finite || (values == Values::strange && rng.chance(0.3)) ? bits : uint16_t{0x3C00};
}

inline void draw_row_bytes(TensorKind kind, base::Rng& rng, Values values, std::byte* at,
                           uint64_t bytes) {
  if (kind == TensorKind::f32) {
    for (uint64_t i = 0; i < bytes; i += 4) {
      const uint32_t low = static_cast<uint32_t>(rng.next()) & 0xFFFFU;
      base::store_little(at + i, uint32_t{draw_bf16(rng, values)} << 16U | low);
    }
  } else if (kind == TensorKind::bf16 || kind == TensorKind::f16) {
    for (uint64_t i = 0; i < bytes; i += 2)
      base::store_little(at + i,
                         kind == TensorKind::bf16 ? draw_bf16(rng, values) : draw_f16(rng, values));
  } else {
    const uint64_t block = *row_bytes(kind, kGgufBlock);
    for (uint64_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>(rng.next());
    for (uint64_t i = 0; i < bytes; i += block) {
      base::store_little(at + i, draw_f16(rng, values));
      if (kind == TensorKind::q4_1) base::store_little(at + i + 2, draw_f16(rng, values));
    }
  }
}

// Of 16 rows, whatever the tensor's rows; what lies beyond its columns is zero or not kept.
inline void draw_tile_bytes(TensorKind kind, base::Rng& rng, Values values, size_t columns,
                            std::byte* at) {
  const codec::ValueKind of = strip_values(kind);
  const uint64_t bytes = codec::strip_bytes(of, columns);
  if (of != codec::ValueKind::bf16) {
    for (uint64_t i = 0; i < bytes; ++i) at[i] = static_cast<std::byte>(rng.next());
    return;
  }
  for (size_t row = 0; row < codec::kTileRows; ++row) {
    for (size_t c = 0; c < columns; ++c) {
      const auto place = codec::code_place(of, static_cast<uint32_t>(row),
                                           static_cast<uint32_t>(c % codec::kTileColumns));
      base::store_little(at + c / codec::kTileColumns * codec::tile_code_bytes(of) + place.byte,
                         draw_bf16(rng, values));
    }
  }
}

inline void draw_sparse_strip(TensorKind kind, base::Rng& rng, Values values, size_t rows,
                              size_t columns, double density, base::AlignedVector<std::byte>& out,
                              uint64_t& entries) {
  const codec::ValueKind of = strip_values(kind);
  const size_t begin = out.size();
  out.resize(begin + codec::sparse_strip_head_bytes(of, columns));
  std::vector<std::byte> kept_values;
  for (size_t at = 0; at < codec::tiles(columns) * codec::kTileRows; ++at) {
    const double wanted = rng.chance(0.1) ? (rng.chance(0.5) ? 0.0 : 1.0) : density;
    uint64_t mask = 0;
    for (size_t c = 0; c < codec::kTileColumns; ++c) {
      const bool inside =
          at % codec::kTileRows < rows && at / codec::kTileRows * codec::kTileColumns + c < columns;
      if (inside && rng.chance(wanted)) mask |= uint64_t{1} << c;
    }
    base::store_little(out.data() + begin + sizeof(uint64_t) * at, mask);
    const auto kept = static_cast<size_t>(std::popcount(mask));
    entries += kept;
    const size_t bytes = codec::sparse_group_bytes(of, kept);
    for (size_t i = 0; i < bytes; ++i) kept_values.push_back(static_cast<std::byte>(rng.next()));
    for (size_t i = 0; of == codec::ValueKind::bf16 && i < kept; ++i)
      base::store_little(kept_values.data() + kept_values.size() - bytes + 2 * i,
                         draw_bf16(rng, values));
    if (of == codec::ValueKind::bf16) continue;
    out[begin + sizeof(uint64_t) * codec::tiles(columns) * codec::kTileRows + at] =
        static_cast<std::byte>(rng.next());
  }
  out.insert(out.end(), kept_values.begin(), kept_values.end());
  out.resize(begin + base::align_up(out.size() - begin, codec::kTileAlign));
}

inline uint16_t draw_base(base::Rng& rng, Values values) {
  if (values == Values::moderate) return static_cast<uint16_t>(780 + rng.below(8));
  return static_cast<uint16_t>(rng.below(codec::kScaleBaseTop + 1));
}

inline OwnedTensor draw_tensor(TensorKind kind, codec::Shape shape, Values values, uint64_t seed,
                               double density = 0.5) {
  base::Rng rng(seed, static_cast<uint64_t>(kind));
  OwnedTensor made;
  made.tensor.name = name(kind);
  made.tensor.kind = kind;
  made.tensor.dims = {shape.rows, shape.columns};
  made.tensor.shape = shape;
  auto& bytes = made.bytes;
  const uint64_t strips = codec::strips(shape.rows);
  if (row_by_row(kind)) {
    bytes.resize(*tensor_bytes(kind, shape));
    draw_row_bytes(kind, rng, values, bytes.data(), bytes.size());
  } else {
    const codec::ValueKind of = strip_values(kind);
    std::vector<uint64_t> at(1, 0);
    for (uint64_t strip = 0; strip < strips; ++strip) {
      if (sparse(kind)) {
        const size_t rows =
            std::min<uint64_t>(codec::kTileRows, shape.rows - strip * codec::kTileRows);
        draw_sparse_strip(kind, rng, values, rows, shape.columns, density, bytes,
                          made.tensor.entries);
      } else {
        bytes.resize(bytes.size() + codec::strip_bytes(of, shape.columns));
        draw_tile_bytes(kind, rng, values, shape.columns,
                        bytes.data() + bytes.size() - codec::strip_bytes(of, shape.columns));
      }
      at.push_back(bytes.size());
    }
    const size_t tables = bytes.size();
    bytes.resize(tables + (sparse(kind) ? codec::sparse_table_bytes(of, shape.rows)
                                        : codec::base_bytes(of, shape.rows)));
    for (uint64_t i = 0; sparse(kind) && i <= strips; ++i)
      base::store_little(bytes.data() + tables + sizeof(uint64_t) * i, at[i]);
    const size_t bases = bytes.size() - codec::base_bytes(of, shape.rows);
    for (uint64_t i = 0; codec::quantised(of) && i < strips; ++i)
      base::store_little(bytes.data() + bases + sizeof(uint16_t) * i, draw_base(rng, values));
  }
  made.tensor.bytes = bytes;
  return made;
}

}  // namespace scant::serve::testing
