// Virtual time against a list that is searched anew for each event.
#include "base/event_queue.h"

#include <gtest/gtest.h>
#include <memory>
#include <string>

#include "base/rng.h"

namespace scant::base {
namespace {

using namespace std::chrono_literals;

constexpr Time kStart{1h};

TEST(EventQueue, HappensInTheOrderOfTimesAndTiesInThatOfCreation) {
  EventQueue<int> queue(kStart);
  queue.schedule(kStart + 2s, 3);
  queue.schedule(kStart + 1s, 1);
  queue.schedule(kStart + 2s, 4);
  queue.schedule(kStart + 1s, 2);
  EXPECT_EQ(queue.size(), 4u);
  EXPECT_EQ(queue.next_at(), kStart + 1s);
  EXPECT_EQ(queue.now(), kStart);
  for (int expected = 1; expected <= 4; ++expected) {
    EXPECT_EQ(queue.pop(), expected);
    EXPECT_EQ(queue.now(), kStart + (expected <= 2 ? 1s : 2s));
  }
  EXPECT_EQ(queue.pop(), std::nullopt);
  EXPECT_EQ(queue.next_at(), kNever);
  EXPECT_TRUE(queue.empty());
}

TEST(EventQueue, GivesNothingBeyondTheLimitAndLeavesTheClockThere) {
  EventQueue<int> queue(kStart);
  queue.schedule(kStart + 5s, 1);
  EXPECT_EQ(queue.pop(kStart + 4s), std::nullopt);
  EXPECT_EQ(queue.now(), kStart);
  queue.advance(kStart + 4s);
  EXPECT_EQ(queue.now(), kStart + 4s);
  queue.advance(kStart + 1s);  // time does not go back
  EXPECT_EQ(queue.now(), kStart + 4s);
  EXPECT_EQ(queue.pop(kStart + 5s), 1);
  EXPECT_EQ(queue.now(), kStart + 5s);
}

TEST(EventQueue, WhatIsLateHappensNowAfterWhatWasThereBefore) {
  EventQueue<int> queue(kStart);
  queue.schedule(kStart, 1);
  queue.schedule(kStart - 1min, 2);
  EXPECT_EQ(queue.pop(), 1);
  EXPECT_EQ(queue.pop(), 2);
  EXPECT_EQ(queue.now(), kStart);
}

TEST(EventQueue, AnEventCanBeCancelledOnceAndOnlyBeforeItHappens) {
  EventQueue<int> queue(kStart);
  const EventId first = queue.schedule(kStart + 1s, 1);
  const EventId second = queue.schedule(kStart + 2s, 2);
  EXPECT_TRUE(queue.cancel(first));
  EXPECT_FALSE(queue.cancel(first));
  EXPECT_EQ(queue.size(), 1u);
  EXPECT_EQ(queue.next_at(), kStart + 2s);
  const EventId third = queue.schedule(kStart + 3s, 3);  // takes the place of the first
  EXPECT_FALSE(queue.cancel(first));
  EXPECT_EQ(queue.pop(), 2);
  EXPECT_FALSE(queue.cancel(second));
  EXPECT_TRUE(queue.cancel(third));
  EXPECT_FALSE(queue.cancel(EventId{}));
  EXPECT_EQ(queue.pop(), std::nullopt);
}

TEST(EventQueue, CarriesWhatCanOnlyBeMovedAndLetsGoOfWhatIsCancelled) {
  EventQueue<std::shared_ptr<int>> shared(kStart);
  const auto held = std::make_shared<int>(5);
  const EventId id = shared.schedule(kStart + 1s, held);
  EXPECT_EQ(held.use_count(), 2);
  EXPECT_TRUE(shared.cancel(id));
  EXPECT_EQ(held.use_count(), 1);
  EventQueue<std::unique_ptr<int>> unique(kStart);
  unique.schedule(kStart, std::make_unique<int>(7));
  const auto got = unique.pop();
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(**got, 7);
}

TEST(EventQueueDeathTest, TimeCannotPassAnEvent) {
  EventQueue<int> queue(kStart);
  queue.schedule(kStart + 1s, 1);
  EXPECT_DEATH(queue.advance(kStart + 2s), "may not pass an event");
}

// The same by searching a list: the earliest, and of those the first that was scheduled.
class SearchedList {
 public:
  struct Entry {
    Time at;
    uint64_t number = 0;
    EventId id;
  };
  std::vector<Entry> entries;
  std::optional<Entry> pop(Time limit) {
    const auto first = std::min_element(entries.begin(), entries.end(),
                                        [](const Entry& x, const Entry& y) { return x.at < y.at; });
    if (first == entries.end() || first->at > limit) return std::nullopt;
    const Entry found = *first;
    entries.erase(first);
    return found;
  }
};

TEST(EventQueue, DoesWhatASearchedListDoes) {
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    EventQueue<uint64_t> queue(kStart);
    SearchedList list;
    std::vector<EventId> past;
    for (uint64_t number = 0; number < 2000; ++number) {
      const uint64_t what = rng.below(10);
      if (what < 5) {
        // Few different times, so that ties are frequent; some lie in the past.
        const Time at = queue.now() + std::chrono::seconds(rng.below(8)) - 2s;
        const EventId id = queue.schedule(at, number);
        list.entries.push_back({std::max(at, queue.now()), number, id});
      } else if (what < 8) {
        const Time limit = queue.now() + std::chrono::seconds(rng.below(4));
        const auto got = queue.pop(limit);
        const auto expected = list.pop(limit);
        ASSERT_EQ(got.has_value(), expected.has_value());
        if (!got) continue;
        ASSERT_EQ(*got, expected->number);
        ASSERT_EQ(queue.now(), expected->at);
        past.push_back(expected->id);
      } else if (what < 9 && !list.entries.empty()) {
        const auto victim =
            list.entries.begin() + static_cast<ptrdiff_t>(rng.below(list.entries.size()));
        ASSERT_TRUE(queue.cancel(victim->id));
        past.push_back(victim->id);
        list.entries.erase(victim);
      } else if (!past.empty()) {
        ASSERT_FALSE(queue.cancel(past[rng.below(past.size())]));
      }
      ASSERT_EQ(queue.size(), list.entries.size());
    }
  }
}

}  // namespace
}  // namespace scant::base
