// Test support: some ranks of one job on one kind of transport, driven from one thread, in a time
// that only the test moves. Frames carry their own expected content, so every receiver checks what
// it gets.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "net/simulated/simulated_transport.h"
#include "net/tcp/tcp_transport.h"

namespace scant::net {

// What a rank got. Checks integrity and uniqueness as it comes.
class RecordingSink final : public TransportSink {
 public:
  explicit RecordingSink(Rank self) : self_(self) {}

  MutableBytes on_header(Rank peer, const FrameHeader& header) override;
  void on_frame(Rank peer, const FrameHeader& header, MutableBytes payload) override;
  void on_sent(uint64_t token) override;
  void on_peer_down(Rank peer, const Error& error) override;

  std::function<bool(const FrameHeader&)> discards;  // empty: nothing is discarded
  std::function<void(Rank, const FrameHeader&)> also;
  std::map<Rank, std::set<uint32_t>> frames;  // indices by sender
  std::set<uint64_t> tokens;
  std::map<Rank, Error> down;
  uint64_t payload_bytes = 0;
  std::vector<std::string> problems;

 private:
  Rank self_;
  std::map<const std::byte*, std::vector<std::byte>> memory_;
};

// The content of frame `index` from `from` to `to`.
[[nodiscard]] std::vector<std::byte> payload_of(Rank from, Rank to, uint32_t index, size_t bytes);

struct WorldKind {
  const char* name;
  enum class Base { tcp4, tcp6, unix_socket, simulated } base = Base::tcp4;
  int lanes = 1;
  LinkModel link = {};
  bool heartbeat_traffic = false;
  bool sent_when_acknowledged = false;
};

inline void PrintTo(const WorldKind& kind, std::ostream* out) { *out << kind.name; }

class World {
 public:
  World(const WorldKind& kind, int size, uint64_t seed);
  ~World();

  [[nodiscard]] int size() const { return static_cast<int>(sinks_.size()); }
  [[nodiscard]] Transport& transport(Rank rank) { return *transports_[index(rank)]; }
  [[nodiscard]] RecordingSink& sink(Rank rank) { return *sinks_[index(rank)]; }
  [[nodiscard]] Duration peer_timeout() const { return peer_timeout_; }
  [[nodiscard]] bool simulated() const { return network_ != nullptr; }
  [[nodiscard]] SimulatedNetwork& network() { return *network_; }
  [[nodiscard]] const WorldKind& kind() const { return kind_; }

  // Queues frame `index` with its content; the payload lives until the world ends.
  void send(Rank from, Rank to, uint32_t index, size_t bytes, uint64_t token = 0);
  // Polls until the condition holds; false when it does not within a minute of the machine's time
  // (or, simulated, when nothing happens any more).
  [[nodiscard]] bool run_until(const std::function<bool()>& condition);
  // Lets the transports' time pass, polling on the way.
  void pass(Duration duration);
  // One poll of this rank alone.
  void poll_only(Rank rank);

  void kill(Rank rank);                    // no goodbye; the operating system closes its sockets
  void hold(Rank rank, bool held);         // like SIGSTOP
  void close(Rank rank, Duration within);  // others are polled meanwhile

  [[nodiscard]] std::string problems() const;

 private:
  static size_t index(Rank rank) { return static_cast<size_t>(rank); }
  void start_sockets(int size);
  bool round();
  void poll(Rank rank);

  WorldKind kind_;
  Duration peer_timeout_ = std::chrono::milliseconds(1500);
  base::ManualClock clock_;
  std::unique_ptr<SimulatedNetwork> network_;
  std::vector<std::unique_ptr<Transport>> owned_;
  std::vector<Transport*> transports_;
  std::vector<std::unique_ptr<RecordingSink>> sinks_;
  std::vector<bool> held_;
  std::vector<bool> gone_;
  std::vector<std::vector<std::byte>> payloads_;
};

// A store in memory, for ranks that are threads of one process.
class MemoryStore final : public Store {
 public:
  Result<void> set(std::string_view key, std::string_view value) override;
  Result<bool> set_if_absent(std::string_view key, std::string_view value) override;
  Result<std::string> get(std::string_view key, Duration timeout) override;

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_ = make_shared_state();
  static std::shared_ptr<Shared> make_shared_state();
};

}  // namespace scant::net
