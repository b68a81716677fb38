// Members that cannot be, over real sockets: named, and nothing is broken by it.
#include <gtest/gtest.h>
#include <thread>

#include "collective/testing/threads_as_ranks.h"
#include "gradient/averager.h"
#include "gradient/communicator_exchange.h"
#include "gradient/testing/averagers.h"

namespace scant::gradient {
namespace {

using namespace std::chrono_literals;

std::unique_ptr<Averager> averager_on(Communicator& communicator, int layout_ranks,
                                      std::vector<float>& arena, bool joins) {
  const Layout layout = layout_for(layout_ranks);
  arena.resize(layout.arena_elements());
  auto made = Averager::create(communicator, layout, arena, {.joins = joins});
  EXPECT_TRUE(made.ok()) << made.error().to_string();
  return made.ok() ? std::move(made).value() : nullptr;
}

// A step with its outcome.
Result<StepReport> step_of(Averager& averager) {
  EXPECT_TRUE(
      averager.set_plan(uniform(averager.layout(), Path::split, 1.0, codec::ValueKind::q4)).ok());
  for (uint32_t tensor = 0; tensor < averager.layout().tensors().size(); ++tensor) {
    if (Result<void> told = averager.ready(tensor); !told) return told.error();
  }
  if (Result<void> told = averager.finish(); !told) return told.error();
  return *averager.wait(60s);
}

void expect_refused(const Result<Members>& got, ErrorCode code, std::string_view text) {
  ASSERT_FALSE(got.ok());
  EXPECT_EQ(got.error().code, code);
  EXPECT_NE(got.error().message.find(text), std::string::npos) << got.error().to_string();
}

TEST(AveragerMembersRefused, WrongCallsAreRefusedAndNamed) {
  collective::on_ranks(1, [](Communicator& communicator) {
    std::vector<float> arena;
    const auto averager = averager_on(communicator, 1, arena, false);
    ASSERT_TRUE(step_of(*averager).ok());
    ASSERT_TRUE(averager->ready(0).ok());
    expect_refused(averager->continue_on(communicator), ErrorCode::invalid_argument,
                   "between steps");
    ASSERT_TRUE(averager->finish().ok());
    ASSERT_TRUE(averager->wait(60s)->ok());
    expect_refused(averager->continue_on(communicator, {3}), ErrorCode::invalid_argument,
                   "rank 0, this one, is not of the 1 that take part");
    expect_refused(averager->continue_on(communicator, {0, 0}), ErrorCode::invalid_argument,
                   "named twice");
    const Result<void> back = averager->set_members({2, {0}, 0}, 2);
    ASSERT_FALSE(back.ok());
    EXPECT_NE(back.error().message.find("step 2 is over on this rank, which can go on with step 3"),
              std::string::npos);
    EXPECT_TRUE(averager->set_members({2, {0}, 0}, 9).ok());
    EXPECT_EQ(step_of(*averager).value().step, 9u);

    auto exchange = CommunicatorExchange::create(communicator, {.key = "other"}).value();
    std::vector<float> other(averager->layout().arena_elements());
    const auto on_exchange =
        Averager::create(*exchange, exchange->members(), averager->layout(), other, {});
    expect_refused(on_exchange.value()->continue_on(communicator), ErrorCode::invalid_argument,
                   "set_members() changes them");
    std::vector<float> alone(arena.size());
    const auto joined =
        Averager::create(communicator, averager->layout(), alone, {.key = "alone", .joins = true});
    ASSERT_FALSE(joined.ok());
    EXPECT_NE(joined.error().message.find("all 1 ranks are newcomers"), std::string::npos);
  });
}

// All ranks get the error, and who was a member goes on as before.
TEST(AveragerMembersRefused, ANewcomerOfAnotherLayoutIsNamedOnAllRanks) {
  const collective::TemporaryDirectory alone;
  const collective::TemporaryDirectory together;
  std::thread newcomer([&] {
    const auto communicator = collective::connect(together.path(), 1, 2);
    const Layout layout = layout_for(2);
    std::vector<float> arena(layout.arena_elements());
    const auto made = Averager::create(*communicator, layout, arena, {.joins = true});
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.error().code, ErrorCode::mismatch) << made.error().to_string();
  });
  const auto first = collective::connect(alone.path(), 0, 1);
  std::vector<float> arena;
  const auto averager = averager_on(*first, 1, arena, false);
  const auto next = collective::connect(together.path(), 0, 2);
  expect_refused(averager->continue_on(*next), ErrorCode::mismatch,
                 "rank 1 has cut its layout for 2 ranks, rank 0 for 1");
  newcomer.join();
  EXPECT_TRUE(step_of(*averager).ok());
}

// It meets nobody, so who was a member goes on as before.
TEST(AveragerMembersRefused, ANewcomerThatIsRefusedIsNoMember) {
  const collective::TemporaryDirectory alone;
  const collective::TemporaryDirectory together;
  std::thread newcomer([&] {
    const auto communicator = collective::connect(together.path(), 1, 2);
    std::vector<float> small(3);
    const auto made = Averager::create(*communicator, layout_for(1), small, {.joins = true});
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.error().code, ErrorCode::invalid_argument) << made.error().to_string();
  });
  const auto first = collective::connect(alone.path(), 0, 1);
  std::vector<float> arena;
  const auto averager = averager_on(*first, 1, arena, false);
  const auto next = collective::connect(together.path(), 0, 2);
  expect_refused(averager->continue_on(*next), ErrorCode::closed, "rank 1");
  newcomer.join();
  EXPECT_TRUE(step_of(*averager).ok());
}

TEST(AveragerMembersRefused, StationsOfTwoTrainingsCannotMeet) {
  const collective::TemporaryDirectory together;
  std::vector<std::thread> threads;
  for (Rank rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      const collective::TemporaryDirectory alone;
      const auto own = collective::connect(alone.path(), 0, 1);
      std::vector<float> arena;
      const auto averager = averager_on(*own, 1, arena, false);
      const auto next = collective::connect(together.path(), rank, 2);
      expect_refused(averager->continue_on(*next), ErrorCode::mismatch,
                     "rank 0 and rank 1 both say that they are station 0");
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(AveragerMembersRefused, AMemberThatIsLostMeanwhileIsNamedAndTheOthersGoOn) {
  collective::on_ranks(3, [](Communicator& communicator) {
    std::vector<float> arena;
    const auto averager = averager_on(communicator, 3, arena, false);
    ASSERT_TRUE(step_of(*averager).ok());
    if (communicator.rank() == 1) return communicator.abort("the test wants it");
    const auto lost = averager->continue_on(communicator);
    expect_refused(lost, ErrorCode::peer_lost, "rank 1");
    ASSERT_TRUE(communicator.shrink(30s).ok());
    const auto two = averager->continue_on(communicator);
    ASSERT_TRUE(two.ok()) << two.error().to_string();
    EXPECT_EQ(two.value(), (Members{2, {0, 2}, communicator.rank()}));
    EXPECT_TRUE(step_of(*averager).ok());
  });
}

TEST(AveragerMembersRefused, AfterAShrinkAStepNeedsOtherMembers) {
  collective::on_ranks(2, [](Communicator& communicator) {
    std::vector<float> arena;
    const auto averager = averager_on(communicator, 2, arena, false);
    ASSERT_TRUE(step_of(*averager).ok());
    ASSERT_TRUE(communicator.shrink(30s).ok());
    const auto lost = step_of(*averager);
    ASSERT_FALSE(lost.ok());
    EXPECT_EQ(lost.error().code, ErrorCode::closed);
    EXPECT_NE(lost.error().message.find("continue_on()"), std::string::npos)
        << lost.error().to_string();
    ASSERT_TRUE(averager->continue_on(communicator).ok());
    const auto next = step_of(*averager);
    ASSERT_TRUE(next.ok()) << next.error().to_string();
    EXPECT_EQ(next.value().step, 3u);
    // The same ranks again: a later epoch, and so an answer to any error that took nobody.
    const auto again = averager->continue_on(communicator);
    ASSERT_TRUE(again.ok());
    EXPECT_EQ(again.value().epoch, 3u);
    EXPECT_TRUE(step_of(*averager).ok());
  });
}

}  // namespace
}  // namespace scant::gradient
