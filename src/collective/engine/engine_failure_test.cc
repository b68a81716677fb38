// What the engine does when ranks disagree, die, leave or shrink, on a network that delivers in
// random order.
#include <algorithm>
#include <gtest/gtest.h>

#include "collective/testing/exercise_run.h"

namespace scant::collective {
namespace {

using namespace std::chrono_literals;

// A call that owns its memory.
struct OwnedCall {
  Call call;
  std::vector<std::byte> in;
  std::vector<std::byte> out;
};

OwnedCall all_reduce_call(DType dtype, ReduceOp op, size_t bytes) {
  OwnedCall made;
  made.in.resize(bytes);
  made.out.resize(bytes);
  made.call.kind = OpKind::all_reduce;
  made.call.dtype = dtype;
  made.call.reduce = op;
  made.call.inputs = {made.in};
  made.call.outputs = {made.out};
  return made;
}

OwnedCall broadcast_call(DType dtype, Rank root, size_t bytes) {
  OwnedCall made;
  made.out.resize(bytes);
  made.call.kind = OpKind::broadcast;
  made.call.dtype = dtype;
  made.call.root = root;
  made.call.outputs = {made.out};
  return made;
}

OwnedCall gather_call(Rank rank, Rank root, int size, size_t bytes) {
  OwnedCall made;
  made.in.resize(bytes);
  made.out.resize(bytes * static_cast<size_t>(size));
  made.call.kind = OpKind::gather;
  made.call.dtype = DType::u8;
  made.call.root = root;
  made.call.inputs = {made.in};
  for (size_t i = 0; rank == root && i < static_cast<size_t>(size); ++i) {
    made.call.outputs.push_back(MutableBytes(made.out).subspan(i * bytes, bytes));
  }
  return made;
}

struct Disagreement {
  const char* name;
  OwnedCall (*first)(Rank rank, int size);   // what all but the last rank call
  OwnedCall (*second)(Rank rank, int size);  // what the last rank calls
  std::vector<std::string> words;            // in the message of some rank
};

class Mismatch : public testing::TestWithParam<Disagreement> {};

// Every rank that could not have succeeded on its own names both calls; the others learn it with a
// later operation: one that was pending, or, when all of those had ended before anything could be
// noticed, the next one.
TEST_P(Mismatch, IsNamedOnEveryRankAndNeverHangs) {
  const Disagreement& disagreement = GetParam();
  for (int size = 2; size <= 5; ++size) {
    for (uint64_t seed = 0; seed < 25; ++seed) {
      SCOPED_TRACE("seed " + std::to_string(seed) + " size " + std::to_string(size));
      FakeNetwork network(seed, size);
      std::deque<OwnedCall> calls;
      std::vector<std::vector<Result<void>>> outcomes(static_cast<size_t>(size));
      const auto submit = [&](Rank rank, OwnedCall call) {
        calls.push_back(std::move(call));
        network.engine(rank).submit(
            network.now(), calls.back().call,
            [&told = outcomes[static_cast<size_t>(rank)]](const Result<void>& result, Rank) {
              told.push_back(result);
            });
      };
      for (Rank rank = 0; rank < size; ++rank) {
        submit(rank,
               rank + 1 == size ? disagreement.second(rank, size) : disagreement.first(rank, size));
        submit(rank, all_reduce_call(DType::i32, ReduceOp::sum, 64));
        for (uint64_t steps = network.rng().below(10); steps > 0; --steps) network.step();
      }
      network.run(network.now() + 1s);  // far below the operations' deadline
      for (Rank rank = 0; rank < size; ++rank) {
        ASSERT_EQ(outcomes[static_cast<size_t>(rank)].size(), 2U) << "rank " << rank << " hangs";
      }
      for (Rank rank = 0; rank < size; ++rank) {
        submit(rank, all_reduce_call(DType::i32, ReduceOp::sum, 64));
      }
      network.run(network.now() + 1s);
      bool all_words = false;
      for (size_t rank = 0; rank < outcomes.size(); ++rank) {
        ASSERT_EQ(outcomes[rank].size(), 3U) << "rank " << rank << " hangs";
        const auto failed = std::find_if(outcomes[rank].begin(), outcomes[rank].end(),
                                         [](const Result<void>& result) { return !result.ok(); });
        ASSERT_NE(failed, outcomes[rank].end()) << "rank " << rank << " never learns of it";
        EXPECT_EQ(failed->error().code, ErrorCode::mismatch) << failed->error().to_string();
        bool words = true;
        for (const std::string& word : disagreement.words) {
          words = words && failed->error().message.find(word) != std::string::npos;
        }
        all_words = all_words || words;
      }
      EXPECT_TRUE(all_words);
      expect_clean(network);
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Attributes, Mismatch,
    testing::Values(
        Disagreement{"kind",
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 4096); },
                     [](Rank, int) { return broadcast_call(DType::f32, 0, 1024); },
                     {"all_reduce of 4,096 bytes f32 sum",
                      "broadcast of 1,024 bytes f32 from root 0", "as operation 0 of group 0"}},
        Disagreement{"bytes",
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 4096); },
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 8192); },
                     {"4,096 bytes", "8,192 bytes"}},
        Disagreement{"dtype",
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 4096); },
                     [](Rank, int) { return all_reduce_call(DType::i32, ReduceOp::sum, 4096); },
                     {"f32", "i32"}},
        Disagreement{"dtype_that_only_moves",
                     [](Rank, int) { return broadcast_call(moved_dtype("complex64"), 0, 32); },
                     [](Rank, int) { return broadcast_call(moved_dtype("int16"), 0, 32); },
                     {"32 bytes complex64", "32 bytes int16"}},
        Disagreement{"reduce",
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 4096); },
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::max, 4096); },
                     {"sum", "max"}},
        Disagreement{"nothing_and_something",
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 0); },
                     [](Rank, int) { return all_reduce_call(DType::f32, ReduceOp::sum, 8); },
                     {" 0 bytes", " 8 bytes"}},
        Disagreement{"large_and_small",
                     [](Rank, int) { return all_reduce_call(DType::u8, ReduceOp::sum, 3'000'000); },
                     [](Rank, int) { return all_reduce_call(DType::u8, ReduceOp::sum, 16); },
                     {"3,000,000 bytes", " 16 bytes"}},
        Disagreement{"root_of_gather",  // pairs that exchange nothing
                     [](Rank rank, int size) { return gather_call(rank, 0, size, 100); },
                     [](Rank rank, int size) { return gather_call(rank, size - 1, size, 100); },
                     {"gather of 100 bytes u8 to root"}},
        Disagreement{"root_of_broadcast",
                     [](Rank, int) { return broadcast_call(DType::u8, 0, 100); },
                     [](Rank, int size) { return broadcast_call(DType::u8, size - 1, 100); },
                     {"from root 0", "from root "}},
        Disagreement{"barrier",
                     [](Rank, int) { return OwnedCall{}; },
                     [](Rank, int) { return all_reduce_call(DType::u8, ReduceOp::sum, 100); },
                     {"barrier", "all_reduce of 100 bytes u8 sum"}}),
    [](const auto& given) { return std::string(given.param.name); });

TEST(PointToPoint, MessagesOfOnePairKeepTheirOrderWhateverTheNetworkDoes) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, 2, small_segments());
    constexpr size_t kMessages = 30;
    std::deque<std::vector<std::byte>> sent;
    std::deque<std::vector<std::byte>> received;
    size_t done = 0;
    const auto finished = [&](const Result<void>& result, Rank) {
      EXPECT_TRUE(result.ok()) << (result ? "" : result.error().to_string());
      ++done;
    };
    for (size_t i = 0; i < kMessages; ++i) {
      const size_t bytes = network.rng().below(i % 5 == 0 ? 9000 : 50);
      sent.emplace_back(bytes, static_cast<std::byte>(i));
      received.emplace_back(bytes);
      Call call;
      call.kind = OpKind::send;
      call.dtype = DType::u8;
      call.root = 1;
      call.tag = i % 3 == 0 ? 9 : 4;
      call.inputs = {sent.back()};
      network.engine(0).submit(network.now(), call, finished);
      for (uint64_t steps = network.rng().below(8); steps > 0; --steps) network.step();
    }
    for (size_t i = 0; i < kMessages; ++i) {
      Call call;
      call.kind = OpKind::recv;
      call.dtype = DType::u8;
      call.root = network.rng().chance(0.5) ? 0 : kAnySource;
      call.tag = i % 3 == 0 ? 9 : 4;
      call.outputs = {received[i]};
      network.engine(1).submit(network.now(), call, finished);
      for (uint64_t steps = network.rng().below(8); steps > 0; --steps) network.step();
    }
    network.settle();
    EXPECT_EQ(done, 2 * kMessages);
    EXPECT_EQ(sent, received);
    expect_clean(network);
    if (HasFailure()) return;
  }
}

TEST(PointToPoint, ReceivesFromAnySourceTakeOneMessageEach) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    constexpr int kSize = 5;
    FakeNetwork network(seed, kSize, small_segments());
    std::deque<std::vector<std::byte>> buffers;
    std::vector<int> heard(kSize);
    for (int round = 0; round < 6; ++round) {
      for (Rank rank = 1; rank < kSize; ++rank) {
        buffers.emplace_back(round % 2 == 0 ? 8 : 7000, static_cast<std::byte>(rank));
        Call call;
        call.kind = OpKind::send;
        call.dtype = DType::u8;
        call.root = 0;
        call.tag = static_cast<uint32_t>(round);
        call.inputs = {buffers.back()};
        network.engine(rank).submit(network.now(), call, [](const Result<void>& result, Rank) {
          EXPECT_TRUE(result.ok());
        });
        buffers.emplace_back(round % 2 == 0 ? 8 : 7000);
        call.kind = OpKind::recv;
        call.inputs = {};
        call.root = kAnySource;
        call.outputs = {buffers.back()};
        const std::byte* first = buffers.back().data();
        network.engine(0).submit(network.now(), call,
                                 [&heard, first](const Result<void>& result, Rank source) {
                                   ASSERT_TRUE(result.ok());
                                   EXPECT_EQ(std::to_integer<Rank>(*first), source);
                                   ++heard[static_cast<size_t>(source)];
                                 });
        for (uint64_t steps = network.rng().below(20); steps > 0; --steps) network.step();
      }
    }
    network.settle();
    EXPECT_EQ(heard, (std::vector<int>{0, 6, 6, 6, 6}));
    expect_clean(network);
    if (HasFailure()) return;
  }
}

TEST(PointToPoint, AReceiveOfAnotherSizeOrDtypeIsAMismatch) {
  for (const bool other_dtype : {false, true}) {
    FakeNetwork network(1, 2, small_segments());
    std::vector<std::byte> data(20'000);
    Call call;
    call.kind = OpKind::send;
    call.dtype = DType::i32;
    call.root = 1;
    call.inputs = {data};
    Result<void> sender;
    Result<void> receiver;
    network.engine(0).submit(network.now(), call, [&](const Result<void>& r, Rank) { sender = r; });
    call.kind = OpKind::recv;
    call.root = 0;
    call.inputs = {};
    call.outputs = {MutableBytes(data).first(other_dtype ? 20'000 : 19'996)};
    if (other_dtype) call.dtype = DType::f32;
    network.engine(1).submit(network.now(), call,
                             [&](const Result<void>& r, Rank) { receiver = r; });
    network.run(network.now() + 1s);
    ASSERT_FALSE(sender.ok() || receiver.ok());
    EXPECT_EQ(sender.error().code, ErrorCode::mismatch);
    EXPECT_EQ(receiver.error().code, ErrorCode::mismatch);
    EXPECT_NE(receiver.error().message.find("send of 20,000 bytes i32"), std::string::npos)
        << receiver.error().message;
    EXPECT_NE(receiver.error().message.find("as message 0 with tag 0"), std::string::npos);
    expect_clean(network);
  }
}

TEST(PointToPoint, AReceiveNobodyServesExpiresAndTheLineMovesOn) {
  FakeNetwork network(1, 3);
  std::vector<std::byte> data(8);
  std::vector<std::byte> other(8);
  Result<void> any;
  bool any_done = false;
  Result<void> named;
  bool named_done = false;
  Call call;
  call.kind = OpKind::recv;
  call.dtype = DType::u8;
  call.root = kAnySource;
  call.timeout = 1s;
  call.outputs = {data};
  network.engine(0).submit(network.now(), call, [&](const Result<void>& r, Rank) {
    any = r;
    any_done = true;
  });
  call.root = 2;
  call.timeout = 60s;
  call.outputs = {other};
  network.engine(0).submit(network.now(), call, [&](const Result<void>& r, Rank) {
    named = r;
    named_done = true;
  });
  network.run(network.now() + 2s);
  ASSERT_TRUE(any_done);
  EXPECT_EQ(any.error().code, ErrorCode::timeout);
  EXPECT_FALSE(named_done);
  call.kind = OpKind::send;
  call.root = 0;
  call.outputs = {};
  call.inputs = {data};
  network.engine(2).submit(network.now(), call, [](const Result<void>&, Rank) {});
  network.settle();
  ASSERT_TRUE(named_done);
  EXPECT_TRUE(named.ok());
}

class Loss : public testing::TestWithParam<int> {};

// A rank dies after every possible number of events. Survivors end everything within the clock
// standing still, name the dead rank, agree on who is left, and work on.
TEST_P(Loss, EndsEveryOperationAndTheSurvivorsWorkOn) {
  const int size = GetParam();
  for (uint64_t seed = 0; seed < 120; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    FakeNetwork network(seed, size, seed % 2 == 0 ? small_segments() : EngineOptions{});
    std::deque<ExerciseRun> runs;
    for (int i = 0; i < 6; ++i) {
      runs.emplace_back(network, random_spec(network.rng(), size, 3000), kWorldGroup,
                        everyone(size));
    }
    const auto victim = static_cast<Rank>(network.rng().below(static_cast<uint64_t>(size)));
    for (ExerciseRun& run : runs) {
      for (size_t rank = 0; rank < run.size(); ++rank) run.submit(rank);
    }
    for (uint64_t steps = network.rng().below(400); steps > 0; --steps) network.step();
    network.kill(victim);
    network.settle();
    for (ExerciseRun& run : runs) {
      EXPECT_EQ(run.wrong(), "");
      for (size_t rank = 0; rank < run.size(); ++rank) {
        if (static_cast<Rank>(rank) == victim) continue;
        ASSERT_TRUE(run.outcome(rank).done) << "rank " << rank << " " << run.spec().to_string();
        if (run.outcome(rank).result) continue;
        EXPECT_EQ(run.outcome(rank).result.error().code, ErrorCode::peer_lost);
        EXPECT_EQ(run.outcome(rank).result.error().peer, victim);
      }
    }
    std::vector<Rank> left;
    std::vector<std::vector<Rank>> agreed;
    for (Rank rank = 0; rank < size; ++rank) {
      if (rank == victim) continue;
      left.push_back(rank);
      network.engine(rank).begin_shrink(network.now(), network.now() + 10s,
                                        [&agreed](Result<std::vector<Rank>> survivors) {
                                          ASSERT_TRUE(survivors.ok());
                                          agreed.push_back(survivors.value());
                                        });
      for (uint64_t steps = network.rng().below(10); steps > 0; --steps) network.step();
    }
    network.settle();
    EXPECT_EQ(agreed, std::vector<std::vector<Rank>>(left.size(), left));
    std::deque<ExerciseRun> next;
    const int smaller = size - 1;
    for (int i = 0; i < 3; ++i) {
      next.emplace_back(network, random_spec(network.rng(), smaller, 3000), kWorldGroup, left);
    }
    submit_all(network, next);
    network.settle();
    expect_all_well(next);
    expect_clean(network);
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, Loss, testing::Values(2, 3, 4, 7));

TEST(Leave, WhoLeavesAfterItsLastOperationHarmsNobody) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const int size = 2 + static_cast<int>(seed % 4);
    FakeNetwork network(seed, size);
    std::deque<ExerciseRun> runs;
    for (int i = 0; i < 5; ++i) {
      ExerciseSpec spec = random_spec(network.rng(), size, 500);
      spec.kind = OpKind::all_reduce;
      runs.emplace_back(network, spec, kWorldGroup, everyone(size));
    }
    for (ExerciseRun& run : runs) run.submit(0);
    std::vector<bool> submitted(static_cast<size_t>(size));
    bool left = false;
    while (!left) {
      const auto rank = network.rng().below(static_cast<uint64_t>(size));
      if (rank != 0 && !submitted[rank]) {
        submitted[rank] = true;
        for (ExerciseRun& run : runs) run.submit(rank);
      }
      network.step();
      if (runs.back().outcome(0).done && network.engine(0).operations_in_flight() == 0) {
        network.leave(0);
        left = true;
      }
    }
    network.settle();
    expect_all_well(runs);
    ExerciseRun after(network, runs.back().spec(), kWorldGroup, everyone(size));
    after.submit(1);
    network.settle();
    ASSERT_TRUE(after.outcome(1).done);
    EXPECT_EQ(after.outcome(1).result.error().code, ErrorCode::closed);
    EXPECT_EQ(after.outcome(1).result.error().peer, 0);
    if (HasFailure()) return;
  }
}

TEST(Shrink, EndsByItsDeadlineWhenASurvivorDoesNotTakePart) {
  FakeNetwork network(4, 3);
  network.kill(2);
  network.settle();
  std::optional<Result<std::vector<Rank>>> outcome;
  network.engine(0).begin_shrink(network.now(), network.now() + 2s,
                                 [&](const Result<std::vector<Rank>>& r) { outcome = r; });
  network.run(network.now() + 3s);
  ASSERT_TRUE(outcome.has_value() && !outcome->ok());
  EXPECT_EQ(outcome->error().code, ErrorCode::timeout);
  EXPECT_EQ(outcome->error().peer, 1);
  int agreed = 0;  // a later attempt may succeed
  for (const Rank rank : {0, 1}) {
    network.engine(rank).begin_shrink(
        network.now(), network.now() + 2s,
        [&](const Result<std::vector<Rank>>& r) { agreed += r.ok(); });
  }
  network.settle();
  EXPECT_EQ(agreed, 2);
  EXPECT_EQ(network.engine(1).size(), 2);
}

TEST(Shrink, LossesDuringItLeadToTheSmallerSet) {
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    constexpr int kSize = 6;
    FakeNetwork network(seed, kSize);
    network.kill(5);
    std::vector<std::optional<Result<std::vector<Rank>>>> outcome(kSize);
    const auto shrink = [&](Rank rank) {
      network.engine(rank).begin_shrink(network.now(), network.now() + 5s,
                                        [&outcome, rank](const Result<std::vector<Rank>>& r) {
                                          outcome[static_cast<size_t>(rank)] = r;
                                        });
    };
    for (Rank rank = 0; rank < 5; ++rank) {
      for (uint64_t steps = network.rng().below(30); steps > 0; --steps) network.step();
      shrink(rank);
    }
    for (uint64_t steps = network.rng().below(60); steps > 0; --steps) network.step();
    network.kill(3);
    network.settle();
    // Who finished before the second loss is an epoch ahead and shrinks again; the others are still
    // at it.
    for (Rank rank = 0; rank < 5; ++rank) {
      if (rank != 3 && outcome[static_cast<size_t>(rank)]) shrink(rank);
    }
    network.settle();
    std::optional<uint32_t> epoch;
    for (const Rank rank : {0, 1, 2, 4}) {
      EXPECT_EQ(network.engine(rank).size(), 4) << "rank " << rank;
      if (!epoch) epoch = network.engine(rank).epoch();
      EXPECT_EQ(network.engine(rank).epoch(), *epoch);
    }
    std::deque<ExerciseRun> next;
    next.emplace_back(network, random_spec(network.rng(), 4, 300), kWorldGroup,
                      std::vector<Rank>{0, 1, 2, 4});
    submit_all(network, next);
    network.settle();
    expect_all_well(next);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace scant::collective
