// Encoding and decoding of datagrams.
#include "net/datagram.h"

#include <string>

#include "base/bytes.h"
#include "base/crc.h"
#include "base/fault.h"
#include "net/frame.h"

namespace scant::net {
namespace {

Error corrupt(const std::string& what) { return base::corrupt("datagram: " + what); }

size_t body_bytes(const Datagram& datagram) {
  switch (datagram.kind) {
    case DatagramKind::data:
      return kDatagramDataBytes + datagram.piece.size();
    case DatagramKind::acknowledgement:
      return 8 + 8 * kAckWords;
    case DatagramKind::heartbeat:
    case DatagramKind::reset:
      return 0;
  }
  return 0;
}

Result<void> decode_data(base::ByteReader& r, size_t length, Datagram& datagram) {
  if (length <= kDatagramDataBytes) return corrupt("data without a piece");
  datagram.number = r.get<uint64_t>();
  datagram.frame = r.get<uint64_t>();
  datagram.offset = r.get<uint32_t>();
  datagram.total = r.get<uint32_t>();
  datagram.piece = r.get_bytes(length - kDatagramDataBytes);
  if (datagram.total < kFrameHeaderBytes ||
      datagram.total > kFrameHeaderBytes + kFramePayloadBytesMax) {
    return corrupt("frame of " + std::to_string(datagram.total) + " bytes");
  }
  if (datagram.offset > datagram.total ||
      datagram.piece.size() > datagram.total - datagram.offset) {
    return corrupt("piece outside of its frame");
  }
  // The frame's header is never split, so a piece is header and payload, or payload alone.
  if (datagram.offset < kFrameHeaderBytes &&
      (datagram.offset != 0 || datagram.piece.size() < kFrameHeaderBytes)) {
    return corrupt("split frame header");
  }
  return {};
}

}  // namespace

std::vector<std::byte> encode(const Datagram& datagram) {
  const size_t body = body_bytes(datagram);
  std::vector<std::byte> out(kDatagramHeadBytes + body + kDatagramCrcBytes);
  SCANT_CHECK(out.size() <= kDatagramBytesMax);
  base::ByteWriter w(out);
  w.put(kDatagramMagic);
  w.put(kDatagramVersion);
  w.put(static_cast<uint8_t>(datagram.kind));
  w.put(static_cast<uint16_t>(datagram.source));
  w.put(static_cast<uint16_t>(datagram.destination));
  w.put(static_cast<uint16_t>(body));
  w.put(datagram.job);
  if (datagram.kind == DatagramKind::data) {
    w.put(datagram.number);
    w.put(datagram.frame);
    w.put(datagram.offset);
    w.put(datagram.total);
    w.put_bytes(datagram.piece);
  } else if (datagram.kind == DatagramKind::acknowledgement) {
    w.put(datagram.ack.next);
    for (const uint64_t word : datagram.ack.beyond) w.put(word);
  }
  w.put(base::crc32c(Bytes(out).first(w.used())));
  return out;
}

Result<Datagram> decode_datagram(Bytes bytes) {
  if (bytes.size() < kDatagramHeadBytes + kDatagramCrcBytes || bytes.size() > kDatagramBytesMax) {
    return corrupt("has " + std::to_string(bytes.size()) + " bytes");
  }
  base::ByteReader r(bytes);
  if (r.get<uint32_t>() != kDatagramMagic) return corrupt("wrong magic");
  const auto version = r.get<uint8_t>();
  if (version != kDatagramVersion)
    return corrupt("version " + std::to_string(version) + " is not understood");
  const size_t covered = bytes.size() - kDatagramCrcBytes;
  base::ByteReader checksum(bytes.subspan(covered));
  if (checksum.get<uint32_t>() != base::crc32c(bytes.first(covered)))
    return corrupt("wrong checksum");
  Datagram datagram;
  datagram.kind = static_cast<DatagramKind>(r.get<uint8_t>());
  datagram.source = r.get<uint16_t>();
  datagram.destination = r.get<uint16_t>();
  const size_t length = r.get<uint16_t>();
  datagram.job = r.get<uint32_t>();
  if (length != covered - kDatagramHeadBytes) return corrupt("wrong length");
  if (datagram.source == datagram.destination) return corrupt("from a rank to itself");
  if (datagram.kind == DatagramKind::data) {
    const auto data = decode_data(r, length, datagram);
    if (!data) return data.error();
    return datagram;
  }
  if (datagram.kind == DatagramKind::acknowledgement) {
    datagram.ack.next = r.get<uint64_t>();
    for (uint64_t& word : datagram.ack.beyond) word = r.get<uint64_t>();
  } else if (datagram.kind != DatagramKind::heartbeat && datagram.kind != DatagramKind::reset) {
    return corrupt("unknown kind");
  }
  if (length != body_bytes(datagram)) return corrupt("wrong length for its kind");
  return datagram;
}

}  // namespace scant::net
