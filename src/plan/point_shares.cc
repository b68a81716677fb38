#include "plan/point_shares.h"

#include <cstdio>

namespace scant::plan {
namespace {

std::string text(codec::Point point) {
  if (point.density >= 1) return codec::name(point.values);
  char percent[32];
  std::snprintf(percent, sizeof percent, "%g%% ", 100 * point.density);
  return percent + codec::values_text(point);
}

}  // namespace

std::map<std::string, double> point_shares(const gradient::FusionPlan& plan,
                                           const gradient::Layout& layout) {
  std::map<std::string, double> shares;
  for (const gradient::BufferPlan& buffer : plan.buffers) {
    const bool exact = buffer.path == gradient::Path::all_reduce;
    for (uint32_t i = 0; i < buffer.parts; ++i) {
      const auto n = static_cast<double>(layout.parts()[buffer.first_part + i].range.elements);
      shares[exact ? "plain" : text(buffer.points[i].first)] +=
          n / static_cast<double>(layout.elements());
    }
  }
  return shares;
}

}  // namespace scant::plan
