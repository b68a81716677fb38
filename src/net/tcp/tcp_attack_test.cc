// What strangers, liars and damaged bytes can do to ranks over TCP: nothing, except that a peer
// that sends corrupt frames is lost.
#include <array>
#include <atomic>
#include <gtest/gtest.h>
#include <optional>
#include <poll.h>
#include <sys/socket.h>
#include <thread>

#include "base/bytes.h"
#include "base/crc.h"
#include "base/rng.h"
#include "net/net_counters.h"
#include "net/testing/conformance_world.h"
#include "net/testing/raw_peer.h"

namespace scant::net {
namespace {

using namespace std::chrono_literals;
const std::string kJob = "attacked";

CommunicatorOptions options_for(Rank rank, int size) {
  CommunicatorOptions options;
  options.rank = rank;
  options.size = size;
  options.job = kJob;
  options.address = "127.0.0.1";
  options.same_host_sockets = false;
  options.connect_timeout = 60s;
  return options;
}

// Rank 0's view of the rendezvous: everybody has published already, so that it accepts connections
// at once. It dials nobody, so the addresses that it reads are never used.
class Foretold final : public Store {
 public:
  Foretold(Store& store, int size) : store_(store) {
    AddressRecord record;
    record.world_size = static_cast<uint32_t>(size);
    record.host = "foretold";
    record.port = 1;
    record.addresses = {"127.0.0.1"};
    record_ = encode(record);
  }
  Result<void> set(std::string_view key, std::string_view value) override {
    return store_.set(key, value);
  }
  Result<bool> set_if_absent(std::string_view key, std::string_view value) override {
    return store_.set_if_absent(key, value);
  }
  Result<std::string> get(std::string_view key, Duration timeout) override {
    if (key.find("/rank/") == std::string_view::npos) return store_.get(key, timeout);
    const auto real = store_.get(key, Duration::zero());
    return real.ok() ? real : Result<std::string>(record_);
  }

 private:
  Store& store_;
  std::string record_;
};

// Ranks that start in threads of their own, against one store.
class Ranks {
 public:
  explicit Ranks(int size)
      : foretold_(store, size), transports_(static_cast<size_t>(size)), size_(size) {}
  ~Ranks() { join(); }
  void start(Rank rank) {
    threads_.emplace_back([this, rank] {
      Store& seen = rank == 0 ? static_cast<Store&>(foretold_) : store;
      auto made = TcpTransport::create(seen, options_for(rank, size_));
      EXPECT_TRUE(made.ok()) << made.error().to_string();
      if (made) transports_[static_cast<size_t>(rank)] = std::move(made).value();
    });
  }
  void join() {
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }
  Transport& operator[](Rank rank) { return *transports_[static_cast<size_t>(rank)]; }
  [[nodiscard]] bool up(Rank rank) const {
    return transports_[static_cast<size_t>(rank)] != nullptr;
  }

  MemoryStore store;

 private:
  Foretold foretold_;
  std::vector<std::unique_ptr<Transport>> transports_;
  std::vector<std::thread> threads_;
  int size_;
};

// Both ends exchange a frame; polls until it is there.
void expect_undisturbed(Transport& a, RecordingSink& at_a, Transport& b, RecordingSink& at_b,
                        uint32_t index) {
  const auto there = payload_of(a.rank(), b.rank(), index, 70'000);
  const auto back = payload_of(b.rank(), a.rank(), index, 70'000);
  FrameHeader header;
  header.type = FrameType::data;
  header.operation = index;
  a.send(b.rank(), header, there, 0);
  b.send(a.rank(), header, back, 0);
  const auto limit = std::chrono::steady_clock::now() + 60s;
  while (!at_a.frames[b.rank()].contains(index) || !at_b.frames[a.rank()].contains(index)) {
    ASSERT_LT(std::chrono::steady_clock::now(), limit);
    a.poll(a.now(), at_a);
    b.poll(b.now() + 1ms, at_b);
  }
  EXPECT_TRUE(at_a.problems.empty() && at_b.problems.empty());
  EXPECT_FALSE(at_a.down.contains(b.rank()));
  EXPECT_FALSE(at_b.down.contains(a.rank()));
}

class Strangers : public testing::Test {
 protected:
  void SetUp() override {
    ranks_.start(0);
    port_ = record_of(ranks_.store, kJob, 0).port;
    secret_ = secret_of(ranks_.store, kJob);
  }
  // Whatever happened before: the real rank 1 joins and the two work.
  void TearDown() override {
    ranks_.start(1);
    ranks_.join();
    ASSERT_TRUE(ranks_.up(0) && ranks_.up(1));
    RecordingSink at_0(0);
    RecordingSink at_1(1);
    expect_undisturbed(ranks_[0], at_0, ranks_[1], at_1, 1);
  }
  [[nodiscard]] Handshake as(const Identity& identity) const {
    return Handshake::connector(secret_, hash_job(kJob), identity);
  }
  static uint64_t refused(const char* reason) { return refused_counter(reason).value(); }

  Ranks ranks_{2};
  std::vector<RawPeer> crowd_;  // stays open through TearDown: the real rank passes it
  uint16_t port_ = 0;
  Secret secret_{};
};

TEST_F(Strangers, GarbageIsClosedWithoutAnAnswer) {
  const uint64_t before = refused("not a hello");
  base::Rng rng(7);
  std::vector<std::byte> garbage(4096);
  for (auto& byte : garbage) byte = static_cast<std::byte>(rng.below(256));
  RawPeer stranger(port_);
  stranger.write(garbage);
  EXPECT_TRUE(stranger.closed_silently());
  EXPECT_EQ(refused("not a hello"), before + 1);
}

TEST_F(Strangers, HalfAHelloHoldsNobodyUp) {
  for (int i = 0; i < 20; ++i) {
    crowd_.emplace_back(port_);
    const auto hello = as({1, 0, 2, 0, 1}).start();
    crowd_.back().write(Bytes(hello).first(50));
  }
}

TEST_F(Strangers, MoreConnectionsThanTheBoundPushOutTheOldest) {
  const uint64_t before = refused("too many unproven connections");
  for (int i = 0; i < 300; ++i) crowd_.emplace_back(port_);
  EXPECT_TRUE(crowd_.front().closed_silently());
  EXPECT_GE(refused("too many unproven connections"), before + 1);
}

TEST_F(Strangers, AnotherJobIsRefused) {
  RawPeer stranger(port_);
  const uint64_t before = refused("hello of another job");
  EXPECT_FALSE(
      stranger.shake(Handshake::connector(secret_, hash_job("other"), {1, 0, 2, 0, 1})).ok());
  EXPECT_EQ(refused("hello of another job"), before + 1);
}

TEST_F(Strangers, AWrongSecretIsRefusedAtTheHello) {
  RawPeer stranger(port_);
  const uint64_t before = refused("hello without the job's secret");
  auto handshake = Handshake::connector(random_secret(), hash_job(kJob), {1, 0, 2, 0, 1});
  stranger.write(handshake.start());
  EXPECT_TRUE(stranger.closed_silently());
  EXPECT_EQ(refused("hello without the job's secret"), before + 1);
}

TEST_F(Strangers, AReplayedHelloAndProofAreRefused) {
  RawPeer genuine(port_);
  // Not the end of the handshake: the proof is recorded and never sent, as if it had been
  // overheard and cut off.
  auto handshake = as({1, 0, 2, 0, 1});
  const auto hello = handshake.start();
  genuine.write(hello);
  std::vector<std::byte> proof;
  ASSERT_TRUE(handshake.feed(genuine.read(kChallengeBytes), proof).ok());
  const uint64_t before = refused("proof that does not answer the challenge");
  RawPeer replay(port_);
  replay.write(hello);
  EXPECT_EQ(replay.read(kChallengeBytes).size(), kChallengeBytes);
  replay.write(proof);
  EXPECT_TRUE(replay.closed_silently());
  EXPECT_EQ(refused("proof that does not answer the challenge"), before + 1);
}

TEST_F(Strangers, AnAuthenticatedRankThatDisagreesIsToldWhy) {
  struct Row {
    Identity identity;
    ErrorCode code;
    const char* words;
  };
  const std::array<Row, 5> rows = {{
      {{1, 0, 3, 0, 1}, ErrorCode::mismatch, "the world sizes differ"},
      {{1, 7, 2, 0, 1}, ErrorCode::refused, "another rank was expected"},
      {{0, 0, 2, 0, 1}, ErrorCode::refused, "the rank is out of range"},
      {{2, 0, 2, 0, 1}, ErrorCode::refused, "the rank is out of range"},
      {{1, 0, 2, 0, 2}, ErrorCode::refused, "the connection number"},
  }};
  for (const Row& row : rows) {
    RawPeer peer(port_);
    const auto shaken = peer.shake(as(row.identity));
    ASSERT_FALSE(shaken.ok()) << row.words;
    EXPECT_EQ(shaken.error().code, row.code) << shaken.error().to_string();
    EXPECT_NE(shaken.error().message.find(row.words), std::string::npos)
        << shaken.error().to_string();
  }
}

// Three ranks, so that rank 0 still accepts when the first impostor is in.
TEST(Duplicates, ASecondConnectionOfOneRankIsRefusedAndADeadOneReplaced) {
  Ranks ranks(3);
  ranks.start(0);
  const uint16_t port = record_of(ranks.store, kJob, 0).port;
  const auto as_rank_1 = [&] {
    return Handshake::connector(secret_of(ranks.store, kJob), hash_job(kJob), {1, 0, 3, 0, 1});
  };
  RawPeer first(port);
  ASSERT_TRUE(first.shake(as_rank_1()).ok());
  RawPeer second(port);
  const auto shaken = second.shake(as_rank_1());
  ASSERT_FALSE(shaken.ok());
  EXPECT_NE(shaken.error().message.find("connected already"), std::string::npos);
  first.close();
  // Rank 2 may well be there before rank 1: the dead connection must not count as rank 1's.
  ranks.start(1);
  ranks.start(2);
  ranks.join();
  for (Rank r = 0; r < 3; ++r) ASSERT_TRUE(ranks.up(r));
  RecordingSink at_0(0);
  RecordingSink at_1(1);
  expect_undisturbed(ranks[0], at_0, ranks[1], at_1, 1);
}

// Rank 1 of 3 is a plain socket that authenticates and then misbehaves towards rank 0.
class BadFrames : public testing::Test {
 protected:
  void SetUp() override {
    auto listener = listen_tcp("127.0.0.1", 0);
    ASSERT_TRUE(listener.ok());
    AddressRecord record;
    record.world_size = 3;
    record.host = "liar";
    record.pid = 1;
    record.port = listener.value().port;
    record.addresses = {"127.0.0.1"};
    record.network = network_identity();
    ASSERT_TRUE(ranks_.store.set("scant/" + kJob + "/rank/1", encode(record)).ok());
    ranks_.start(0);
    ranks_.start(2);
    const Secret secret = secret_of(ranks_.store, kJob);
    liar_.emplace(record_of(ranks_.store, kJob, 0).port);
    ASSERT_TRUE(liar_->shake(Handshake::connector(secret, hash_job(kJob), {1, 0, 3, 0, 1})).ok());
    Fd accepted;
    while (!accepted.open()) accepted = Fd(accept(listener.value().fd.get(), nullptr, nullptr));
    to_2_.emplace(std::move(accepted));
    ASSERT_TRUE(to_2_->shake(Handshake::acceptor(secret, hash_job(kJob), 1, 3)).ok());
    ranks_.join();
    ASSERT_TRUE(ranks_.up(0) && ranks_.up(2));
  }

  // Rank 0 gets `good` first, then the loss, and nothing in between; the pair 0, 2 works before
  // and after.
  void expect_lost(Bytes evil, ErrorCode code, const std::string& words, bool ends = false) {
    RecordingSink at_0(0);
    RecordingSink at_2(2);
    expect_undisturbed(ranks_[0], at_0, ranks_[2], at_2, 1);
    const auto content = payload_of(1, 0, 5, 3000);
    liar_->write(frame_bytes(data(5), content, kJob, 0));
    liar_->write(evil);
    // Not close(): with unread bytes of rank 0 that is a reset, which may overtake the frame.
    if (ends) {
      ASSERT_EQ(shutdown(liar_->fd(), SHUT_WR), 0);
    }
    const auto limit = std::chrono::steady_clock::now() + 60s;
    while (!at_0.down.contains(1)) {
      ASSERT_LT(std::chrono::steady_clock::now(), limit) << words;
      ranks_[0].poll(ranks_[0].now() + 1ms, at_0);
    }
    EXPECT_EQ(at_0.frames[1], std::set<uint32_t>{5});
    EXPECT_TRUE(at_0.problems.empty());
    const Error& error = at_0.down.at(1);
    EXPECT_EQ(error.code, code) << error.to_string();
    EXPECT_NE(error.message.find(words), std::string::npos) << error.to_string();
    EXPECT_NE(error.message.find("host liar"), std::string::npos) << error.to_string();
    expect_undisturbed(ranks_[0], at_0, ranks_[2], at_2, 2);
  }
  static FrameHeader data(uint32_t index) {
    FrameHeader header;
    header.type = FrameType::data;
    header.operation = index;
    return header;
  }
  // A second frame, changed, with a header checksum that holds.
  static std::vector<std::byte> resealed(size_t offset, std::byte value) {
    auto bytes = frame_bytes(data(6), {}, kJob, 1);
    bytes[offset] = value;
    base::ByteWriter(MutableBytes(bytes).subspan(kFrameHeaderBytes - 4, 4))
        .put(base::crc32c(Bytes(bytes).first(kFrameHeaderBytes - 4)));
    return bytes;
  }

  Ranks ranks_{3};
  std::optional<RawPeer> liar_;
  std::optional<RawPeer> to_2_;
};

TEST_F(BadFrames, AFlippedBitInTheHeader) {
  auto bytes = frame_bytes(data(6), payload_of(1, 0, 6, 100), kJob, 1);
  bytes[40] ^= std::byte{4};
  expect_lost(bytes, ErrorCode::corrupt, "wrong checksum");
}

TEST_F(BadFrames, AFlippedBitInThePayload) {
  auto bytes = frame_bytes(data(6), payload_of(1, 0, 6, 200'000), kJob, 1);
  bytes[150'000] ^= std::byte{64};
  expect_lost(bytes, ErrorCode::corrupt, "payload checksum");
}

TEST_F(BadFrames, ATruncatedFrame) {
  auto bytes = frame_bytes(data(6), payload_of(1, 0, 6, 5000), kJob, 1);
  bytes.resize(4000);
  expect_lost(bytes, ErrorCode::peer_lost, "closed without goodbye", true);
}

TEST_F(BadFrames, ATruncatedHeader) {
  auto bytes = frame_bytes(data(6), {}, kJob, 1);
  bytes.resize(71);
  expect_lost(bytes, ErrorCode::peer_lost, "closed without goodbye", true);
}

TEST_F(BadFrames, AHugeLength) {
  expect_lost(resealed(27, std::byte{0xFF}), ErrorCode::corrupt, "above the limit");
}
TEST_F(BadFrames, AnUnknownType) {
  expect_lost(resealed(5, std::byte{99}), ErrorCode::corrupt, "unknown type");
}
TEST_F(BadFrames, AnotherVersion) {
  expect_lost(resealed(4, std::byte{2}), ErrorCode::corrupt, "version 2");
}
TEST_F(BadFrames, AnotherJob) {
  expect_lost(resealed(8, std::byte{1}), ErrorCode::corrupt, "another job");
}

TEST_F(BadFrames, AFrameThatCameBefore) {
  expect_lost(frame_bytes(data(5), payload_of(1, 0, 5, 3000), kJob, 0), ErrorCode::corrupt,
              "frame 0 where 1 was due");
}

TEST_F(BadFrames, AHeartbeatWithAPayload) {
  FrameHeader heartbeat;
  expect_lost(frame_bytes(heartbeat, payload_of(1, 0, 6, 10), kJob, 1), ErrorCode::corrupt,
              "heartbeat or goodbye with a payload");
}

// Somebody else answers at the address of rank 0, say after a restart of the machine.
// Its owner may know by others that the peer is lost: then no poll judged its silence here.
TEST(Closing, DoesNotWaitForAPeerThatIsSilentLongerThanItsTimeout) {
  Ranks ranks(2);
  ranks.start(0);
  ranks.start(1);
  ranks.join();
  ASSERT_TRUE(ranks.up(0) && ranks.up(1));
  const auto limit = std::chrono::steady_clock::now() + 60s;
  ranks[0].close(ranks[0].now() + 120s);  // rank 1 is never polled: as if stopped
  EXPECT_LT(std::chrono::steady_clock::now(), limit);
}

TEST(Impostors, AnAcceptorWithoutTheSecretIsNotBelieved) {
  MemoryStore store;
  auto listener = listen_tcp("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok());
  AddressRecord record;
  record.world_size = 2;
  record.host = "impostor";
  record.port = listener.value().port;
  record.addresses = {"127.0.0.1"};
  record.network = network_identity();
  ASSERT_TRUE(store.set("scant/" + kJob + "/rank/0", encode(record)).ok());
  ASSERT_TRUE(store.set("scant/" + kJob + "/secret", std::string(kSecretBytes, 's')).ok());
  std::atomic<bool> done{false};  // pairs with the loop below
  std::thread impostor([&] {
    std::vector<RawPeer> open;
    while (!done.load(std::memory_order_acquire)) {
      pollfd state{listener.value().fd.get(), POLLIN, 0};
      if (::poll(&state, 1, 10) <= 0) continue;
      Fd fd(accept(listener.value().fd.get(), nullptr, nullptr));
      open.emplace_back(std::move(fd));
      const auto hello = open.back().read(kHelloBytes, 1000);
      std::vector<std::byte> challenge(kChallengeBytes, std::byte{1});
      base::ByteWriter(challenge).put(uint32_t{0x48434353});
      open.back().write(challenge);
    }
  });
  auto options = options_for(1, 2);
  options.connect_timeout = 400ms;
  const auto made = TcpTransport::create(store, options);
  done.store(true, std::memory_order_release);
  impostor.join();
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::timeout);
  EXPECT_EQ(made.error().peer, 0);
  EXPECT_NE(made.error().message.find("challenge without the job's secret"), std::string::npos)
      << made.error().to_string();
}

// A rendezvous of which one rank sees another secret than the others.
class Exchanged final : public Store {
 public:
  explicit Exchanged(Store& store) : store_(store) {}
  Result<void> set(std::string_view key, std::string_view value) override {
    return store_.set(key, value);
  }
  Result<bool> set_if_absent(std::string_view key, std::string_view value) override {
    return store_.set_if_absent(key, value);
  }
  Result<std::string> get(std::string_view key, Duration timeout) override {
    auto found = store_.get(key, timeout);
    if (found.ok() && key.ends_with("/secret")) return std::string(kSecretBytes, 's');
    return found;
  }

 private:
  Store& store_;
};

// Long before connect_timeout: the start ends by the refusal, and not by the clock.
TEST(WrongSecret, EndsTheStartOfBothRanksAndNamesTheSecret) {
  for (const Rank odd : {0, 1}) {
    MemoryStore store;
    Exchanged exchanged(store);
    std::array<std::optional<Error>, 2> errors;
    std::vector<std::thread> ranks;
    for (const Rank rank : {0, 1}) {
      ranks.emplace_back([&, rank] {
        Store& seen = rank == odd ? static_cast<Store&>(exchanged) : store;
        const auto made = TcpTransport::create(seen, options_for(rank, 2));
        if (!made.ok()) errors[static_cast<size_t>(rank)] = made.error();
      });
    }
    for (auto& rank : ranks) rank.join();
    for (const Rank rank : {0, 1}) {
      const auto& error = errors[static_cast<size_t>(rank)];
      ASSERT_TRUE(error.has_value()) << rank;
      EXPECT_EQ(error->code, ErrorCode::refused) << error->to_string();
      EXPECT_EQ(error->peer, 1 - rank);
      EXPECT_NE(error->message.find("hold different secrets of the job"), std::string::npos)
          << error->message;
    }
  }
}

TEST(WrongSecret, IsNamedWithItsAddressWhenTheStartTimesOut) {
  MemoryStore store;
  Foretold foretold(store, 2);
  std::thread other([&store] {
    RawPeer stranger(record_of(store, kJob, 0).port);
    auto handshake = Handshake::connector(random_secret(), hash_job(kJob), {1, 0, 2, 0, 1});
    stranger.write(handshake.start());
    EXPECT_TRUE(stranger.closed_silently());
  });
  auto options = options_for(0, 2);
  options.connect_timeout = 1s;
  const auto made = TcpTransport::create(foretold, options);
  other.join();
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::timeout);
  EXPECT_EQ(made.error().peer, 1);
  const std::string& message = made.error().message;
  EXPECT_NE(message.find("; 1 connection was refused, 127.0.0.1:"), std::string::npos) << message;
  EXPECT_NE(message.find(": hello without the job's secret"), std::string::npos) << message;
}

}  // namespace
}  // namespace scant::net
