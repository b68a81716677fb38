// Registration of the room's counters, once each.
#include "net/net_counters.h"

#include <array>
#include <string>

namespace scant::net {
namespace {

constexpr std::array<const char*, kPathKindCount> kKindNames = {"tcp", "unix", "shared_memory",
                                                                "simulated"};
constexpr std::array<const char*, kContentCount> kContentNames = {"frames", "keep_alive",
                                                                  "handshake", "repair"};

struct Table {
  Table() {
    for (size_t k = 0; k < kPathKindCount; ++k) {
      const std::string kind = std::string("{kind=\"") + kKindNames[k] + "\"";
      frames[0][k] = &base::counter("scant_net_sent_frames_total",
                                    "Frames handed to send(), without heartbeats", kind + "}");
      frames[1][k] =
          &base::counter("scant_net_received_frames_total", "Whole frames delivered", kind + "}");
      for (size_t c = 0; c < kContentCount; ++c) {
        const std::string labels = kind + ",content=\"" + kContentNames[c] + "\"}";
        bytes[0][k][c] =
            &base::counter("scant_net_sent_bytes_total", "Bytes written to the path", labels);
        bytes[1][k][c] =
            &base::counter("scant_net_received_bytes_total", "Bytes read from the path", labels);
      }
    }
  }
  std::array<std::array<std::array<base::Counter*, kContentCount>, kPathKindCount>, 2> bytes{};
  std::array<std::array<base::Counter*, kPathKindCount>, 2> frames{};
};

const Table& table() {
  static const Table instance;
  return instance;
}

}  // namespace

base::Counter& bytes_counter(Direction direction, PathKind kind, Content content) {
  return *table().bytes[static_cast<size_t>(direction)][static_cast<size_t>(kind)]
                       [static_cast<size_t>(content)];
}

base::Counter& frames_counter(Direction direction, PathKind kind) {
  return *table().frames[static_cast<size_t>(direction)][static_cast<size_t>(kind)];
}

base::Counter& corrupt_counter() {
  static base::Counter& c =
      base::counter("scant_net_corrupt_frames_total", "Frames and datagrams that failed a check");
  return c;
}

base::Counter& heartbeats_counter() {
  static base::Counter& c = base::counter("scant_net_heartbeats_total", "Heartbeats sent");
  return c;
}

base::Counter& lost_counter() {
  static base::Counter& c = base::counter("scant_net_peers_lost_total", "Peers reported lost");
  return c;
}

base::Counter& retransmits_counter() {
  static base::Counter& c = base::counter("scant_net_retransmits_total", "Packets sent again");
  return c;
}

base::Counter& duplicates_counter() {
  static base::Counter& c =
      base::counter("scant_net_duplicates_total", "Packets dropped because they had arrived");
  return c;
}

base::Counter& refused_counter(std::string_view reason) {
  return base::counter("scant_net_refused_total", "Connections refused while authenticating",
                       "{reason=\"" + std::string(reason) + "\"}");
}

}  // namespace scant::net
