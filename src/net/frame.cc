// Encoding and decoding of frame headers; docs/wire.md has the table of offsets.
#include "net/frame.h"

#include <string>

#include "base/bytes.h"
#include "base/crc.h"
#include "base/fault.h"

namespace scant::net {
namespace {

constexpr size_t kChecksumOffset = kFrameHeaderBytes - 4;

bool known(uint8_t type) {
  switch (static_cast<FrameType>(type)) {
    case FrameType::heartbeat:
    case FrameType::goodbye:
    case FrameType::data:
    case FrameType::ready:
    case FrameType::request:
    case FrameType::credit:
    case FrameType::cancel:
    case FrameType::propose:
      return true;
  }
  return false;
}

Error corrupt(const std::string& what) { return base::corrupt("frame header: " + what); }

}  // namespace

EncodedHeader encode(const FrameHeader& header) {
  EncodedHeader out{};
  base::ByteWriter w(out);
  w.put(kFrameMagic);
  w.put(kWireVersion);
  w.put(static_cast<uint8_t>(header.type));
  w.put(header.flags);
  w.put(header.job);
  w.put(header.epoch);
  w.put(header.sequence);
  w.put(header.length);
  w.put(header.payload_crc);
  w.put(header.group);
  w.put(header.operation);
  w.put(header.slot);
  w.put(header.tag);
  w.put(header.call.kind);
  w.put(header.call.dtype);
  w.put(header.call.reduce);
  w.put(header.call.algorithm);
  w.put(header.call.root);
  w.put(header.call.group_size);
  w.put(header.call.bytes);
  w.put(header.credit);
  SCANT_CHECK(w.used() == kChecksumOffset);
  w.put(base::crc32c(Bytes(out).first(kChecksumOffset)));
  return out;
}

Result<FrameHeader> decode(Bytes bytes) {
  if (bytes.size() != kFrameHeaderBytes)
    return corrupt("has " + std::to_string(bytes.size()) + " bytes");
  base::ByteReader r(bytes);
  if (r.get<uint32_t>() != kFrameMagic) return corrupt("wrong magic");
  const auto version = r.get<uint8_t>();
  if (version != kWireVersion)
    return corrupt("version " + std::to_string(version) + " is not understood");
  base::ByteReader checksum(bytes.subspan(kChecksumOffset));
  if (checksum.get<uint32_t>() != base::crc32c(bytes.first(kChecksumOffset)))
    return corrupt("wrong checksum");
  const auto type = r.get<uint8_t>();
  if (!known(type)) return corrupt("unknown type " + std::to_string(type));
  FrameHeader header;
  header.type = static_cast<FrameType>(type);
  header.flags = r.get<uint16_t>();
  header.job = r.get<uint32_t>();
  header.epoch = r.get<uint32_t>();
  header.sequence = r.get<uint64_t>();
  header.length = r.get<uint32_t>();
  header.payload_crc = r.get<uint32_t>();
  header.group = r.get<uint32_t>();
  header.operation = r.get<uint32_t>();
  header.slot = r.get<uint32_t>();
  header.tag = r.get<uint32_t>();
  header.call.kind = r.get<uint8_t>();
  header.call.dtype = r.get<uint8_t>();
  header.call.reduce = r.get<uint8_t>();
  header.call.algorithm = r.get<uint8_t>();
  header.call.root = r.get<uint16_t>();
  header.call.group_size = r.get<uint16_t>();
  header.call.bytes = r.get<uint64_t>();
  header.credit = r.get<uint32_t>();
  if (header.length > kFramePayloadBytesMax) {
    return corrupt("length " + std::to_string(header.length) + " is above the limit");
  }
  return header;
}

}  // namespace scant::net
