// Steps of two ranks over real sockets, in which an allocation fails on one of the library's own
// threads: at each place the step ends on both ranks, an error of one is one of the other at the
// latest in its next step, and the process lives on.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <thread>

#include "base/buffer.h"
#include "base/testing/replaced_new.h"
#include "collective/testing/threads_as_ranks.h"
#include "gradient/testing/averagers.h"

namespace {

// Allocations of threads with this name, in any rank, since it was armed; this one of them fails.
std::atomic<bool> armed{false};
std::atomic<uint64_t> allocations{0};
std::atomic<uint64_t> failing{UINT64_MAX};
std::atomic<const char*> thread_name{""};

bool fails() {
  if (!armed.load(std::memory_order_relaxed)) return false;
  char name[16] = {};
  prctl(PR_GET_NAME, name);
  if (std::strcmp(name, thread_name) != 0) return false;
  return allocations.fetch_add(1) == failing.load();
}

}  // namespace

bool scant::base::testing::allocation_fails() { return fails(); }

namespace scant::gradient {
namespace {

const std::vector<codec::Shape> kFew = {{1, 10}, {20, 40}, {64, 80}};

struct Case {
  const char* thread;
  Path path;
  double density;
  uint16_t rank = 0;  // of matrices
  friend void PrintTo(const Case& one, std::ostream* out) {
    *out << one.thread << ", " << name(one.path) << ", density " << one.density << ", rank "
         << one.rank;
  }
};

FusionPlan plan_of(const Layout& layout, const Case& of) {
  return uniform_plan({.path = of.path,
                       .point = {of.density, codec::ValueKind::q4, false, of.rank},
                       .buffer_bytes = 300'000,
                       .first_buffer_bytes = 10'000,
                       .small_elements = 100},
                      layout);
}

// One step with a place that fails. Whether there was such a place.
bool fails_in_a_step(const Case& of, uint64_t place) {
  std::atomic<int> well{0};
  std::atomic<int> failed{0};
  std::atomic<int> ready{0};
  std::atomic<int> over{0};
  thread_name = of.thread;
  failing = place;
  allocations = 0;
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2, kFew);
    Host host(communicator, layout);
    host.set(plan_of(layout, of));
    ASSERT_TRUE(host.step(1, 1).ok());
    if (++ready == 2) armed = true;
    while (!armed) std::this_thread::yield();
    const Result<StepReport> outcome = host.step(2, 2);
    if (!outcome) {
      const ErrorCode code = outcome.error().code;
      EXPECT_TRUE(code == ErrorCode::resource || code == ErrorCode::failed ||
                  code == ErrorCode::closed || code == ErrorCode::peer_lost)
          << outcome.error().to_string();
    }
    ++(outcome ? well : failed);
    while (well + failed < 2) std::this_thread::yield();
    armed = false;
    // A rank may be lost when the other has all that it needs: that one learns of it in its next.
    if (outcome && failed > 0) {
      EXPECT_FALSE(host.step(3, 3).ok());
    }
    ++over;
    while (over < 2) std::this_thread::yield();
  });
  return allocations > place;
}

class AveragerMemory : public ::testing::TestWithParam<Case> {};

TEST_P(AveragerMemory, AFailedAllocationIsAnErrorOnEveryRankAtTheLatestInTheNextStep) {
  base::set_allocation_gate(&base::testing::buffer_may_allocate);
  uint64_t place = 0;
  for (; place < 2000; ++place) {
    SCOPED_TRACE(::testing::Message() << "allocation " << place << " of " << GetParam().thread);
    if (!fails_in_a_step(GetParam(), place) || HasFailure()) break;
  }
  base::set_allocation_gate(nullptr);
  std::printf("%llu places\n", static_cast<unsigned long long>(place));
  EXPECT_GT(place, 30u);
}

// The end of an operation has to be told, whatever its error takes. Whether there was such a place.
bool fails_while_a_rank_is_lost(uint64_t place) {
  thread_name = "scant-io";
  failing = place;
  allocations = 0;
  std::atomic<bool> begun{false};
  collective::on_ranks(2, [&](Communicator& communicator) {
    const Layout layout = layout_for(2, kFew);
    Host host(communicator, layout);
    host.set(uniform(layout, Path::split, 1.0, codec::ValueKind::q4));
    ASSERT_TRUE(host.averager->continue_on(communicator).ok());
    ASSERT_TRUE(communicator.barrier().wait().ok());
    if (communicator.rank() == 1) {
      while (!begun) std::this_thread::yield();
      return communicator.abort("the test wants it");
    }
    for (uint32_t tensor = 0; tensor < kFew.size(); ++tensor) {
      EXPECT_TRUE(host.averager->ready(tensor).ok());
    }
    begun = armed = true;
    const Result<StepReport> outcome = host.end();
    armed = false;
    ASSERT_FALSE(outcome.ok());
    EXPECT_NE(outcome.error().code, ErrorCode::timeout) << outcome.error().to_string();
  });
  return allocations > place;
}

TEST(AveragerMemory, AFailedAllocationWhileARankIsLostIsAnErrorToo) {
  uint64_t place = 0;
  for (; place < 500; ++place) {
    SCOPED_TRACE(::testing::Message() << "allocation " << place);
    if (!fails_while_a_rank_is_lost(place) || HasFailure()) break;
  }
  EXPECT_GT(place, 5u);
}

INSTANTIATE_TEST_SUITE_P(
    Threads, AveragerMemory,
    ::testing::Values(Case{"scant-io", Path::split, 1.0}, Case{"scant-io", Path::gather, 0.1},
                      Case{"scant-io", Path::all_reduce, 1.0}, Case{"scant-grad", Path::split, 1.0},
                      Case{"scant-grad", Path::split, 0.1}, Case{"scant-grad", Path::gather, 0.1},
                      Case{"scant-io", Path::split, 1.0, 3},
                      Case{"scant-grad", Path::split, 0.1, 3}));

}  // namespace
}  // namespace scant::gradient
