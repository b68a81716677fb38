// What the engine does when memory runs out: the operation concerned ends, on every rank that could
// not have done without this one, and what follows works.
#include <gtest/gtest.h>

#include "base/testing/failing_allocations.h"
#include "collective/testing/exercise_run.h"

namespace scant::collective {
namespace {

using namespace std::chrono_literals;
using base::testing::FailingAllocations;

constexpr size_t kElements = 20'000;

// One all_reduce of the number of each rank, on every rank; its outcomes.
class Round {
 public:
  explicit Round(FakeNetwork& network) : network_(network) {
    const auto size = static_cast<size_t>(network.size());
    outcomes_.resize(size);
    values_.resize(size);
    for (Rank rank = 0; rank < network.size(); ++rank) {
      std::vector<int32_t>& values = values_[static_cast<size_t>(rank)];
      values.assign(kElements, rank + 1);
      Call call;
      call.kind = OpKind::all_reduce;
      call.dtype = DType::i32;
      call.reduce = ReduceOp::sum;
      call.inputs = {std::as_bytes(std::span(values))};
      call.outputs = {std::as_writable_bytes(std::span(values))};
      network.engine(rank).submit(network.now(), std::move(call),
                                  [&told = outcomes_[static_cast<size_t>(rank)]](
                                      const Result<void>& result, Rank) { told = result; });
      for (uint64_t steps = network.rng().below(20); steps > 0; --steps) network.step();
    }
    network.run(network.now() + 1s);  // far below the operations' deadline
  }
  // Ranks whose operation failed; checks the others' sums, and that every outcome was told.
  [[nodiscard]] size_t failed() const {
    size_t count = 0;
    const int32_t sum = network_.size() * (network_.size() + 1) / 2;
    for (size_t rank = 0; rank < outcomes_.size(); ++rank) {
      if (!outcomes_[rank]) {
        ADD_FAILURE() << "rank " << rank << " hangs";
      } else if (!outcomes_[rank]->ok()) {
        ++count;
        const Error& error = outcomes_[rank]->error();
        EXPECT_EQ(error.code, ErrorCode::resource) << error.to_string();
        EXPECT_NE(error.message.find("no memory"), std::string::npos) << error.message;
      } else {
        EXPECT_EQ(values_[rank], std::vector<int32_t>(kElements, sum)) << "rank " << rank;
      }
    }
    return count;
  }

 private:
  FakeNetwork& network_;
  std::vector<std::optional<Result<void>>> outcomes_;
  std::vector<std::vector<int32_t>> values_;
};

TEST(EngineMemory, AFailedAllocationEndsItsOperationAndNothingElse) {
  size_t runs = 0;
  for (int size = 2; size <= 5; ++size) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      for (uint64_t number = 0;; ++number) {
        SCOPED_TRACE("seed " + std::to_string(seed) + " size " + std::to_string(size) +
                     " allocation " + std::to_string(number));
        EngineOptions options;
        options.agree_first = 0;
        FakeNetwork network(seed, size, options);
        bool triggered = false;
        {
          const FailingAllocations failing(number);
          const Round round(network);
          triggered = FailingAllocations::failed();
          EXPECT_EQ(round.failed() > 0, triggered);
        }
        ++runs;
        EXPECT_EQ(Round(network).failed(), 0u);  // the next one
        for (Rank rank = 0; rank < size; ++rank) {
          EXPECT_EQ(network.engine(rank).buffers_out(), 0u);
          EXPECT_EQ(network.engine(rank).operations_in_flight(), 0u);
        }
        if (!triggered || HasFailure()) break;
      }
    }
  }
  EXPECT_GE(runs, 100u);
}

}  // namespace
}  // namespace scant::collective
