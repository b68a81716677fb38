// Counters of the room. Bytes are counted where they cross the socket (or enter the simulated
// link), by kind of path and by content; the sum over the contents is what the wire carried.
#pragma once

#include <string_view>

#include "base/counters.h"

namespace scant::net {

enum class PathKind : uint8_t { tcp, unix_socket, shared_memory, simulated };
inline constexpr int kPathKindCount = 4;

enum class Content : uint8_t {
  frames,      // headers and payloads of sync/
  keep_alive,  // heartbeats and goodbyes
  handshake,
  repair,  // acknowledgements, resets and retransmissions
};
inline constexpr int kContentCount = 4;

enum class Direction : uint8_t { sent, received };

[[nodiscard]] base::Counter& bytes_counter(Direction direction, PathKind kind, Content content);
[[nodiscard]] base::Counter& frames_counter(Direction direction, PathKind kind);
[[nodiscard]] base::Counter& corrupt_counter();      // frames and datagrams that failed a check
[[nodiscard]] base::Counter& heartbeats_counter();   // heartbeats sent
[[nodiscard]] base::Counter& lost_counter();         // peers reported lost
[[nodiscard]] base::Counter& retransmits_counter();  // packets sent again
[[nodiscard]] base::Counter& duplicates_counter();   // packets that had arrived before
// Connections refused before they were anybody's; `reason` is one of a few constants.
[[nodiscard]] base::Counter& refused_counter(std::string_view reason);

}  // namespace scant::net
