#include "journal/averages.h"

namespace scant::journal {

std::vector<Part> parts_of(std::span<const AveragedTogether> averages,
                           std::span<const Bytes> gradients) {
  std::vector<Part> parts;
  for (uint32_t number = 0; number < averages.size(); ++number) {
    const AveragedTogether& together = averages[number];
    const bool owners = together.from == AveragedTogether::From::owners;
    if (!together.matrices.empty()) {
      parts.push_back({.kind = PartKind::matrices, .where = number, .matrices = together.matrices});
    }
    for (const Bytes message : together.messages) {
      parts.push_back({.kind = owners ? PartKind::averages : PartKind::gathered,
                       .where = number,
                       .bytes = message});
    }
    if (together.from != AveragedTogether::From::memory) continue;
    for (const AveragedTogether::Place& place : together.places) {
      const Bytes of = gradients[place.tensor];
      const uint64_t first = place.range.first * sizeof(float);
      const uint64_t bytes = place.range.elements * sizeof(float);
      if (of.size() < first + bytes) continue;
      parts.push_back({.kind = PartKind::raw,
                       .where = place.tensor,
                       .first = first,
                       .bytes = of.subspan(first, bytes)});
    }
  }
  return parts;
}

}  // namespace scant::journal
