// What every transport says of a peer that is gone, in the same words.
#pragma once

#include <string>

#include "net/transport.h"

namespace scant::net {

// "rank 2 (host b, pid 71, 10.0.0.2:4711) is lost: connection reset; last heard 0.3 s ago"
[[nodiscard]] Error peer_lost(const PeerInfo& peer, const Error& cause, Duration silent_for);
// "rank 2 (host b, pid 71, 10.0.0.2:4711) has left the job"
[[nodiscard]] Error peer_left(const PeerInfo& peer);

}  // namespace scant::net
