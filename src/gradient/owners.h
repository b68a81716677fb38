// Giving slices to the ranks that own the least: what layouts and duties share. One owner thread.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "gradient/layout.h"

namespace scant::gradient {

// How much each rank owns so far. A heap, so that many small tensors on many ranks are no product
// of the two.
class Owners {
 public:
  explicit Owners(int ranks) {
    owned_.reserve(static_cast<size_t>(ranks));
    for (Rank rank = 0; rank < ranks; ++rank) owned_.push_back({0, rank});
  }
  [[nodiscard]] size_t ranks() const { return owned_.size(); }

  // Gives a part that is one slice to the rank with the least, the lowest of several.
  Rank least(uint64_t elements) {
    std::pop_heap(owned_.begin(), owned_.end(), std::greater<>());
    const Rank owner = owned_.back().second;
    owned_.back().first += elements;
    std::push_heap(owned_.begin(), owned_.end(), std::greater<>());
    return owner;
  }

  // Gives everyone its slice of part number `part`.
  void everyone(uint64_t part, std::span<const SliceLayout> slices) {
    const uint64_t count = ranks();
    for (auto& [elements, rank] : owned_)
      elements +=
          slices[(static_cast<uint64_t>(rank) + count - part % count) % count].range.elements;
    std::make_heap(owned_.begin(), owned_.end(), std::greater<>());
  }

 private:
  std::vector<std::pair<uint64_t, Rank>> owned_;
};

}  // namespace scant::gradient
