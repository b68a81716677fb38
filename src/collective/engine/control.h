// Payloads of the engine's control frames (cancel, propose) and the sentences that name calls.
// Little-endian, checked before use; grammar in docs/wire.md. Flags of FrameHeader as the engine
// uses them.
#pragma once

#include <string>
#include <vector>

#include "collective/call.h"
#include "net/frame.h"
#include "scant/base/result.h"

namespace scant::collective {

inline constexpr uint16_t kFlagPointToPoint = 1;  // the key is (group, tag, pair, sequence)
inline constexpr uint16_t kFlagEager = 2;         // the frame was charged to the window
inline constexpr uint16_t kFlagToSender = 4;      // about the send of the frame's receiver
inline constexpr uint16_t kFlagLast = 8;          // exchange: the frame ends its part

inline constexpr size_t kCancelTextBytesMax = 1024;
inline constexpr size_t kStationsMax = 65535;
inline constexpr size_t kControlPayloadBytesMax = 8 + (kStationsMax + 7) / 8;

// error.peer is a station here.
[[nodiscard]] std::vector<std::byte> encode_cancel(const Error& error);
struct Cancel {
  Error error;
};
[[nodiscard]] Result<Cancel> decode_cancel(Bytes payload);

struct Proposal {
  uint32_t epoch = 0;
  std::vector<bool> live;  // by station
  friend bool operator==(const Proposal&, const Proposal&) = default;
};

[[nodiscard]] std::vector<std::byte> encode_proposal(const Proposal& proposal);
// `stations`: how many the job started with; a payload of another size is corrupt.
[[nodiscard]] Result<Proposal> decode_proposal(Bytes payload, size_t stations);

// "all_reduce of 4,096 bytes f32 sum", "broadcast of 16 bytes u8 from root 2". Values off the wire
// may be unknown.
[[nodiscard]] std::string describe(const net::CallDescriptor& call, bool with_algorithm);
[[nodiscard]] std::string with_commas(uint64_t value);

}  // namespace scant::collective
