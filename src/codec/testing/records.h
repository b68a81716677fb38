// Records for tests: random blocks of any kind, put together and sealed as an encoder would.
#pragma once

#include <algorithm>
#include <cstdio>
#include <optional>
#include <span>
#include <vector>

#include "base/little_endian.h"
#include "base/rng.h"
#include "codec/range.h"
#include "codec/record/positions.h"
#include "codec/record/record.h"

namespace scant::codec::testing {

inline base::Rng printed_rng(uint64_t seed) {
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return base::Rng(seed);
}

// Ascending, apart, some of them touching, some empty: what a network might lose of `whole`.
inline std::vector<Range> random_ranges(base::Rng& rng, Range whole) {
  std::vector<Range> ranges;
  const uint64_t longest = 1 + whole.elements / (1 + rng.below(40));
  const uint64_t end = whole.first + whole.elements;
  uint64_t at = whole.first + (rng.chance(0.3) ? 0 : rng.below(longest + 1));
  while (at < end) {
    const uint64_t elements = std::min(rng.below(longest + 1), end - at);
    ranges.push_back({at, elements});
    at += elements + (rng.chance(0.2) ? 0 : rng.below(longest + 1));
    if (rng.chance(0.02)) break;
  }
  return ranges;
}

inline bool lies_in(std::span<const Range> ranges, uint64_t element) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const Range& range) {
    return element >= range.first && element - range.first < range.elements;
  });
}

struct TestBlock {
  BlockHeader header;
  std::vector<std::byte> payload;
};

inline std::vector<uint16_t> random_positions(base::Rng& rng, uint32_t elements, double density) {
  std::vector<uint16_t> positions;
  for (uint32_t i = 0; i < elements; ++i)
    if (rng.chance(density)) positions.push_back(static_cast<uint16_t>(i));
  return positions;
}

// Random scales and codes, or finite numbers; unused bits are 0.
inline void append_values(base::Rng& rng, const BlockHeader& header, std::vector<std::byte>& out) {
  const uint64_t count = value_bytes(header.values, header.entries);
  for (uint64_t i = 0; i < count; ++i) out.push_back(static_cast<std::byte>(rng.next()));
  if (quantised(header.values)) {
    const uint64_t bits_used = uint64_t{header.entries} * bits(header.values) % 8;
    if (bits_used != 0) out.back() &= static_cast<std::byte>((1u << bits_used) - 1);
    return;
  }
  const size_t size = bits(header.values) / 8;
  const auto finite = std::byte{0xBF};  // an exponent that lacks its second bit
  for (uint64_t i = 0; i < header.entries; ++i) out[out.size() - 1 - i * size] &= finite;
}

inline TestBlock dense_block(base::Rng& rng, ValueKind values, uint32_t elements) {
  TestBlock block;
  block.header = {.values = values,
                  .positions = 0,
                  .scale_base = static_cast<uint16_t>(quantised(values) ? rng.below(1700) : 0),
                  .entries = elements,
                  .position_bytes = 0};
  append_values(rng, block.header, block.payload);
  return block;
}

// Without a choice, the smallest.
inline TestBlock sparse_block(base::Rng& rng, ValueKind values, uint32_t elements,
                              std::span<const uint16_t> positions,
                              std::optional<PositionChoice> choice = std::nullopt) {
  if (!choice) choice = choose_positions(positions, elements);
  TestBlock block;
  block.header = {.values = values,
                  .positions = choice->kind,
                  .scale_base = static_cast<uint16_t>(quantised(values) ? rng.below(1700) : 0),
                  .entries = static_cast<uint32_t>(positions.size()),
                  .position_bytes = choice->bytes};
  append_positions(positions, elements, *choice, block.payload);
  append_values(rng, block.header, block.payload);
  return block;
}

inline std::vector<std::byte> build(const RecordHeader& header, std::span<const TestBlock> blocks) {
  std::vector<std::byte> record(kRecordHeaderBytes + blocks.size() * kBlockHeaderBytes);
  for (size_t i = 0; i < blocks.size(); ++i) write_block_header(record, i, blocks[i].header);
  for (const TestBlock& block : blocks)
    record.insert(record.end(), block.payload.begin(), block.payload.end());
  seal(record, header);
  return record;
}

// Of `elements` in blocks of `block_elements`, each block dense or sparse, of any kind.
inline std::vector<std::byte> random_record(base::Rng& rng, uint64_t elements,
                                            uint32_t block_elements) {
  const RecordHeader header{.tensor = static_cast<uint32_t>(rng.next()),
                            .block_elements = block_elements,
                            .shape = {.rows = 3, .columns = elements},
                            .first = rng.below(2 * elements + 1),
                            .elements = elements};
  std::vector<TestBlock> blocks;
  for (uint64_t at = 0; at < elements; at += block_elements) {
    const auto covered = static_cast<uint32_t>(std::min<uint64_t>(block_elements, elements - at));
    const auto values = static_cast<ValueKind>(rng.below(kValueKindCount));
    if (rng.chance(0.25)) {
      blocks.push_back(dense_block(rng, values, covered));
    } else {
      const auto positions = random_positions(rng, covered, rng.uniform() * rng.uniform());
      blocks.push_back(sparse_block(rng, values, covered, positions));
    }
  }
  return build(header, blocks);
}

// Size counted with one step a code, apart from the code under test.
inline PositionChoice counted(std::span<const uint16_t> positions, uint32_t elements,
                              uint8_t kind) {
  const auto packed = static_cast<uint8_t>(PositionKind::packed);
  if (kind == static_cast<uint8_t>(PositionKind::bitmap)) return {kind, (elements + 7) / 8};
  const auto count = static_cast<uint32_t>(positions.size());
  if (kind == static_cast<uint8_t>(PositionKind::position16)) return {kind, 2 * count};
  const uint32_t width = kind > packed ? kind - packed : 8u;
  uint32_t codes = 0;
  uint32_t next = 0;
  for (const uint16_t position : positions) {
    for (uint32_t gap = position - next; gap >= (1u << width) - 1; gap -= (1u << width) - 1)
      ++codes;
    ++codes;
    next = position + 1u;
  }
  return {kind, (codes * width + 7) / 8};
}

inline std::vector<uint8_t> sparse_kinds() {  // in the order that decides between equal sizes
  std::vector<uint8_t> kinds = {static_cast<uint8_t>(PositionKind::delta8),
                                static_cast<uint8_t>(PositionKind::position16),
                                static_cast<uint8_t>(PositionKind::bitmap)};
  for (unsigned width = 1; width <= kPackedWidthMax; ++width)
    kinds.push_back(static_cast<uint8_t>(static_cast<unsigned>(PositionKind::packed) + width));
  return kinds;
}

}  // namespace scant::codec::testing
