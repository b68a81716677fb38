// The event loop over real pipes, sockets and threads; its time is moved by the tests.
#include "base/event_loop.h"

#include <array>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <string>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/thread.h"

namespace scant::base {
namespace {

using namespace std::chrono_literals;

constexpr Time kStart{1h};
constexpr Interest kRead{.readable = true};
constexpr Interest kWrite{.writable = true};

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    SCANT_CHECK(pipe2(ends.data(), O_NONBLOCK | O_CLOEXEC) == 0);
    out = Descriptor(ends[0]);
    in = Descriptor(ends[1]);
  }
  void write(size_t bytes = 1) const {
    const std::string text(bytes, 'x');
    SCANT_CHECK(::write(in.get(), text.data(), bytes) == static_cast<ssize_t>(bytes));
  }
  size_t read() const {
    std::array<char, 4096> room;
    const ssize_t n = ::read(out.get(), room.data(), room.size());
    return n > 0 ? static_cast<size_t>(n) : 0;
  }
  Descriptor out;
  Descriptor in;
};

// A loop whose clock stands unless a test moves it: a turn that should not wait cannot hang.
class EventLoopTest : public testing::Test {
 protected:
  EventLoopTest() {
    clock_.set(kStart);
    auto made = EventLoop::create(clock_);
    SCANT_CHECK(made.ok());
    loop_ = std::move(made).value();
  }
  EventLoop::Watch watch(int fd, Interest interest, EventLoop::Handler handler) {
    auto made = loop_->watch(fd, interest, std::move(handler));
    SCANT_CHECK(made.ok());
    return made.value();
  }
  EventLoop::Turn look() { return loop_->turn(Time::min()); }

  ManualClock clock_;
  std::unique_ptr<EventLoop> loop_;
};

TEST_F(EventLoopTest, CallsWhatIsReadyUntilItIsReadEmpty) {
  const Pipe pipe;
  size_t calls = 0;
  watch(pipe.out.get(), kRead, [&](Readiness ready) {
    ++calls;
    EXPECT_TRUE(ready.readable);
    EXPECT_FALSE(ready.writable);
    EXPECT_FALSE(ready.failed);
  });
  EXPECT_TRUE(look().idle());
  pipe.write();
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_EQ(look().handlers, 1u);  // level-triggered
  EXPECT_EQ(pipe.read(), 1u);
  EXPECT_TRUE(look().idle());
  EXPECT_EQ(calls, 2u);
}

TEST_F(EventLoopTest, TellsReadingWritingAndTheEndApart) {
  std::array<int, 2> ends{};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()), 0);
  const Descriptor here(ends[0]);
  Descriptor there(ends[1]);
  Readiness last;
  const auto watched = watch(here.get(), kRead, [&](Readiness ready) { last = ready; });
  EXPECT_TRUE(look().idle());
  loop_->change(watched, {.readable = true, .writable = true});
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_TRUE(last.writable && !last.readable && !last.failed);
  loop_->change(watched, kRead);
  EXPECT_TRUE(look().idle());
  there.close();
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_TRUE(last.readable && !last.writable && last.failed);
  loop_->unwatch(watched);
  EXPECT_TRUE(look().idle());
}

TEST_F(EventLoopTest, AnErrorReachesWhoOnlyWrites) {
  Pipe pipe;
  while (::write(pipe.in.get(), "full", 4) > 0) {
  }
  Readiness last;
  watch(pipe.in.get(), kWrite, [&](Readiness ready) { last = ready; });
  EXPECT_TRUE(look().idle());
  pipe.out.close();
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_TRUE(last.failed);
}

TEST_F(EventLoopTest, AHandlerMayUnwatchAndCloseItself) {
  Pipe pipe;
  size_t calls = 0;
  EventLoop::Watch watched;
  const auto held = std::make_shared<int>(0);
  watched = watch(pipe.out.get(), kRead, [&, kept = held](Readiness) {
    ++calls;
    loop_->unwatch(watched);
    pipe.out.close();
    EXPECT_EQ(kept.use_count(), 2);  // what the handler holds stays until it returns
  });
  pipe.write();
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_TRUE(look().idle());
  EXPECT_EQ(calls, 1u);
  EXPECT_EQ(held.use_count(), 1);
}

// Both are ready in one turn; whichever comes first closes the other, and its number goes to a pipe
// that is ready too. That one is called in the next turn only, and the closed one never.
TEST_F(EventLoopTest, ANumberThatIsReusedWithinATurnIsAnotherDescriptor) {
  std::array<Pipe, 2> pipes;
  std::array<EventLoop::Watch, 2> watches;
  std::array<size_t, 2> calls{};
  Pipe next;
  next.write();
  size_t next_calls = 0;
  int reused = -1;
  for (size_t i = 0; i < 2; ++i) {
    pipes[i].write();
    watches[i] = watch(pipes[i].out.get(), kRead, [&, i](Readiness) {
      ++calls[i];
      pipes[i].read();
      Pipe& other = pipes[1 - i];
      loop_->unwatch(watches[1 - i]);
      const int number = other.out.get();
      other.out.close();
      reused = dup3(next.out.get(), number, O_CLOEXEC);
      ASSERT_EQ(reused, number);
      watch(reused, kRead, [&](Readiness) { ++next_calls; });
    });
  }
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_EQ(calls[0] + calls[1], 1u);
  EXPECT_EQ(next_calls, 0u);
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_EQ(next_calls, 1u);
  EXPECT_EQ(calls[0] + calls[1], 1u);
  const Descriptor close_at_end(reused);
}

TEST_F(EventLoopTest, AHandlerMayWatchManyOthers) {
  const Pipe pipe;
  pipe.write();
  std::vector<Pipe> others(100);  // more than one turn tells of, and the table grows meanwhile
  size_t calls = 0;
  bool all_watched = false;
  const auto first = watch(pipe.out.get(), kRead, [&](Readiness) {
    pipe.read();
    if (std::exchange(all_watched, true)) return;
    for (const Pipe& other : others) {
      other.write();
      watch(other.out.get(), kRead, [&](Readiness) {
        ++calls;
        other.read();
      });
    }
  });
  EXPECT_EQ(look().handlers, 1u);
  size_t handlers = 0;
  for (int turns = 0; turns < 4; ++turns) handlers += look().handlers;
  EXPECT_EQ(handlers, others.size());
  EXPECT_EQ(calls, others.size());
  pipe.write();
  EXPECT_EQ(look().handlers, 1u);  // and the first is still watched
  loop_->unwatch(first);
}

TEST_F(EventLoopTest, TimersComeInTheirOrderAndNotBeforeTheirTime) {
  std::string order;
  loop_->start_timer(kStart + 2s, [&] { order += 'c'; });
  loop_->start_timer(kStart + 1s, [&] { order += 'a'; });
  loop_->start_timer(kStart + 1s, [&] { order += 'b'; });
  EXPECT_TRUE(look().idle());
  clock_.advance(1s);
  EXPECT_EQ(loop_->turn(kNever).timers, 2u);  // what is due does not wait
  EXPECT_EQ(order, "ab");
  clock_.advance(1min);
  EXPECT_EQ(look().timers, 1u);
  EXPECT_EQ(order, "abc");
  EXPECT_TRUE(look().idle());
}

TEST_F(EventLoopTest, ATimerMayStopAnotherAndStartItselfAnew) {
  size_t ticks = 0;
  size_t stopped_calls = 0;
  EventLoop::Timer stopped;
  std::function<void()> tick = [&] {
    ++ticks;
    loop_->start_timer(clock_.now(), tick);  // due at once: in the next turn
    EXPECT_EQ(loop_->stop_timer(stopped), ticks == 1);
  };
  const EventLoop::Timer first = loop_->start_timer(kStart, tick);
  stopped = loop_->start_timer(kStart, [&] { ++stopped_calls; });
  EXPECT_EQ(look().timers, 1u);
  EXPECT_FALSE(loop_->stop_timer(first));
  clock_.advance(1ms);
  EXPECT_EQ(look().timers, 1u);
  EXPECT_EQ(ticks, 2u);
  EXPECT_EQ(stopped_calls, 0u);
}

TEST_F(EventLoopTest, ADeadlineInThePastOnlyLooks) {
  for (const Time deadline : {Time::min(), kStart - 1h, kStart}) {
    EXPECT_TRUE(loop_->turn(deadline).idle());
  }
}

TEST_F(EventLoopTest, AWakeBeforeTheTurnEndsIt) {
  loop_->wake();
  loop_->wake();
  EXPECT_TRUE(loop_->turn(kNever).woken);
  EXPECT_TRUE(look().idle());  // many wakes, one turn
}

TEST_F(EventLoopTest, AHandlerMayWake) {
  const Pipe pipe;
  pipe.write();
  watch(pipe.out.get(), kRead, [&](Readiness) {
    pipe.read();
    loop_->wake();
  });
  EXPECT_EQ(look().handlers, 1u);
  EXPECT_TRUE(loop_->turn(kNever).woken);
}

// Each thread asks, wakes, and asks again only when the loop has seen it: a wake that got lost
// would leave the loop waiting.
TEST_F(EventLoopTest, NoWakeOfManyIsLost) {
  constexpr uint64_t kRounds = 2000;
  std::atomic<uint64_t> asked{0};  // by the threads, before they wake
  std::atomic<uint64_t> seen{0};   // by the loop: so many were asked
  std::array<Thread, 3> threads;
  for (Thread& thread : threads) {
    ASSERT_TRUE(thread
                    .start("waker",
                           [this, &asked, &seen] {
                             for (uint64_t n = 0; n < kRounds; ++n) {
                               const uint64_t mine = asked.fetch_add(1) + 1;
                               loop_->wake();
                               for (uint64_t now = seen; now < mine; now = seen) seen.wait(now);
                             }
                           })
                    .ok());
  }
  uint64_t turns = 0;
  while (seen < kRounds * threads.size()) {
    EXPECT_TRUE(loop_->turn(kNever).woken);
    seen = asked.load();
    seen.notify_all();
    ++turns;
  }
  for (Thread& thread : threads) thread.join();
  EXPECT_GE(turns, kRounds);
  look();  // a wake may have come after the loop saw what it was for
  EXPECT_TRUE(look().idle());
}

TEST_F(EventLoopTest, RefusesWhatCannotBeWatched) {
  const auto refused = loop_->watch(-1, kRead, [](Readiness) {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::io);
  const Pipe pipe;
  const auto first = watch(pipe.out.get(), kRead, [](Readiness) {});
  EXPECT_FALSE(loop_->watch(pipe.out.get(), kRead, [](Readiness) {}).ok());  // twice
  loop_->unwatch(first);
  EXPECT_TRUE(loop_->watch(pipe.out.get(), kRead, [](Readiness) {}).ok());
}

TEST_F(EventLoopTest, MisuseIsAProgrammersError) {
  Pipe pipe;
  const auto watched = watch(pipe.out.get(), kRead, [](Readiness) {});
  EXPECT_DEATH(loop_->change(EventLoop::Watch{}, kRead), "not watched");
  EXPECT_DEATH(
      {
        pipe.out.close();
        loop_->unwatch(watched);
      },
      "closed while it was watched");
  loop_->unwatch(watched);
  EXPECT_DEATH(loop_->unwatch(watched), "not watched");
}

}  // namespace
}  // namespace scant::base
