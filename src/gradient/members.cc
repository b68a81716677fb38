#include "gradient/members.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/rng.h"
#include "codec/accumulate.h"
#include "gradient/owners.h"

namespace scant::gradient {

// Chained, so that the order of stations counts.
uint64_t Members::hash() const {
  uint64_t hash = base::random_at(epoch, stations.size(), 0);
  for (const Rank station : stations) {
    hash = base::random_at(hash, static_cast<uint64_t>(station), 1);
  }
  return std::max<uint64_t>(hash, 1);
}

Members everyone(int size, Rank self) {
  Members members{
      .epoch = 1, .stations = std::vector<Rank>(static_cast<size_t>(size)), .self = self};
  std::iota(members.stations.begin(), members.stations.end(), 0);
  return members;
}

std::vector<SliceDuty> duties_for(const Layout& layout, int members) {
  SCANT_CHECK(members > 0);
  const float weight = codec::mean_weight(static_cast<uint32_t>(members));
  std::vector<SliceDuty> duties;
  duties.reserve(layout.slices().size());
  Owners owners(members);
  for (const SliceLayout& slice : layout.slices()) {
    const bool own = members == layout.ranks();
    duties.push_back({own ? slice.owner : owners.least(slice.range.elements), weight});
  }
  return duties;
}

}  // namespace scant::gradient
