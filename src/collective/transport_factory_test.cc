// A communicator on transports that are not plain TCP: one that holds frames back and lets them go
// in another order, one that loses a peer, one that cannot be made.
#include "collective/transport_factory.h"

#include <atomic>
#include <gtest/gtest.h>
#include <thread>

#include "collective/testing/threads_as_ranks.h"
#include "net/tcp/tcp_transport.h"

namespace scant::collective {
namespace {

struct Counts {
  std::atomic<uint64_t> frames{0};  // by the ranks' I/O threads
  std::atomic<uint64_t> held{0};
};

struct Mischief {
  size_t hold_max = 0;        // frames that are kept until the next poll, the last sent first
  uint64_t forget_after = 0;  // frames, after which rank 1 gives up its connections; 0: never
};

// Another transport around TCP.
class MischievousTransport final : public net::Transport {
 public:
  MischievousTransport(std::unique_ptr<net::Transport> inner, Mischief mischief, Counts& counts)
      : inner_(std::move(inner)), mischief_(mischief), counts_(counts) {}

  [[nodiscard]] Rank rank() const override { return inner_->rank(); }
  [[nodiscard]] int size() const override { return inner_->size(); }
  [[nodiscard]] bool can_send(Rank peer) const override { return inner_->can_send(peer); }
  void send(Rank peer, const net::FrameHeader& header, Bytes payload, uint64_t token) override {
    ++counts_.frames;
    ++sent_;
    held_.push_back({peer, header, payload, token});
    if (held_.size() > mischief_.hold_max) {
      let_go();
    } else {
      ++counts_.held;
    }
  }
  void poll(Time deadline, net::TransportSink& sink) override {
    let_go();
    if (mischief_.forget_after > 0 && sent_ >= mischief_.forget_after && rank() == 1) {
      for (Rank peer = 0; peer < size(); ++peer) {
        if (peer == rank()) continue;
        inner_->forget(peer);
        sink.on_peer_down(peer, Error{ErrorCode::peer_lost, 0, peer, "forgotten on purpose"});
      }
      mischief_.forget_after = 0;
    }
    inner_->poll(deadline, sink);
  }
  void wake() override { inner_->wake(); }
  void forget(Rank peer) override { inner_->forget(peer); }
  [[nodiscard]] Time now() const override { return inner_->now(); }
  [[nodiscard]] std::vector<PeerInfo> peers() const override { return inner_->peers(); }
  void close(Time deadline) override {
    let_go();
    inner_->close(deadline);
  }

 private:
  struct Held {
    Rank peer;
    net::FrameHeader header;
    Bytes payload;
    uint64_t token;
  };
  void let_go() {
    for (; !held_.empty(); held_.pop_back()) {
      const Held& last = held_.back();
      inner_->send(last.peer, last.header, last.payload, last.token);
    }
  }

  std::unique_ptr<net::Transport> inner_;
  Mischief mischief_;
  Counts& counts_;
  uint64_t sent_ = 0;
  std::vector<Held> held_;
};

void on_ranks_with(int size, Mischief mischief, Counts& counts,
                   const std::function<void(Communicator&)>& body) {
  const TemporaryDirectory directory;
  std::vector<std::thread> threads;
  for (Rank rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      auto store = open_directory_store(directory.path());
      ASSERT_TRUE(store.ok());
      auto made = CommunicatorFactory::create(
          *store.value(), options_for(rank, size),
          [&](Store& from,
              const CommunicatorOptions& how) -> Result<std::unique_ptr<net::Transport>> {
            auto inner = net::TcpTransport::create(from, how);
            if (!inner) return inner.error();
            return std::unique_ptr<net::Transport>(
                std::make_unique<MischievousTransport>(std::move(inner).value(), mischief, counts));
          });
      ASSERT_TRUE(made.ok()) << made.error().to_string();
      body(*made.value());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

Result<void> sum_of_ranks(Communicator& communicator, size_t elements) {
  std::vector<int64_t> values(elements, communicator.rank() + 1);
  const int64_t expected = communicator.size() * (communicator.size() + 1) / 2;
  Result<void> outcome =
      communicator
          .all_reduce(std::as_bytes(std::span(values)), std::as_writable_bytes(std::span(values)),
                      DType::i64, ReduceOp::sum)
          .wait();
  if (outcome.ok()) {
    EXPECT_EQ(values, std::vector<int64_t>(elements, expected));
  }
  return outcome;
}

TEST(TransportFactory, FramesMayBeHeldBackAndReordered) {
  for (const size_t hold_max : {size_t{0}, size_t{3}, size_t{64}}) {
    Counts counts;
    on_ranks_with(3, {.hold_max = hold_max}, counts, [](Communicator& communicator) {
      for (const size_t elements : {size_t{1}, size_t{5000}, size_t{300'000}, size_t{2}}) {
        const Result<void> outcome = sum_of_ranks(communicator, elements);
        EXPECT_TRUE(outcome.ok()) << outcome.error().to_string();
      }
    });
    EXPECT_GT(counts.frames, 50u);
    EXPECT_EQ(counts.held > 0, hold_max > 0);
  }
}

TEST(TransportFactory, WhatTheTransportLosesTheCommunicatorReports) {
  Counts counts;
  std::atomic<int> failed{0};
  on_ranks_with(2, {.forget_after = 40}, counts, [&](Communicator& communicator) {
    for (int call = 0; call < 10'000; ++call) {
      const Result<void> outcome = sum_of_ranks(communicator, 100);
      if (outcome) continue;
      EXPECT_EQ(outcome.error().code, ErrorCode::peer_lost) << outcome.error().to_string();
      ++failed;
      return;
    }
  });
  EXPECT_EQ(failed, 2);
}

TEST(TransportFactory, ATransportThatCannotBeMadeIsTheCallersError) {
  const TemporaryDirectory directory;
  auto store = open_directory_store(directory.path());
  ASSERT_TRUE(store.ok());
  const auto made = CommunicatorFactory::create(
      *store.value(), options_for(0, 1),
      [](Store&, const CommunicatorOptions&) -> Result<std::unique_ptr<net::Transport>> {
        return Error{ErrorCode::unsupported, 0, kNoRank, "no such network"};
      });
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::unsupported);
  EXPECT_EQ(made.error().message, "no such network");
}

}  // namespace
}  // namespace scant::collective
