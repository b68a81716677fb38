// The datagram: what a transport without streams sends. Data datagrams carry one piece of one
// frame; acknowledgements, heartbeats and resets carry no frame. Grammar: docs/wire.md.
#pragma once

#include <array>
#include <vector>

#include "net/reliable_link.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::net {

inline constexpr uint32_t kDatagramMagic = 0x47444353;  // "SCDG" as bytes
inline constexpr uint8_t kDatagramVersion = 1;
inline constexpr size_t kDatagramHeadBytes = 16;
inline constexpr size_t kDatagramDataBytes = 24;  // of a data datagram's body, before the piece
inline constexpr size_t kDatagramCrcBytes = 4;
inline constexpr size_t kDatagramOverheadBytes =
    kDatagramHeadBytes + kDatagramDataBytes + kDatagramCrcBytes;
inline constexpr size_t kDatagramBytesMax = 65000;  // below what UDP can carry

enum class DatagramKind : uint8_t {
  data = 1,
  acknowledgement = 2,
  heartbeat = 3,
  reset = 4,  // the sender does not, or no longer, take this peer for a member
};

struct Datagram {
  DatagramKind kind = DatagramKind::heartbeat;
  Rank source = kNoRank;
  Rank destination = kNoRank;
  uint32_t job = 0;
  // data
  uint64_t number = 0;  // of the packet, in the reliable link
  uint64_t frame = 0;   // which frame of the pair the piece belongs to
  uint32_t offset = 0;  // of the piece within the frame: header first, then payload
  uint32_t total = 0;   // bytes of the frame, header and payload
  Bytes piece;          // a view into the encoded bytes
  // acknowledgement
  LinkAck ack;
};

[[nodiscard]] std::vector<std::byte> encode(const Datagram& datagram);
// Checks sizes, magic, version, kind, checksum, ranks and the bounds of the piece.
[[nodiscard]] Result<Datagram> decode_datagram(Bytes bytes);

}  // namespace scant::net
