#include "serve/file/rows.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/buffer.h"
#include "base/check.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "codec/quantise/rounding.h"
#include "codec/tile/sparse.h"
#include "codec/tile/tile.h"

namespace scant::serve {
namespace {

constexpr size_t kHalfBlock = kGgufBlock / 2;

float half_at(const std::byte* from) { return codec::f16_widen(base::load_little<uint16_t>(from)); }

void widen_block(TensorKind kind, const std::byte* from, float* out) {
  const float scale = half_at(from);
  if (kind == TensorKind::q8_0) {
    for (size_t i = 0; i < kGgufBlock; ++i)
      out[i] = static_cast<float>(std::to_integer<int8_t>(from[2 + i])) * scale;
    return;
  }
  const bool has_least = kind == TensorKind::q4_1;
  const float least = has_least ? half_at(from + 2) : 0;
  const std::byte* const codes = from + (has_least ? 4 : 2);
  for (size_t i = 0; i < kHalfBlock; ++i) {
    const int low = std::to_integer<int>(codes[i] & std::byte{15});
    const int high = std::to_integer<int>(codes[i] >> 4);
    out[i] =
        has_least ? static_cast<float>(low) * scale + least : static_cast<float>(low - 8) * scale;
    out[i + kHalfBlock] =
        has_least ? static_cast<float>(high) * scale + least : static_cast<float>(high - 8) * scale;
  }
}

codec::ValueKind plain_values(TensorKind kind) {
  SCANT_CHECK(kind == TensorKind::bf16 || kind == TensorKind::f16);
  return kind == TensorKind::bf16 ? codec::ValueKind::bf16 : codec::ValueKind::f16;
}

float widen16(TensorKind kind, uint16_t bits) {
  return plain_values(kind) == codec::ValueKind::bf16 ? codec::bf16_widen(bits)
                                                      : codec::f16_widen(bits);
}

// Where the table of a tensor in strips begins, counted from its first byte.
uint64_t table_at(const Tensor& tensor) {
  const codec::ValueKind values = strip_values(tensor.kind);
  const uint64_t rows = tensor.shape.rows;
  return tensor.bytes.size() - (sparse(tensor.kind) ? codec::sparse_table_bytes(values, rows)
                                                    : codec::base_bytes(values, rows));
}

uint64_t sparse_at(const Tensor& tensor, uint64_t strip) {
  return base::load_little<uint64_t>(tensor.bytes.data() + table_at(tensor) +
                                     sizeof(uint64_t) * strip);
}

// Rows of one strip.
void read_strip(const Tensor& tensor, uint64_t strip, size_t first, size_t rows, float* out,
                const codec::Kernels& by) {
  const codec::ValueKind values = strip_values(tensor.kind);
  const size_t columns = tensor.shape.columns;
  const Bytes bytes = strip_of(tensor, strip);
  if (sparse(tensor.kind)) {
    codec::unpack_sparse_strip(values, bytes, base_of(tensor, strip), first, rows, columns, out,
                               by);
  } else if (tensor.kind == TensorKind::bf16_tiles) {
    // 16 bits at the end of the floats' own memory, widened from the first one on.
    auto* const halves = reinterpret_cast<std::byte*>(out) + sizeof(uint16_t) * rows * columns;
    codec::unpack_strip16(bytes, first, rows, columns, reinterpret_cast<uint16_t*>(halves));
    for (size_t i = 0; i < rows * columns; ++i)
      out[i] = codec::bf16_widen(base::load_little<uint16_t>(halves + sizeof(uint16_t) * i));
  } else {
    codec::unpack_strip(values, bytes, base_of(tensor, strip), first, rows, columns, out, by);
  }
}

// Calls each(strip, first row in it, rows, rows done) for the strips that rows lie in.
template <typename Each>
void for_strips(uint64_t first, uint64_t rows, const Each& each) {
  for (uint64_t done = 0; done < rows;) {
    const uint64_t row = first + done;
    const uint64_t within = row % codec::kTileRows;
    const uint64_t now = std::min(rows - done, codec::kTileRows - within);
    each(row / codec::kTileRows, within, now, done);
    done += now;
  }
}

}  // namespace

void widen_rows(TensorKind kind, Bytes bytes, uint64_t columns, float* out) {
  const auto of_row = row_bytes(kind, columns);
  SCANT_CHECK(of_row && bytes.size() % *of_row == 0);
  const uint64_t count = bytes.size() / *of_row * columns;
  if (kind == TensorKind::f32) {
    for (uint64_t i = 0; i < count; ++i)
      out[i] = base::load_little<float>(bytes.data() + sizeof(float) * i);
  } else if (kind == TensorKind::bf16 || kind == TensorKind::f16) {
    for (uint64_t i = 0; i < count; ++i)
      out[i] = widen16(kind, base::load_little<uint16_t>(bytes.data() + sizeof(uint16_t) * i));
  } else {
    const uint64_t block = *row_bytes(kind, kGgufBlock);
    for (uint64_t i = 0; i < count / kGgufBlock; ++i)
      widen_block(kind, bytes.data() + block * i, out + kGgufBlock * i);
  }
}

void narrow_rows(TensorKind kind, const float* values, uint64_t count, std::byte* out) {
  if (kind == TensorKind::f32) {
    for (uint64_t i = 0; i < count; ++i) base::store_little(out + sizeof(float) * i, values[i]);
    return;
  }
  const bool wide = plain_values(kind) == codec::ValueKind::bf16;
  for (uint64_t i = 0; i < count; ++i) {
    const uint16_t bits = wide ? codec::bf16_nearest(values[i]) : codec::f16_nearest(values[i]);
    base::store_little(out + sizeof(uint16_t) * i, bits);
  }
}

void read_row(const Tensor& tensor, uint64_t row, float* out, const codec::Kernels& by) {
  SCANT_CHECK(row < tensor.shape.rows);
  if (row_by_row(tensor.kind)) {
    const uint64_t of_row = *row_bytes(tensor.kind, tensor.shape.columns);
    widen_rows(tensor.kind, tensor.bytes.subspan(row * of_row, of_row), tensor.shape.columns, out);
  } else {
    read_strip(tensor, row / codec::kTileRows, row % codec::kTileRows, 1, out, by);
  }
}

Bytes strip_of(const Tensor& tensor, uint64_t strip) {
  if (sparse(tensor.kind)) {
    const uint64_t at = sparse_at(tensor, strip);
    return tensor.bytes.subspan(at, sparse_at(tensor, strip + 1) - at);
  }
  const uint64_t bytes = codec::strip_bytes(strip_values(tensor.kind), tensor.shape.columns);
  return tensor.bytes.subspan(strip * bytes, bytes);
}

uint16_t base_of(const Tensor& tensor, uint64_t strip) {
  const codec::ValueKind values = strip_values(tensor.kind);
  if (!codec::quantised(values)) return 0;
  const uint64_t bases = tensor.bytes.size() - codec::base_bytes(values, tensor.shape.rows);
  return base::load_little<uint16_t>(tensor.bytes.data() + bases + sizeof(uint16_t) * strip);
}

std::optional<std::string> strips_fault(const Tensor& tensor) {
  const codec::ValueKind values = strip_values(tensor.kind);
  const uint64_t count = codec::strips(tensor.shape.rows);
  for (uint64_t strip = 0; strip < count; ++strip) {
    if (base_of(tensor, strip) > codec::kScaleBaseTop)
      return "strip " + std::to_string(strip) + " has a base out of range";
  }
  if (!sparse(tensor.kind)) return std::nullopt;
  if (sparse_at(tensor, 0) != 0 || sparse_at(tensor, count) != table_at(tensor))
    return "strips do not fill it";
  uint64_t entries = 0;
  for (uint64_t strip = 0; strip < count; ++strip) {
    const uint64_t at = sparse_at(tensor, strip);
    const uint64_t end = sparse_at(tensor, strip + 1);
    if (end < at || end > table_at(tensor))
      return "strip " + std::to_string(strip) + " does not lie in it";
    const uint64_t left = tensor.shape.rows - strip * codec::kTileRows;
    const auto fault = codec::sparse_strip_fault(values, tensor.bytes.subspan(at, end - at),
                                                 std::min<uint64_t>(left, codec::kTileRows),
                                                 tensor.shape.columns, entries);
    if (fault) return "strip " + std::to_string(strip) + " " + *fault;
  }
  if (entries != tensor.entries) return "keeps other values than its row of the index says";
  return std::nullopt;
}

Result<void> read_rows(const Tensor& tensor, uint64_t first, uint64_t rows, TensorKind as,
                       MutableBytes out) {
  const std::string where = "tensor '" + tensor.name + "': ";
  if (first > tensor.shape.rows || rows > tensor.shape.rows - first)
    return base::invalid(where + "there are no rows " + std::to_string(first) + " to " +
                         std::to_string(first + rows) + " of " + std::to_string(tensor.shape.rows));
  const bool own = as == tensor.kind && row_by_row(as);
  if (!own && as != TensorKind::f32 && as != TensorKind::bf16 && as != TensorKind::f16)
    return base::invalid(where + name(tensor.kind) + " cannot be read as " + name(as));
  const uint64_t columns = tensor.shape.columns;
  if (out.size() != rows * *row_bytes(as, columns))
    return base::invalid(where + "memory of another size than the rows");
  if (own) {
    const uint64_t of_row = *row_bytes(as, columns);
    if (rows > 0) std::memcpy(out.data(), tensor.bytes.data() + first * of_row, rows * of_row);
    return {};
  }
  auto memory = base::Buffer::allocate(sizeof(float) * codec::kTileRows * columns);
  if (!memory) return memory.error();
  auto* const floats = reinterpret_cast<float*>(memory.value().data());
  const uint64_t out_row = *row_bytes(as, columns);
  for_strips(first, rows, [&](uint64_t strip, uint64_t within, uint64_t now, uint64_t done) {
    std::byte* const to = out.data() + done * out_row;
    if (tensor.kind == TensorKind::bf16_tiles && as == TensorKind::bf16) {
      auto* const halves = reinterpret_cast<uint16_t*>(floats);
      codec::unpack_strip16(strip_of(tensor, strip), within, now, columns, halves);
      for (uint64_t i = 0; i < now * columns; ++i)
        base::store_little(to + sizeof(uint16_t) * i, halves[i]);
      return;
    }
    if (row_by_row(tensor.kind)) {
      const uint64_t of_row = *row_bytes(tensor.kind, columns);
      const uint64_t row = strip * codec::kTileRows + within;
      widen_rows(tensor.kind, tensor.bytes.subspan(row * of_row, now * of_row), columns, floats);
    } else {
      read_strip(tensor, strip, within, now, floats, codec::kernels());
    }
    narrow_rows(as, floats, now * columns, to);
  });
  return {};
}

}  // namespace scant::serve
