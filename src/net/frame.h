// The frame: what travels between two authenticated peers. Grammar, example and downsides:
// docs/wire.md. Encoding is explicit little-endian, never a memcpy of a struct.
#pragma once

#include <array>
#include <cstdint>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::net {

inline constexpr uint32_t kFrameMagic = 0x544E4353;  // "SCNT" as bytes
inline constexpr uint8_t kWireVersion = 1;
inline constexpr size_t kFrameHeaderBytes = 72;
inline constexpr size_t kFramePayloadBytesMax = size_t{1} << 20;

enum class FrameType : uint8_t {
  heartbeat = 1,  // nothing but "alive"; payload: none
  goodbye = 2,    // an orderly leave: the end of this stream is no loss
  // 16 and up belong to sync/ and are opaque to transports.
  data = 16,     // one step of an operation
  ready = 17,    // "I posted this operation: send without credit"
  request = 18,  // "I have data for this operation but no credit"
  credit = 19,   // returns eager credit when no other frame carries it
  cancel = 20,   // an operation failed here; payload: code, culprit, text
  propose = 21,  // membership of the next epoch; payload: bitmap of ranks
};

// What a rank believes it called; both sides of a mismatch can be named from it.
struct CallDescriptor {
  uint8_t kind = 0;       // collective::OpKind
  uint8_t dtype = 0;      // scant::DType, moved types included
  uint8_t reduce = 0;     // scant::ReduceOp, 0 where none
  uint8_t algorithm = 0;  // collective::Algorithm
  uint16_t root = 0;      // group rank, 0 where none
  uint16_t group_size = 0;
  uint64_t bytes = 0;  // of the call, or of this pair's part where parts may differ
  friend bool operator==(const CallDescriptor&, const CallDescriptor&) = default;
};

struct FrameHeader {
  FrameType type = FrameType::heartbeat;
  uint16_t flags = 0;
  uint32_t job = 0;  // hash of the job's name; filled by the transport
  uint32_t epoch = 0;
  uint64_t sequence = 0;     // per connection, from 0, no gaps; filled by the transport
  uint32_t length = 0;       // payload bytes, at most kFramePayloadBytesMax
  uint32_t payload_crc = 0;  // crc32c; filled by the transport
  uint32_t group = 0;
  uint32_t operation = 0;  // sequence number within (group) or (group, peer, tag)
  uint32_t slot = 0;       // ordinal of this transfer within the operation and the pair
  uint32_t tag = 0;        // point-to-point tag
  CallDescriptor call;
  uint32_t credit = 0;  // eager bytes consumed from the receiver of this frame, modulo 2^32
  // header crc32c stands in the last four bytes of the encoding
};

using EncodedHeader = std::array<std::byte, kFrameHeaderBytes>;
[[nodiscard]] EncodedHeader encode(const FrameHeader& header);
// Checks size, magic, version, header checksum, length bound and known type; trusts nothing else.
[[nodiscard]] Result<FrameHeader> decode(Bytes header);

}  // namespace scant::net
