// Connects one rank to all others: to the lower ranks actively, from the higher ones by accepting,
// each connection through the handshake. Runs in the creating thread; nothing outlives it but
// authenticated sockets. Bounds: unauthenticated connections, their bytes, their time, all by
// constants in mesh.cc.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "net/address_record.h"
#include "net/handshake.h"
#include "net/socket.h"

namespace scant::net {

// Authenticated sockets and who is behind them.
struct Established {
  struct Lane {
    Fd fd;
    int family = 0;
  };
  struct Peer {
    AddressRecord record;
    std::string address;  // the one in use, for messages
    std::vector<Lane> lanes;
  };
  uint32_t job = 0;
  std::vector<Peer> peers;  // by rank; this rank's own has no lanes
};

struct MeshOptions {
  Rank rank = kNoRank;
  size_t lanes = 1;
  bool same_host_sockets = true;
  Secret secret{};
  JobHash job{};
  Time deadline{};
  // Whether a rank has published that it holds another secret; asks the rendezvous.
  std::function<bool(Rank)> holds_another_secret{};
};

class Mesh {
 public:
  // `peers[r].record` is what rank r published; build() adds the lanes.
  Mesh(const MeshOptions& options, std::vector<Fd> listeners, std::vector<Established::Peer> peers);
  Result<std::vector<Established::Peer>> build();

 private:
  // One socket on its way through the handshake.
  struct Candidate {
    Fd fd;
    int family = 0;
    std::optional<Handshake> handshake;
    bool connecting = false;  // the socket is not established yet
    bool outgoing = false;
    bool proven_once = false;  // its hello carried the secret's MAC
    Rank peer = kNoRank;
    uint8_t lane = 0;
    size_t attempts = 0;
    Time not_before{};
    std::string address;
    Time deadline{};
    std::array<std::byte, kHandshakeMessageBytesMax> in{};
    size_t in_bytes = 0;
    std::vector<std::byte> out;
    bool dead = false;
  };

  [[nodiscard]] size_t world() const { return peers_.size(); }
  [[nodiscard]] AddressRecord& record(Rank rank) {
    return peers_[static_cast<size_t>(rank)].record;
  }
  [[nodiscard]] bool near(Rank peer);
  [[nodiscard]] std::vector<std::string> ways_to(Rank peer);
  Result<void> plan();
  void attempt(Candidate& candidate);
  void retry(Candidate& candidate, const std::string& why);
  void wait_for_events();
  Result<void> accept_all(const Fd& listener);
  void make_room();
  Result<void> advance_all();
  Result<void> advance(Candidate& candidate);
  Result<void> feed(Candidate& candidate);
  void refuse(Candidate& candidate, const char* reason);
  [[nodiscard]] Result<void> check_secret(Rank rank);
  void decide(Candidate& candidate);
  [[nodiscard]] bool taken(const Identity& who);
  void drop_ended();
  void write_some(Candidate& candidate);
  void establish(Candidate& candidate);
  [[nodiscard]] Error not_connected(const std::string& verb) const;

  base::MonotonicClock clock_;
  MeshOptions options_;
  std::vector<Fd> listeners_;
  std::vector<Established::Peer> peers_;
  std::vector<Candidate> candidates_;
  std::vector<std::string> last_failure_;  // by rank, for the message when time is up
  std::vector<Time> secret_asked_;         // by rank, when it may be asked for again
  size_t refused_ = 0;                     // accepted connections, and the last one's address and
  std::string last_refused_;               // reason, for the same message
  size_t missing_lanes_ = 0;
};

inline constexpr char kGaveUp[] =
    "waited until the deadline of the start (connect_timeout; in torch the group's timeout) for";

// "rank 3 <verb> ranks 1, 2 of 4 to connect (why)"; without a detail they did not even start.
[[nodiscard]] Error missing_ranks(Rank self, size_t world_size, const std::vector<Rank>& ranks,
                                  const std::string& detail, const std::string& verb = kGaveUp);

}  // namespace scant::net
