// Sentences about peers.
#include "net/peer_text.h"

#include <array>
#include <cstdio>

namespace scant::net {
namespace {

std::string who(const PeerInfo& peer) {
  return "rank " + std::to_string(peer.rank) + " (host " + peer.host + ", pid " +
         std::to_string(peer.pid) + ", " + peer.address + ")";
}

}  // namespace

Error peer_lost(const PeerInfo& peer, const Error& cause, Duration silent_for) {
  std::array<char, 32> seconds{};
  std::snprintf(seconds.data(), seconds.size(), "%.1f s",
                std::chrono::duration<double>(silent_for).count());
  const auto code = cause.code == ErrorCode::corrupt ? ErrorCode::corrupt : ErrorCode::peer_lost;
  return {code, cause.sys_errno, peer.rank,
          who(peer) + " is lost: " + cause.message + "; last heard " + seconds.data() + " ago"};
}

Error peer_left(const PeerInfo& peer) {
  return {ErrorCode::closed, 0, peer.rank, who(peer) + " has left the job"};
}

}  // namespace scant::net
