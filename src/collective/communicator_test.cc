// The public API over real sockets on loopback: threads of this process are the ranks.
#include "scant/collective/communicator.h"

#include <atomic>
#include <functional>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#include "collective/testing/exercise.h"
#include "collective/testing/threads_as_ranks.h"

namespace scant {
namespace {

using namespace std::chrono_literals;

using collective::on_ranks;
using collective::options_for;
using collective::TemporaryDirectory;

Work start(Communicator& communicator, const collective::Call& call,
           const CallOptions& options = {}) {
  switch (call.kind) {
    case collective::OpKind::all_reduce:
      return communicator.all_reduce(call.inputs[0], call.outputs[0], call.dtype, call.reduce,
                                     options);
    case collective::OpKind::reduce:
      return communicator.reduce(call.inputs[0],
                                 call.outputs.empty() ? MutableBytes{} : call.outputs[0],
                                 call.dtype, call.reduce, call.root, options);
    case collective::OpKind::reduce_scatter:
      return communicator.reduce_scatter(call.inputs, call.outputs[0], call.dtype, call.reduce,
                                         options);
    case collective::OpKind::all_gather:
      return communicator.all_gather(call.inputs[0], call.outputs, call.dtype, options);
    case collective::OpKind::broadcast:
      return communicator.broadcast(call.outputs[0], call.dtype, call.root, options);
    case collective::OpKind::gather:
      return communicator.gather(call.inputs[0], call.outputs, call.dtype, call.root, options);
    case collective::OpKind::scatter:
      return communicator.scatter(call.inputs, call.outputs[0], call.dtype, call.root, options);
    case collective::OpKind::all_to_all:
      return communicator.all_to_all(call.inputs, call.outputs, call.dtype, options);
    case collective::OpKind::exchange:
      return communicator.exchange(call.inputs, call.outputs, call.received, options);
    default:
      return communicator.barrier(options);
  }
}

TEST(Communicator, EveryCollectiveGivesTheRightResult) {
  constexpr int kSize = 4;
  std::vector<collective::Exercise> exercises;
  base::Rng rng(20);
  for (int i = 0; i < 60; ++i) exercises.emplace_back(collective::random_spec(rng, kSize, 100'000));
  on_ranks(kSize, [&](Communicator& communicator) {
    std::vector<Work> works;
    for (collective::Exercise& exercise : exercises) {
      works.push_back(start(communicator, exercise.call(communicator.rank())));
    }
    for (size_t i = 0; i < works.size(); ++i) {
      const Result<void> outcome = works[i].wait();
      EXPECT_TRUE(outcome.ok()) << exercises[i].spec().to_string() << ": "
                                << (outcome ? "" : outcome.error().to_string());
      EXPECT_EQ(exercises[i].verify(communicator.rank()), "") << exercises[i].spec().to_string();
    }
    EXPECT_EQ(communicator.size(), kSize);
    EXPECT_EQ(communicator.peers().size(), static_cast<size_t>(kSize));
  });
}

TEST(Communicator, OneRankAloneWorks) {
  on_ranks(1, [](Communicator& communicator) {
    float value = 3;
    const MutableBytes bytes = std::as_writable_bytes(std::span(&value, 1));
    EXPECT_TRUE(communicator.all_reduce(bytes, bytes, DType::f32, ReduceOp::average).wait().ok());
    EXPECT_EQ(value, 3);
    EXPECT_TRUE(communicator.barrier().wait().ok());
  });
}

TEST(Communicator, LargeVectorsAreReducedAcrossSegments) {
  constexpr int kSize = 3;
  collective::ExerciseSpec spec;
  spec.size = kSize;
  spec.elements = 3'000'017;
  spec.reduce = ReduceOp::average;
  collective::Exercise exercise(spec);
  on_ranks(kSize, [&](Communicator& communicator) {
    const Result<void> outcome = start(communicator, exercise.call(communicator.rank())).wait();
    EXPECT_TRUE(outcome.ok()) << (outcome ? "" : outcome.error().to_string());
    EXPECT_EQ(exercise.verify(communicator.rank()), "");
  });
}

TEST(Communicator, SendAndReceiveIncludingFromAnySource) {
  on_ranks(3, [](Communicator& communicator) {
    std::vector<int64_t> data(100'000, communicator.rank());
    const MutableBytes bytes = std::as_writable_bytes(std::span(data));
    if (communicator.rank() == 0) {
      int64_t sum = 0;
      for (int i = 0; i < 2; ++i) {
        const Work work = communicator.recv(bytes, DType::i64, kAnySource, 5);
        ASSERT_TRUE(work.wait().ok());
        EXPECT_EQ(data.front(), work.source());
        EXPECT_EQ(data.back(), work.source());
        sum += data.front();
      }
      EXPECT_EQ(sum, 3);
    } else {
      EXPECT_TRUE(communicator.send(bytes, DType::i64, 0, 5).wait().ok());
    }
    EXPECT_FALSE(communicator.send(bytes, DType::i64, communicator.rank()).wait().ok());
    EXPECT_FALSE(communicator.send(bytes, DType::i64, 9).wait().ok());
  });
}

TEST(Communicator, GroupsAreMadeWithoutAMessage) {
  on_ranks(4, [](Communicator& communicator) {
    const bool even = communicator.rank() % 2 == 0;
    const std::vector<Rank> members = even ? std::vector<Rank>{2, 0} : std::vector<Rank>{1, 3};
    Result<GroupId> first = communicator.make_group(members, "pairs");
    Result<GroupId> second = communicator.make_group(members, "pairs");
    ASSERT_TRUE(first.ok() && second.ok());
    EXPECT_NE(first.value(), second.value());
    int32_t value = communicator.rank();
    const MutableBytes bytes = std::as_writable_bytes(std::span(&value, 1));
    CallOptions options;
    options.group = second.value();
    ASSERT_TRUE(communicator.all_reduce(bytes, bytes, DType::i32, ReduceOp::sum, options).wait());
    EXPECT_EQ(value, even ? 2 : 4);
    EXPECT_FALSE(communicator.make_group({0, 0, communicator.rank()}, "twice").ok());
    EXPECT_FALSE(communicator.make_group({-1, communicator.rank()}, "outside").ok());
  });
}

TEST(Communicator, AMismatchNamesBothCallsOnEveryRank) {
  on_ranks(3, [](Communicator& communicator) {
    std::vector<float> data(1024, 1);
    const MutableBytes bytes = std::as_writable_bytes(std::span(data));
    const bool odd = communicator.rank() == 1;
    const Work work = odd ? communicator.all_reduce(bytes, bytes, DType::f32, ReduceOp::max)
                          : communicator.all_reduce(bytes.first(512), bytes.first(512), DType::f32,
                                                    ReduceOp::sum);
    const Result<void> outcome = work.wait();
    ASSERT_FALSE(outcome.ok());
    EXPECT_EQ(outcome.error().code, ErrorCode::mismatch);
    EXPECT_NE(outcome.error().message.find("all_reduce of 4,096 bytes f32 max"), std::string::npos)
        << outcome.error().message;
    EXPECT_NE(outcome.error().message.find("all_reduce of 512 bytes f32 sum"), std::string::npos)
        << outcome.error().message;
    EXPECT_TRUE(communicator.barrier().wait().ok());  // the group goes on
  });
}

TEST(Communicator, CallbacksRunOnceWhetherEarlyOrLate) {
  on_ranks(2, [](Communicator& communicator) {
    std::atomic<int> calls{0};
    const auto count = [](void* context) { ++*static_cast<std::atomic<int>*>(context); };
    Work early = communicator.barrier();
    early.on_done(count, &calls);
    ASSERT_TRUE(early.wait().ok());
    Work late = communicator.barrier();
    ASSERT_TRUE(late.wait().ok());
    late.on_done(count, &calls);
    ASSERT_TRUE(communicator.barrier().wait().ok());  // the I/O thread ran the first callback
    EXPECT_EQ(calls.load(), 2);
  });
}

TEST(Communicator, AWaitThatEndsBeforeTheOperationSaysSo) {
  on_ranks(2, [](Communicator& communicator) {
    int32_t value = 1;
    const MutableBytes bytes = std::as_writable_bytes(std::span(&value, 1));
    if (communicator.rank() == 0) {
      const Work work = communicator.recv(bytes, DType::i32, 1);
      const Result<void> outcome = work.wait(20ms);
      ASSERT_FALSE(outcome.ok());
      EXPECT_EQ(outcome.error().code, ErrorCode::timeout);
      EXPECT_TRUE(communicator.barrier().wait().ok());
      EXPECT_TRUE(work.wait().ok());
    } else {
      EXPECT_TRUE(communicator.barrier().wait().ok());
      EXPECT_TRUE(communicator.send(bytes, DType::i32, 0).wait().ok());
    }
  });
}

TEST(Communicator, ShutdownEndsWhatIsPendingAndIsIdempotent) {
  on_ranks(2, [](Communicator& communicator) {
    int32_t value = 1;
    const MutableBytes bytes = std::as_writable_bytes(std::span(&value, 1));
    ASSERT_TRUE(communicator.barrier().wait().ok());
    const Work work = communicator.recv(bytes, DType::i32, 1 - communicator.rank());
    EXPECT_TRUE(communicator.shutdown().ok());
    EXPECT_TRUE(communicator.shutdown().ok());
    ASSERT_TRUE(work.done());
    EXPECT_EQ(work.wait().error().code, ErrorCode::closed);
    EXPECT_EQ(communicator.barrier().wait().error().code, ErrorCode::closed);
    EXPECT_FALSE(communicator.make_group({communicator.rank()}, "late").ok());
    EXPECT_FALSE(communicator.shrink(1s).ok());
    EXPECT_EQ(communicator.peers().size(), 2U);
  });
}

TEST(Communicator, AnAbortIsALossToTheOthers) {
  on_ranks(3, [](Communicator& communicator) {
    ASSERT_TRUE(communicator.barrier().wait().ok());
    if (communicator.rank() == 2) {
      communicator.abort("a test");
      return;
    }
    const Result<void> outcome = communicator.barrier().wait();
    ASSERT_FALSE(outcome.ok());
    EXPECT_TRUE(outcome.error().code == ErrorCode::peer_lost ||
                outcome.error().code == ErrorCode::closed)
        << outcome.error().to_string();
    EXPECT_EQ(outcome.error().peer, 2) << outcome.error().to_string();
    Result<std::vector<Rank>> survivors = communicator.shrink(10s);
    ASSERT_TRUE(survivors.ok()) << survivors.error().to_string();
    EXPECT_EQ(survivors.value(), (std::vector<Rank>{0, 1}));
    EXPECT_EQ(communicator.size(), 2);
    EXPECT_EQ(communicator.epoch(), 2U);
    EXPECT_TRUE(communicator.barrier().wait().ok());
  });
}

// A rank that gave up, and tried again, has made a group more than the others.
TEST(Communicator, GroupsOfOneKeyAreCountedAnewAfterAShrink) {
  on_ranks(2, [](Communicator& communicator) {
    const auto make = [&] { return communicator.make_group({0, 1}, "again"); };
    ASSERT_TRUE(make().ok());
    if (communicator.rank() == 0) {
      ASSERT_TRUE(make().ok());
    }
    ASSERT_TRUE(communicator.shrink(10s).ok());
    const Result<GroupId> group = make();
    ASSERT_TRUE(group.ok());
    const Result<void> met = communicator.barrier({.group = group.value(), .timeout = 5s}).wait();
    EXPECT_TRUE(met.ok()) << met.error().to_string();
  });
}

// Whatever the others do when it happens: what waits, what is submitted later, in any group, and a
// message from the one that failed. Afterwards they can go on without it.
TEST(Communicator, AFailureTellsItsReasonToTheOthers) {
  on_ranks(3, [](Communicator& communicator) {
    const auto all = communicator.make_group({2, 1, 0}, "all");
    ASSERT_TRUE(all.ok());
    ASSERT_TRUE(communicator.barrier().wait().ok());
    if (communicator.rank() == 2) {
      ASSERT_TRUE(communicator.fail("ValueError: no data").ok());
      EXPECT_EQ(communicator.barrier().wait().error().code, ErrorCode::closed);
      return;
    }
    int32_t value = 1;
    const MutableBytes bytes = std::as_writable_bytes(std::span(&value, 1));
    const auto expect_failed = [](const Result<void>& outcome) {
      ASSERT_FALSE(outcome.ok());
      EXPECT_EQ(outcome.error().code, ErrorCode::failed) << outcome.error().to_string();
      EXPECT_EQ(outcome.error().peer, 2);
      EXPECT_EQ(outcome.error().message, "rank 2 failed: ValueError: no data");
    };
    expect_failed(communicator.barrier().wait());
    expect_failed(communicator.all_reduce(bytes, bytes, DType::i32, ReduceOp::sum).wait());
    expect_failed(communicator.barrier({.group = all.value()}).wait());
    expect_failed(communicator.recv(bytes, DType::i32, 2).wait());
    ASSERT_TRUE(communicator.shrink(10s).ok());
    EXPECT_EQ(communicator.size(), 2);
    EXPECT_TRUE(communicator.barrier().wait().ok());
  });
}

TEST(Communicator, AForkedChildLeavesItAlone) {
  on_ranks(2, [](Communicator& communicator) {
    ASSERT_TRUE(communicator.barrier().wait().ok());
    if (communicator.rank() == 1) {
      const pid_t child = fork();
      if (child == 0) {
        const bool refused = communicator.barrier().wait().error().code == ErrorCode::closed;
        communicator.abort("in the child");
        _exit(refused ? 0 : 1);
      }
      int status = 0;
      ASSERT_EQ(waitpid(child, &status, 0), child);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    EXPECT_TRUE(communicator.barrier().wait().ok());
  });
}

TEST(Communicator, BadOptionsAreRefusedByName) {
  const TemporaryDirectory directory;
  Result<std::unique_ptr<Store>> store = open_directory_store(directory.path());
  ASSERT_TRUE(store.ok());
  for (const auto& [rank, size] : {std::pair{2, 2}, {-1, 2}, {0, 0}, {0, 70'000}}) {
    const auto refused = Communicator::create(*store.value(), options_for(rank, size));
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, ErrorCode::invalid_argument);
  }
}

}  // namespace
}  // namespace scant
