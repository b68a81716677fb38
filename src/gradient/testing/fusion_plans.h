// What the tests of plans share: layouts, and plans that are random but obey all rules.
#pragma once

#include <algorithm>
#include <gtest/gtest.h>
#include <vector>

#include "base/rng.h"
#include "gradient/fusion_plan.h"

namespace scant::gradient::testing {

inline Layout layout_of(const std::vector<codec::Shape>& shapes, int ranks) {
  auto layout = Layout::create(shapes, ranks);
  EXPECT_TRUE(layout.ok()) << layout.error().to_string();
  return std::move(layout).value();
}

inline Layout random_layout(base::Rng& rng, size_t tensors_max) {
  std::vector<codec::Shape> shapes(1 + rng.below(tensors_max));
  for (codec::Shape& shape : shapes)
    shape = {1 + rng.below(4), 1 + rng.below(uint64_t{1} << (1 + rng.below(21)))};
  return layout_of(shapes, static_cast<int>(1 + rng.below(9)));
}

inline codec::Point random_point(base::Rng& rng) {
  const double density = rng.chance(0.3) ? 1.0 : 1 - rng.uniform();
  return {density, static_cast<codec::ValueKind>(rng.below(codec::kValueKindCount)),
          rng.chance(0.2)};
}

inline codec::Point ranked(uint16_t rank, codec::ValueKind factors,
                           codec::Point rest = codec::kKeepAll) {
  rest.rank = rank;
  rest.factors = factors;
  return rest;
}

// Matrices at this point, all else as its rest or its factors; several small buffers.
inline FusionPlan plan_of(const Layout& layout, Path path, codec::Point point) {
  return uniform_plan({.path = path,
                       .point = point,
                       .buffer_bytes = 3000,
                       .first_buffer_bytes = 100,
                       .small_elements = 0},
                      layout);
}

// Gives both legs of a part factors, with or without a rest.
inline void add_random_factors(base::Rng& rng, uint64_t rank_max, Path path, PartPlan& part) {
  const auto factors = [&rng] {
    return static_cast<codec::ValueKind>(rng.below(codec::kValueKindCount));
  };
  const bool rest = rng.chance(0.5);
  const auto rank = static_cast<uint16_t>(1 + rng.below(rank_max));
  for (codec::Point* leg : {&part.first, &part.second}) {
    if (leg == &part.second && path == Path::gather) break;
    if (!rest) *leg = {.density = 0};
    leg->rank = rank;
    leg->factors = factors();
  }
}

inline FusionPlan random_plan(base::Rng& rng, const Layout& layout, bool factors = false) {
  FusionPlan plan;
  const auto parts = static_cast<uint32_t>(layout.parts().size());
  for (uint32_t next = 0; next < parts;) {
    BufferPlan buffer{.first_part = next,
                      .parts = static_cast<uint32_t>(1 + rng.below(std::min(parts - next, 8u))),
                      .path = static_cast<Path>(rng.below(kPathCount)),
                      .points = {}};
    next += buffer.parts;
    if (buffer.path != Path::all_reduce) buffer.points.resize(buffer.parts);
    for (size_t i = 0; i < buffer.points.size(); ++i) {
      PartPlan& part = buffer.points[i];
      part.first = random_point(rng);
      if (buffer.path == Path::split) part.second = random_point(rng);
      const uint64_t most = layout.rank_max(buffer.first_part + static_cast<uint32_t>(i));
      if (factors && most > 0 && rng.chance(0.5)) add_random_factors(rng, most, buffer.path, part);
    }
    plan.buffers.push_back(std::move(buffer));
  }
  const uint64_t reversed = rng.below(plan.buffers.size() + 1);
  if (reversed != 1) plan.reversed = static_cast<uint32_t>(reversed);
  return plan;
}

}  // namespace scant::gradient::testing
