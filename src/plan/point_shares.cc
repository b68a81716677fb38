#include "plan/point_shares.h"

namespace scant::plan {

std::map<std::string, double> point_shares(const gradient::FusionPlan& plan,
                                           const gradient::Layout& layout) {
  std::map<std::string, double> shares;
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    const bool exact = buffer.path == gradient::Path::all_reduce;
    for (uint32_t i = 0; i < buffer.parts; ++i) {
      const auto n = static_cast<double>(layout.parts()[buffer.first_part + i].range.elements);
      shares[exact ? "plain" : codec::text(buffer.points[i].first)] +=
          n / static_cast<double>(layout.elements());
    }
  }
  return shares;
}

}  // namespace scant::plan
