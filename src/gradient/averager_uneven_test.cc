// Ranks whose records have nothing in common but their tensors: counts from none to all, plans that
// change at every step. No deadlock, no slice taken for another, nothing lost.
#include <cmath>
#include <gtest/gtest.h>

#include "collective/testing/threads_as_ranks.h"
#include "gradient/testing/averagers.h"

namespace scant::gradient {
namespace {

// How a tensor's gradient looks on one rank in one step, drawn anew each time: thresholds that one
// rank carries over fit no other, nor the next step.
float uneven_at(uint64_t seed, int step, Rank rank, uint32_t tensor, uint64_t element) {
  const uint64_t where = static_cast<uint64_t>(step) << 40 | static_cast<uint64_t>(rank) << 32;
  const uint64_t kind = base::random_at(seed, where, tensor) % 6;
  const float some = gradient_at(step, rank, tensor, element);
  switch (kind) {
    case 0:
      return 0;  // nothing to send
    case 1:
      return 0.125f;  // all alike: all pass, or none
    case 2:
      return element % 1009 == 7 ? 1.0f : 0.0f;  // a few
    case 3:
      return some * 1e-6f;  // far below the last threshold
    case 4:
      return some * 1e3f;  // far above
    default:
      return some;
  }
}

TEST(AveragerOfUnevenRanks, NothingIsLostOrTakenForAnother) {
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const int ranks = seed % 4 == 0 ? 8 : 2 + static_cast<int>(seed % 4);
    constexpr int kSteps = 6;
    const auto gradient = [seed](int step, Rank rank, uint32_t tensor, uint64_t element) {
      return uneven_at(seed, step, rank, tensor, element);
    };
    Collected collected;
    collective::on_ranks(ranks, [&](Communicator& communicator) {
      const Layout layout = layout_for(ranks);
      Host host(communicator, layout);
      host.gradient = gradient;
      std::vector<double> applied;
      ASSERT_NO_FATAL_FAILURE(step_by_random_plans(host, seed, kSteps, collected, applied));
      for (uint32_t tensor = 0; tensor < kShapes.size(); ++tensor) {
        const uint64_t offset = layout.tensors()[tensor].offset;
        // A coarse record of large values leaves large residuals with all elements of its group.
        double largest = 0;
        std::vector<double> wanted(kShapes[tensor].elements());
        for (uint64_t i = 0; i < wanted.size(); ++i) {
          for (int n = 1; n <= kSteps; ++n) {
            for (Rank rank = 0; rank < ranks; ++rank) {
              const double one = gradient(n, rank, tensor, i);
              wanted[i] += one / ranks;
              largest = std::max(largest, std::abs(one));
            }
          }
        }
        for (uint64_t i = 0; i < wanted.size(); ++i) {
          ASSERT_NEAR(applied[offset + i], wanted[i], 1e-6 * largest)
              << "tensor " << tensor << ", element " << i;
        }
      }
    });
    collected.expect_alike();
  }
}

}  // namespace
}  // namespace scant::gradient
