// A payload that comes packet by packet: few wakes, nothing lost or late, and a peer that sends
// slowly is no silent one.
#include <array>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/rng.h"
#include "net/tcp/connection.h"
#include "net/tcp/tcp_transport.h"
#include "net/testing/conformance_world.h"
#include "net/testing/raw_peer.h"

namespace scant::net {
namespace {

using namespace std::chrono_literals;
const std::string kJob = "slow";

FrameHeader data(uint32_t index) {
  FrameHeader header;
  header.type = FrameType::data;
  header.operation = index;
  return header;
}

uint32_t job_number() { return decode(frame_bytes(data(0), {}, kJob, 0)).value().job; }

// Both ends of a connection over TCP.
struct Pair {
  Pair() {
    auto listener = listen_tcp("127.0.0.1", 0);
    EXPECT_TRUE(listener.ok());
    writer.emplace(listener.value().port);
    while (!reader.open()) {
      reader = Fd(accept4(listener.value().fd.get(), nullptr, nullptr, SOCK_NONBLOCK));
    }
  }
  std::optional<RawPeer> writer;
  Fd reader;
};

bool readable(int fd, int patience_ms) {
  pollfd state{fd, POLLIN, 0};
  return ::poll(&state, 1, patience_ms) == 1;
}

// Writes in pieces; reads whenever the socket says that something is there. Returns how often.
size_t trickle(RawPeer& writer, Connection& connection, RecordingSink& sink, Bytes bytes,
               size_t piece) {
  size_t wakes = 0;
  const auto read_now = [&](int patience_ms) {
    if (!readable(connection.fd(), patience_ms)) return false;
    ++wakes;
    EXPECT_TRUE(connection.read(1, sink, SIZE_MAX).ok());
    return true;
  };
  while (!bytes.empty()) {
    writer.write(bytes.first(std::min(piece, bytes.size())));
    bytes = bytes.subspan(std::min(piece, bytes.size()));
    read_now(0);
  }
  while (sink.frames[1].empty() && read_now(20'000)) {
  }
  return wakes;
}

TEST(SlowPeer, APayloadInManyPiecesWakesSeldom) {
  Pair pair;
  const auto made = Connection::create(std::move(pair.reader), AF_INET, job_number(), false);
  ASSERT_TRUE(made.ok());
  Connection& connection = *made.value();
  RecordingSink sink(0);
  const auto payload = payload_of(1, 0, 7, 300'000);
  const auto bytes = frame_bytes(data(7), payload, kJob, 0);
  const size_t wakes = trickle(*pair.writer, connection, sink, bytes, 1000);  // 301 pieces
  EXPECT_EQ(sink.frames[1], std::set<uint32_t>{7});
  EXPECT_TRUE(sink.problems.empty());
  EXPECT_LE(wakes, 20U);
}

TEST(SlowPeer, WhateverTheSizesEveryFrameArrives) {
  Pair pair;
  const auto made = Connection::create(std::move(pair.reader), AF_INET, job_number(), false);
  ASSERT_TRUE(made.ok());
  Connection& connection = *made.value();
  base::Rng rng(5);
  uint64_t sequence = 0;
  for (const size_t size : {size_t{1}, size_t{8191}, size_t{8192}, size_t{8193}, size_t{131'071},
                            size_t{131'072}, size_t{131'073}, size_t{262'144}}) {
    for (int repeat = 0; repeat < 3; ++repeat) {
      RecordingSink sink(0);
      const auto index = static_cast<uint32_t>(sequence);
      const auto bytes = frame_bytes(data(index), payload_of(1, 0, index, size), kJob, sequence);
      ++sequence;
      trickle(*pair.writer, connection, sink, bytes, 1 + rng.below(size + 100));
      ASSERT_EQ(sink.frames[1], std::set<uint32_t>{index}) << size;
      // What follows is as small as can be: nothing may still wait for a long rest.
      RecordingSink after(0);
      const auto next = static_cast<uint32_t>(sequence);
      trickle(*pair.writer, connection, after,
              frame_bytes(data(next), payload_of(1, 0, next, 1), kJob, sequence), 4096);
      ++sequence;
      ASSERT_EQ(after.frames[1], std::set<uint32_t>{next}) << size;
    }
  }
}

TEST(SlowPeer, TheEndIsSeenInTheMiddleOfAPayload) {
  Pair pair;
  const auto made = Connection::create(std::move(pair.reader), AF_INET, job_number(), false);
  ASSERT_TRUE(made.ok());
  Connection& connection = *made.value();
  RecordingSink sink(0);
  const auto bytes = frame_bytes(data(7), payload_of(1, 0, 7, 100'000), kJob, 0);
  pair.writer->write(Bytes(bytes).first(50'000));
  ASSERT_TRUE(readable(connection.fd(), 20'000));
  ASSERT_TRUE(connection.read(1, sink, SIZE_MAX).ok());
  pair.writer->write(Bytes(bytes).subspan(50'000, 1000));
  pair.writer->close();
  bool ended = false;
  while (!ended && readable(connection.fd(), 20'000)) {
    const auto progress = connection.read(1, sink, SIZE_MAX);
    ASSERT_TRUE(progress.ok());
    ended = progress.value().ended;
  }
  EXPECT_TRUE(ended);
  EXPECT_TRUE(sink.frames[1].empty());
}

// Rank 0 of two, in a time that the test moves; rank 1 is a plain socket.
TEST(SlowPeer, IsNotTakenForSilent) {
  Pair pair;
  base::ManualClock clock;
  clock.set(Time{1h});
  CommunicatorOptions options;
  options.rank = 0;
  options.size = 2;
  options.peer_timeout = 10s;
  options.connect_timeout = 10s;
  Established established;
  established.job = job_number();
  established.peers.resize(2);
  established.peers[1].lanes.push_back({std::move(pair.reader), AF_INET});
  const auto made = TcpTransport::over(options, std::move(established), clock);
  ASSERT_TRUE(made.ok());
  TcpTransport& transport = *made.value();
  RecordingSink sink(0);
  const auto bytes = frame_bytes(data(7), payload_of(1, 0, 7, 100'000), kJob, 0);
  pair.writer->write(Bytes(bytes).first(10'000));
  for (size_t sent = 10'000; sent < 90'000; sent += 1000) {  // 80 seconds, eight times the limit
    transport.poll(clock.now(), sink);
    ASSERT_TRUE(sink.down.empty()) << sink.down.begin()->second.to_string() << " at " << sent;
    clock.advance(1s);
    pair.writer->write(Bytes(bytes).subspan(sent, 1000));
  }
  pair.writer->write(Bytes(bytes).subspan(90'000));
  const auto limit = std::chrono::steady_clock::now() + 60s;
  while (sink.frames[1].empty() && std::chrono::steady_clock::now() < limit) {
    transport.poll(clock.now(), sink);
  }
  EXPECT_EQ(sink.frames[1], std::set<uint32_t>{7});
  // Nothing more comes: now it is silent.
  for (int second = 0; second < 15; ++second) {
    clock.advance(1s);
    transport.poll(clock.now(), sink);
  }
  EXPECT_TRUE(sink.down.contains(1));
}

}  // namespace
}  // namespace scant::net
