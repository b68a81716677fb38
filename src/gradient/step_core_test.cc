// The order of a step: legs in the order of the plan, whatever is ready or comes back first.
#include "gradient/step_core.h"

#include <gtest/gtest.h>
#include <map>
#include <vector>

#include "base/rng.h"

namespace scant::gradient {
namespace {

using Kind = StepCore::Kind;

FusionPlan plan_of(const std::vector<std::pair<Path, uint32_t>>& buffers) {
  FusionPlan plan;
  uint32_t part = 0;
  for (const auto& [path, parts] : buffers) {
    plan.buffers.push_back({part, parts, path, {}});
    if (path != Path::all_reduce) plan.buffers.back().points.resize(parts);
    part += parts;
  }
  return plan;
}

std::vector<StepCore::Job> drain(StepCore& core) {
  std::vector<StepCore::Job> jobs;
  while (const auto job = core.next()) jobs.push_back(*job);
  return jobs;
}

TEST(StepCore, AnAllReduceWaitsForItsPartsOnly) {
  const FusionPlan plan = plan_of({{Path::all_reduce, 2}});
  StepCore core;
  core.begin(plan);
  EXPECT_FALSE(core.next());
  core.part_ready(1);
  const auto second = core.next();
  ASSERT_EQ(second, (StepCore::Job{Kind::encode, 0, 1}));
  core.finished(*second);
  EXPECT_FALSE(core.next());
  core.part_ready(0);
  const auto first = core.next();
  ASSERT_EQ(first, (StepCore::Job{Kind::encode, 0, 0}));
  EXPECT_FALSE(core.next());  // not before it is encoded
  core.finished(*first);
  const auto begin = core.next();
  ASSERT_EQ(begin, (StepCore::Job{Kind::begin_first, 0, 0}));
  EXPECT_FALSE(core.done());
  core.finished(*begin);
  EXPECT_TRUE(core.done());
}

TEST(StepCore, WhileItIsHeldOnlyFirstLegsWait) {
  const FusionPlan plan = plan_of({{Path::split, 1}, {Path::split, 1}});
  StepCore core;
  core.begin(plan);
  core.part_ready(0);
  core.finished(*core.next());
  const auto first = core.next();
  EXPECT_EQ(core.next_first(), 1u);
  core.hold();
  core.part_ready(1);
  core.finished(*core.next());
  EXPECT_FALSE(core.next());
  core.finished(*first);
  core.finished(*core.next());  // added up
  EXPECT_EQ(core.next(), (StepCore::Job{Kind::begin_second, 0, 0}));
  EXPECT_FALSE(core.next());
  core.release();
  EXPECT_EQ(core.next(), (StepCore::Job{Kind::begin_first, 1, 0}));
  EXPECT_EQ(core.next_first(), 2u);
}

TEST(StepCore, LegsBeginInTheOrderOfThePlanWhateverIsReadyFirst) {
  const FusionPlan plan = plan_of({{Path::split, 1}, {Path::all_reduce, 1}, {Path::split, 1}});
  StepCore core;
  core.begin(plan);
  core.part_ready(2);
  core.part_ready(1);
  for (const auto& job : drain(core)) {
    EXPECT_EQ(job.kind, Kind::encode);
    core.finished(job);
  }
  EXPECT_TRUE(drain(core).empty());  // buffers 1 and 2 wait for buffer 0
  core.part_ready(0);
  core.finished(*core.next());
  const auto begun = drain(core);
  ASSERT_EQ(begun.size(), 3u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(begun[i], (StepCore::Job{Kind::begin_first, i, 0}));
  // Buffer 2 comes back first: its second leg waits for that of buffer 0, not for the all_reduce.
  core.finished(begun[2]);
  const auto add = core.next();
  ASSERT_EQ(add, (StepCore::Job{Kind::add, 2, 0}));
  core.finished(*add);
  EXPECT_FALSE(core.next());
  core.finished(begun[0]);
  core.finished(*core.next());
  const auto seconds = drain(core);
  ASSERT_EQ(seconds.size(), 2u);
  EXPECT_EQ(seconds[0], (StepCore::Job{Kind::begin_second, 0, 0}));
  EXPECT_EQ(seconds[1], (StepCore::Job{Kind::begin_second, 2, 0}));
}

TEST(StepCore, TheLastBuffersTakeTheirTurnsInTheOppositeOrderTwoAtATime) {
  FusionPlan plan =
      plan_of({{Path::split, 1}, {Path::split, 1}, {Path::all_reduce, 1}, {Path::split, 1}});
  plan.reversed = 3;
  const std::vector<uint32_t> turns = {0, 3, 2, 1};
  for (uint32_t turn = 0; turn < 4; ++turn) EXPECT_EQ(buffer_at(plan, turn), turns[turn]);
  StepCore core;
  core.begin(plan);
  for (uint32_t part = 0; part < 4; ++part) core.part_ready(part);
  for (const uint32_t buffer : turns) {  // encoded in turn, too
    const auto job = core.next();
    ASSERT_EQ(job, (StepCore::Job{Kind::encode, buffer, buffer}));
    core.finished(*job);
    if (buffer != 1) {
      ASSERT_EQ(core.next(), (StepCore::Job{Kind::begin_first, buffer, 0}));
    }
  }
  EXPECT_FALSE(core.next());  // 3 and 2 are under way: 1 waits for one of them
  core.finished({Kind::begin_first, 3, 0});
  ASSERT_EQ(core.next(), (StepCore::Job{Kind::add, 3, 0}));
  core.finished({Kind::add, 3, 0});
  EXPECT_FALSE(core.next());  // nor is 3 over: its second leg waits for that of 0
  core.finished({Kind::begin_first, 2, 0});
  EXPECT_TRUE(core.is_done(2));
  ASSERT_EQ(core.next(), (StepCore::Job{Kind::begin_first, 1, 0}));
  core.finished({Kind::begin_first, 0, 0});
  core.finished(*core.next());  // add
  ASSERT_EQ(core.next(), (StepCore::Job{Kind::begin_second, 0, 0}));
  ASSERT_EQ(core.next(), (StepCore::Job{Kind::begin_second, 3, 0}));
  core.finished({Kind::begin_first, 1, 0});
  core.finished(*core.next());
  ASSERT_EQ(core.next(), (StepCore::Job{Kind::begin_second, 1, 0}));
}

TEST(StepCore, AddingComesBeforeEncodingAndThatBeforeDecoding) {
  const FusionPlan plan = plan_of({{Path::split, 1}, {Path::gather, 1}, {Path::split, 1}});
  StepCore core;
  core.begin(plan);
  core.part_ready(0);
  core.finished(*core.next());
  const auto first = core.next();
  core.finished(*first);
  core.finished(*core.next());  // add
  const auto second = core.next();
  ASSERT_EQ(second->kind, Kind::begin_second);
  core.part_ready(1);
  core.finished(*core.next());  // encode
  const auto gather = core.next();
  ASSERT_EQ(gather, (StepCore::Job{Kind::begin_first, 1, 0}));
  core.finished(*gather);
  core.finished(*second);
  core.part_ready(2);
  EXPECT_EQ(core.next(), (StepCore::Job{Kind::add, 1, 0}));
  EXPECT_EQ(core.next(), (StepCore::Job{Kind::encode, 2, 2}));
  EXPECT_EQ(core.next(), (StepCore::Job{Kind::decode, 0, 0}));
}

TEST(StepCore, AMatrixPartIsEncodedOnceMoreWhenItsBasisIsThere) {
  FusionPlan plan = plan_of({{Path::split, 2}, {Path::split, 1}, {Path::gather, 1}});
  plan.buffers[0].points[1].first.rank = 2;
  plan.buffers[2].points[0].first.rank = 2;
  StepCore core;
  core.begin(plan);
  const auto expect = [&](StepCore::Job job) { ASSERT_EQ(core.next(), job); };
  const auto over = [&](StepCore::Job job) {
    expect(job);
    core.finished(job);
  };
  for (uint32_t part = 0; part < 4; ++part) core.part_ready(part);
  over({Kind::encode, 0, 1, Stage::basis});
  over({Kind::encode, 0, 0});
  expect({Kind::begin_first, 0, 0, Stage::basis});
  over({Kind::encode, 1, 2});  // its first leg waits for that of buffer 0
  over({Kind::encode, 2, 3, Stage::basis});
  expect({Kind::begin_first, 2, 0, Stage::basis});
  EXPECT_FALSE(core.next());
  // What is gathered has its basis once it is added up.
  core.finished({Kind::begin_first, 2, 0, Stage::basis});
  over({Kind::add, 2, 0, Stage::basis});
  over({Kind::encode, 2, 3});
  core.finished({Kind::begin_first, 0, 0, Stage::basis});
  over({Kind::add, 0, 0, Stage::basis});
  expect({Kind::begin_second, 0, 0, Stage::basis});
  EXPECT_FALSE(core.next());
  core.finished({Kind::begin_second, 0, 0, Stage::basis});
  over({Kind::decode, 0, 0, Stage::basis});
  over({Kind::encode, 0, 1});
  for (uint32_t buffer = 0; buffer < 3; ++buffer) expect({Kind::begin_first, buffer, 0});
  EXPECT_FALSE(core.next());
}

// Two ranks with events in different random orders submit the same legs in the same order, and end.
TEST(StepCore, AnyOrderOfEventsGivesTheSameOrderOfOperations) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    base::Rng rng(seed);
    std::vector<std::pair<Path, uint32_t>> buffers(1 + rng.below(6));
    uint32_t parts = 0;
    for (auto& [path, count] : buffers) {
      path = static_cast<Path>(rng.below(kPathCount));
      count = 1 + static_cast<uint32_t>(rng.below(4));
      parts += count;
    }
    FusionPlan plan = plan_of(buffers);
    const uint64_t reversed = rng.below(buffers.size() + 1);
    plan.reversed = reversed == 1 ? 0 : static_cast<uint32_t>(reversed);
    std::vector<uint32_t> encoded_in_all(parts, 1);
    for (BufferPlan& buffer : plan.buffers) {
      for (size_t i = 0; i < buffer.points.size(); ++i) {
        if (!rng.chance(0.4)) continue;
        buffer.points[i].first.rank = 1;
        encoded_in_all[buffer.first_part + i] = 2;  // its left factor, and the rest
      }
    }
    std::map<std::pair<Kind, Stage>, std::vector<uint32_t>> orders[2];
    for (auto& order : orders) {
      StepCore core;
      core.begin(plan);
      std::vector<uint32_t> unready(parts);
      for (uint32_t i = 0; i < parts; ++i) unready[i] = i;
      std::vector<StepCore::Job> under_way;
      std::vector<uint32_t> encoded(parts);
      while (!core.done()) {
        const uint64_t choice = rng.below(3);
        if (choice == 0 && !unready.empty()) {
          const size_t at = rng.below(unready.size());
          core.part_ready(unready[at]);
          unready.erase(unready.begin() + static_cast<std::ptrdiff_t>(at));
        } else if (choice == 1) {
          if (const auto job = core.next()) {
            under_way.push_back(*job);
            order[{job->kind, job->stage}].push_back(job->buffer);
            if (job->kind == Kind::encode) ++encoded[job->part];
          }
        } else if (!under_way.empty()) {
          const size_t at = rng.below(under_way.size());
          core.finished(under_way[at]);
          under_way.erase(under_way.begin() + static_cast<std::ptrdiff_t>(at));
        }
      }
      EXPECT_FALSE(core.next());
      EXPECT_EQ(encoded, encoded_in_all);
    }
    for (const Kind leg : {Kind::begin_first, Kind::begin_second}) {
      for (const Stage stage : {Stage::basis, Stage::values}) {
        const std::pair lane(leg, stage);
        EXPECT_EQ(orders[0][lane], orders[1][lane]);
      }
    }
    for (uint32_t i = 0; i < buffers.size(); ++i) {
      EXPECT_EQ((orders[0][{Kind::begin_first, Stage::values}][i]), buffer_at(plan, i));
    }
  }
}

}  // namespace
}  // namespace scant::gradient
