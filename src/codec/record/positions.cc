// Positions of a block's entries. Sizes are counted, never estimated; a width that cannot win is
// not counted. Reading checks a block as a whole with sums, so that the loops which write positions
// need no checks of their own. No state.
#include "codec/record/positions.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/little_endian.h"

namespace scant::codec {
namespace {

constexpr uint32_t kByteMax = 255;  // a code of delta8 that means: so many elements, and no entry
constexpr auto kBitmap = static_cast<uint8_t>(PositionKind::bitmap);
constexpr auto kDelta8 = static_cast<uint8_t>(PositionKind::delta8);
constexpr auto kPosition16 = static_cast<uint8_t>(PositionKind::position16);
constexpr auto kPacked = static_cast<uint8_t>(PositionKind::packed);

constexpr bool is_packed(uint8_t kind) {
  return kind > kPacked && kind <= kPacked + kPackedWidthMax;
}
constexpr uint32_t code_max(unsigned width) { return (1u << width) - 1; }
constexpr uint32_t bytes_of_bits(uint64_t bit_count) {
  return static_cast<uint32_t>((bit_count + 7) / 8);
}

// In 16 bits throughout, as in the writers: even positions that do not ascend take exactly the
// bytes that were counted.
uint16_t gap_between(uint32_t position, uint32_t next) {
  return static_cast<uint16_t>(position - next);
}

// Codes that carry no entry when a code holds at most kMax.
template <uint32_t kMax>
uint32_t count_skips(std::span<const uint16_t> positions) {
  uint32_t skips = positions[0] / kMax;
  for (size_t i = 1; i < positions.size(); ++i)
    skips += gap_between(positions[i], positions[i - 1] + 1u) / kMax;
  return skips;
}

template <size_t... kWidthBelow>
constexpr auto skip_counters(std::index_sequence<kWidthBelow...>) {
  return std::array{&count_skips<code_max(kWidthBelow + 1)>...};
}
constexpr auto kSkipCounters = skip_counters(std::make_index_sequence<kPackedWidthMax>());

uint32_t packed_bytes(std::span<const uint16_t> positions, unsigned width) {
  const uint64_t skips = kSkipCounters[width - 1](positions);
  return bytes_of_bits((positions.size() + skips) * width);
}

// What no packing of this width can be below: floor(gap / max) >= (gap - (max - 1)) / max.
uint32_t packed_bytes_min(std::span<const uint16_t> positions, unsigned width) {
  const uint64_t count = positions.size();
  const uint64_t gaps = positions.back() + 1u - count;
  const uint64_t max = code_max(width);
  const uint64_t slack = count * (max - 1);
  const uint64_t skips = gaps > slack ? (gaps - slack + max - 1) / max : 0;
  return bytes_of_bits((count + skips) * width);
}

uint32_t encoded_bytes(std::span<const uint16_t> positions, uint32_t elements, uint8_t kind) {
  if (kind == kBitmap) return bytes_of_bits(elements);
  const auto count = static_cast<uint32_t>(positions.size());
  if (count == 0) return 0;
  if (kind == kPosition16) return 2 * count;
  if (kind == kDelta8) return count + count_skips<kByteMax>(positions);
  SCANT_CHECK(is_packed(kind), "no kind of positions");
  return packed_bytes(positions, kind - kPacked);
}

void write_bitmap(std::span<const uint16_t> positions, MutableBytes to) {
  for (const uint16_t position : positions) {
    SCANT_CHECK(position / 8u < to.size());
    to[position / 8] |= std::byte{1} << (position % 8);
  }
}

// One code that carries no entry is common, and so is none: no branch depends on which.
void write_delta8(std::span<const uint16_t> positions, std::byte* to) {
  uint32_t next = 0;
  for (const uint16_t position : positions) {
    const uint32_t gap = gap_between(position, next);
    const uint32_t skips = gap / kByteMax;
    *to = std::byte{kByteMax};
    if (skips > 1) std::memset(to, kByteMax, skips);
    to += skips;
    *to++ = static_cast<std::byte>(gap - skips * kByteMax);
    next = position + 1u;
  }
}

void write_packed(std::span<const uint16_t> positions, unsigned width, std::byte* to) {
  const uint32_t max = code_max(width);
  uint64_t pending = 0;
  unsigned pending_bits = 0;  // below 32 between two calls, each of which adds 30 at most
  const auto put = [&](uint32_t codes, unsigned bit_count) {
    pending |= uint64_t{codes} << pending_bits;
    pending_bits += bit_count;
    if (pending_bits < 32) return;
    base::store_little(to, static_cast<uint32_t>(pending));
    to += 4;
    pending >>= 32;
    pending_bits -= 32;
  };
  uint32_t next = 0;
  for (const uint16_t position : positions) {
    uint32_t gap = gap_between(position, next);
    for (; gap >= 2 * max; gap -= max) put(max, width);
    const uint32_t skips = gap >= max ? 1 : 0;
    const uint32_t last = (gap - skips * max) << (skips * width);
    put(last | (skips * max), width << skips);
    next = position + 1u;
  }
  for (uint32_t left = bytes_of_bits(pending_bits); left > 0; --left, pending >>= 8)
    *to++ = static_cast<std::byte>(pending);
}

bool check_bitmap(Bytes bytes, uint32_t elements, uint32_t entries) {
  if (bytes.size() != bytes_of_bits(elements)) return false;
  if (elements % 8 != 0 && std::to_integer<uint32_t>(bytes.back()) >> (elements % 8) != 0)
    return false;
  uint32_t set = 0;
  size_t at = 0;
  for (; at + 8 <= bytes.size(); at += 8)
    set += static_cast<uint32_t>(std::popcount(base::load_little<uint64_t>(bytes.data() + at)));
  for (; at < bytes.size(); ++at)
    set += static_cast<uint32_t>(std::popcount(std::to_integer<uint8_t>(bytes[at])));
  return set == entries;
}

// Needs no positions: each byte moves ahead by itself, and by one more when it ends at an entry.
bool check_delta8(Bytes bytes, uint32_t elements, uint32_t entries) {
  if (bytes.empty()) return entries == 0;
  // Each byte covers at least one element; this also keeps the sums below small.
  if (bytes.size() > elements || bytes.back() == std::byte{kByteMax}) return false;
  uint32_t found = 0;
  uint32_t covered = 0;
  for (const std::byte code : bytes) {
    found += code != std::byte{kByteMax} ? 1u : 0u;
    covered += std::to_integer<uint32_t>(code);
  }
  return found == entries && covered + found <= elements;
}

bool check_position16(Bytes bytes, uint32_t elements, uint32_t entries) {
  if (bytes.size() != size_t{2} * entries) return false;
  if (entries == 0) return true;
  unsigned descents = 0;
  for (size_t at = 2; at < bytes.size(); at += 2) {
    const auto before = base::load_little<uint16_t>(bytes.data() + at - 2);
    descents |= base::load_little<uint16_t>(bytes.data() + at) <= before ? 1u : 0u;
  }
  return descents == 0 && base::load_little<uint16_t>(bytes.data() + bytes.size() - 2) < elements;
}

// The 22 bits or more that begin at this bit; zeros behind the end.
uint32_t bits_from(Bytes bytes, size_t bit) {
  const size_t at = bit / 8;
  if (at + 4 <= bytes.size()) return base::load_little<uint32_t>(bytes.data() + at) >> (bit % 8);
  uint32_t word = 0;
  for (size_t i = at; i < bytes.size(); ++i)
    word |= std::to_integer<uint32_t>(bytes[i]) << (8 * (i - at));
  return word >> (bit % 8);
}

template <bool kWrite>
bool walk_packed(Bytes bytes, unsigned width, uint32_t elements, uint32_t entries, uint16_t* out) {
  const uint32_t max = code_max(width);
  // Each code covers at least one element; this also keeps `next` below 2^31.
  const size_t limit = std::min<size_t>(bytes.size() * 8 / width, elements);
  uint32_t found = 0;
  uint32_t next = 0;
  size_t codes = 0;
  const auto take = [&](uint32_t code) {
    if constexpr (kWrite) out[found] = static_cast<uint16_t>(next + code);
    const uint32_t is_entry = code != max ? 1 : 0;
    found += is_entry;
    next += code + is_entry;
  };
  // As many as a word holds at any bit, while each could be an entry.
  const unsigned together = 57 / width;
  for (; codes + together <= limit && entries - found >= together; codes += together) {
    const size_t bit = codes * width;
    if (bit / 8 + 8 > bytes.size()) break;
    uint64_t word = base::load_little<uint64_t>(bytes.data() + bit / 8) >> (bit % 8);
    for (unsigned i = 0; i < together; ++i, word >>= width) take(static_cast<uint32_t>(word) & max);
  }
  for (; found < entries && codes < limit; ++codes) take(bits_from(bytes, codes * width) & max);
  const size_t bits_used = codes * width;
  if (found != entries || next > elements || bytes.size() != bytes_of_bits(bits_used)) return false;
  return bits_used % 8 == 0 || std::to_integer<uint32_t>(bytes.back()) >> (bits_used % 8) == 0;
}

// The readers below run on bytes that were checked.
void read_bitmap(Bytes bytes, uint16_t* out) {
  for (size_t at = 0; at < bytes.size(); at += 8) {
    uint64_t word = 0;
    if (at + 8 <= bytes.size()) {
      word = base::load_little<uint64_t>(bytes.data() + at);
    } else {
      for (size_t i = at; i < bytes.size(); ++i)
        word |= std::to_integer<uint64_t>(bytes[i]) << (8 * (i - at));
    }
    for (; word != 0; word &= word - 1)
      *out++ = static_cast<uint16_t>(at * 8 + static_cast<size_t>(std::countr_zero(word)));
  }
}

// Writes where the next entry goes whether or not this byte ends at one: the last byte does, so
// that no write passes the last entry.
void read_delta8(Bytes bytes, uint16_t* out) {
  uint32_t next = 0;
  for (const std::byte code : bytes) {
    const auto ahead = std::to_integer<uint32_t>(code);
    *out = static_cast<uint16_t>(next + ahead);
    const uint32_t is_entry = ahead != kByteMax ? 1 : 0;
    out += is_entry;
    next += ahead + is_entry;
  }
}

}  // namespace

PositionChoice choose_positions(std::span<const uint16_t> positions, uint32_t elements) {
  SCANT_CHECK(elements <= kSparseBlockElements);
  PositionChoice best{kDelta8, 0};
  if (positions.empty()) return best;
  SCANT_CHECK(positions.size() <= elements && positions.back() < elements);
  best.bytes = encoded_bytes(positions, elements, kDelta8);
  for (const uint8_t kind : {kPosition16, kBitmap}) {
    const uint32_t bytes = encoded_bytes(positions, elements, kind);
    if (bytes < best.bytes) best = {kind, bytes};
  }
  for (unsigned width = 1; width <= kPackedWidthMax; ++width) {
    if (packed_bytes_min(positions, width) >= best.bytes) continue;
    const uint32_t bytes = packed_bytes(positions, width);
    if (bytes < best.bytes) best = {static_cast<uint8_t>(kPacked + width), bytes};
  }
  return best;
}

void append_positions(std::span<const uint16_t> positions, uint32_t elements, PositionChoice choice,
                      std::vector<std::byte>& out) {
  SCANT_CHECK(elements <= kSparseBlockElements);
  SCANT_CHECK(choice.bytes == encoded_bytes(positions, elements, choice.kind));
  const size_t at = out.size();
  out.resize(at + choice.bytes);
  const MutableBytes to = MutableBytes(out).subspan(at);
  if (choice.kind == kBitmap) {
    write_bitmap(positions, to);
  } else if (choice.kind == kDelta8) {
    write_delta8(positions, to.data());
  } else if (choice.kind == kPosition16) {
    for (size_t i = 0; i < positions.size(); ++i)
      base::store_little(to.data() + 2 * i, positions[i]);
  } else {
    write_packed(positions, choice.kind - kPacked, to.data());
  }
}

bool check_positions(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries) {
  if (elements > kSparseBlockElements || entries > elements) return false;
  if (kind == kBitmap) return check_bitmap(bytes, elements, entries);
  if (kind == kDelta8) return check_delta8(bytes, elements, entries);
  if (kind == kPosition16) return check_position16(bytes, elements, entries);
  return is_packed(kind) && walk_packed<false>(bytes, kind - kPacked, elements, entries, nullptr);
}

bool read_positions(Bytes bytes, uint8_t kind, uint32_t elements, uint32_t entries, uint16_t* out) {
  if (is_packed(kind)) {
    return elements <= kSparseBlockElements && entries <= elements &&
           walk_packed<true>(bytes, kind - kPacked, elements, entries, out);
  }
  if (!check_positions(bytes, kind, elements, entries)) return false;
  if (kind == kBitmap) {
    read_bitmap(bytes, out);
  } else if (kind == kDelta8) {
    read_delta8(bytes, out);
  } else {
    for (size_t i = 0; i < entries; ++i) out[i] = base::load_little<uint16_t>(bytes.data() + 2 * i);
  }
  return true;
}

}  // namespace scant::codec
