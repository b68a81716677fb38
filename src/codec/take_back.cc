// What did not arrive of a record returns to the residual, piece by piece: decoded as a receiver
// would, added in f32, rounded as the residual's kind does. docs/codec.md, "What did not arrive".
#include <algorithm>
#include <array>
#include <string>

#include "base/fault.h"
#include "codec/accumulate.h"
#include "codec/encoder.h"

namespace scant::codec {
namespace {

// As large as the largest block, so that a block's positions are read once.
constexpr uint64_t kPiece = kSparseBlockElements;
// Draws of blocks count up from 0; those of whole residuals take the three numbers at the other
// end.
constexpr uint64_t kDrawsEnd = ~uint64_t{3};

using base::invalid;

std::string text(Range range) {
  return std::to_string(range.elements) + " elements from " + std::to_string(range.first);
}

std::optional<Error> check(const Encoder& encoder, const RecordHeader& header,
                           std::span<const Range> ranges) {
  const std::string of = "tensor " + std::to_string(encoder.tensor()) + " cannot take back ";
  if (header.tensor != encoder.tensor())
    return invalid(of + "a record of tensor " + std::to_string(header.tensor));
  if (header.shape != encoder.shape()) {
    return invalid(of + "a record of shape " + text(header.shape) + ", its own is " +
                   text(encoder.shape()));
  }
  const Range range{header.first, header.elements};
  if (range != encoder.range()) {
    return invalid(of + "a record of " + text(range) + ", the encoder has " +
                   text(encoder.range()));
  }
  if (auto fault = ranges_fault(ranges, range)) return invalid(of + *fault);
  return std::nullopt;
}

}  // namespace

Result<void> Encoder::take_back(const RecordView& record, std::span<const Range> ranges,
                                Workspace& workspace) {
  if (auto wrong = check(*this, record.header(), ranges)) return *std::move(wrong);
  if (options_.residual == ResidualKind::none || ranges.empty()) return {};
  // Another call of this step may give back another part of a group: it has draws of its own.
  const DrawKey key = draw_key(kDrawsEnd - ranges.front().first, 1);
  const uint64_t range_end = range_.first + range_.elements;
  const Result<float*> memory = workspace.whole(kPiece);  // before anything has changed
  if (!memory) return memory.error();
  for (uint64_t begin = range_.first; begin < range_end; begin += kPiece) {
    const uint64_t end = std::min(range_end, begin + kPiece);
    const auto lost = ranges_within(ranges, begin, end);
    if (lost.empty()) continue;
    const uint64_t from = std::max(begin, lost.front().first);
    const uint64_t to = std::min(end, lost.back().first + lost.back().elements);
    const std::span<float> decoded(memory.value(), to - from);
    auto done = accumulate({&record, 1}, tensor_, shape_, from, decoded, 1.0f, workspace);
    if (!done) return done;
    add_back(decoded, from, lost, key);
  }
  return {};
}

// By groups: i8 has one scale for each, so all of a group is rounded, and only once.
void Encoder::add_back(std::span<const float> decoded, uint64_t first, std::span<const Range> lost,
                       DrawKey key) {
  const uint64_t range_end = range_.first + range_.elements;
  const uint64_t end = first + decoded.size();
  std::array<float, kGroupElements> kept{};
  for (uint64_t group = first - first % kGroupElements; group < end; group += kGroupElements) {
    const uint64_t group_end = std::min(group + kGroupElements, range_end);
    const auto lost_here = ranges_within(lost, group, group_end);
    if (lost_here.empty()) continue;
    residual_.load(group, group_end - group, kept.data());
    for (const Range& range : lost_here) {
      const uint64_t stop = std::min({group_end, end, range.first + range.elements});
      for (uint64_t i = std::max({group, first, range.first}); i < stop; ++i) {
        const float value = decoded[i - first];
        if (is_finite(value)) kept[i - group] = finite_sum(kept[i - group], value);
      }
    }
    residual_.store(group, group_end - group, kept.data(),
                    {key.add + static_cast<uint32_t>(group), key.flip});
  }
}

}  // namespace scant::codec
