// Frames. A header that decodes encodes to the same bytes. A Connection that gets a stream in
// arbitrary pieces delivers what a straightforward parser finds in the whole of it, and stops where
// that stops. Input: mode, piece length, read budget, stream.
#include <array>
#include <sys/socket.h>
#include <vector>

#include "base/bytes.h"
#include "base/crc.h"
#include "fuzz_input.h"
#include "net/tcp/connection.h"

using namespace scant;
using net::FrameHeader;
using net::kFrameHeaderBytes;

namespace {

constexpr uint32_t kJob = 0x61626364;
constexpr uint8_t kCrossesWire = 1;  // payloads carry checksums
constexpr uint8_t kDiscards = 2;     // the sink wants no payload
constexpr uint8_t kSealed = 4;       // magic, version, job, sequence and checksums are put right

struct Delivered {
  net::EncodedHeader header;
  std::vector<std::byte> payload;
  friend bool operator==(const Delivered&, const Delivered&) = default;
};

struct Parsed {
  std::vector<Delivered> frames;
  bool goodbye = false;
  bool corrupt = false;
};

void check_header(Bytes bytes) {
  const auto decoded = net::decode(bytes);
  if (!decoded) {
    SCANT_CHECK(decoded.error().code == ErrorCode::corrupt && !decoded.error().message.empty());
    return;
  }
  SCANT_CHECK(fuzz::equal(net::encode(decoded.value()), bytes));
  SCANT_CHECK(decoded.value().length <= net::kFramePayloadBytesMax);
}

uint32_t checksum(uint8_t mode, Bytes payload) {
  return (mode & kCrossesWire) == 0 || payload.empty() ? 0 : base::crc32c(payload);
}

// Makes valid frames of whatever the stream holds; a length beyond its end becomes a short one.
void seal(std::vector<std::byte>& stream, uint8_t mode) {
  size_t at = 0;
  for (uint64_t sequence = 0; stream.size() - at >= kFrameHeaderBytes; ++sequence) {
    const MutableBytes header = MutableBytes(stream).subspan(at, kFrameHeaderBytes);
    const auto put = [&](size_t offset, auto value) {
      base::ByteWriter(header.subspan(offset)).put(value);
    };
    const size_t left = stream.size() - at - kFrameHeaderBytes;
    uint32_t length = base::ByteReader(header.subspan(24)).get<uint32_t>();
    if (length > net::kFramePayloadBytesMax) length %= 512;
    const Bytes payload =
        Bytes(stream).subspan(at + kFrameHeaderBytes, std::min<size_t>(length, left));
    put(0, net::kFrameMagic);
    put(4, net::kWireVersion);
    put(8, kJob);
    put(16, sequence);
    put(24, length);
    put(28, checksum(mode, payload));
    put(kFrameHeaderBytes - 4, base::crc32c(Bytes(header).first(kFrameHeaderBytes - 4)));
    at += kFrameHeaderBytes + payload.size();
  }
}

Parsed parse_whole(Bytes stream, uint8_t mode) {
  Parsed parsed;
  for (uint64_t sequence = 0; stream.size() >= kFrameHeaderBytes; ++sequence) {
    const auto header = net::decode(stream.first(kFrameHeaderBytes));
    parsed.corrupt = !header.ok() || header.value().job != kJob ||
                     header.value().sequence != sequence ||
                     (header.value().type < net::FrameType::data && header.value().length > 0);
    if (parsed.corrupt) break;
    stream = stream.subspan(kFrameHeaderBytes);
    const size_t length = header.value().length;
    if (header.value().type < net::FrameType::data) {
      parsed.goodbye = parsed.goodbye || header.value().type == net::FrameType::goodbye;
      continue;
    }
    // Without a checksum the field names a block of shared memory, and there is none here.
    parsed.corrupt = length > 0 && (mode & kCrossesWire) == 0 && header.value().payload_crc != 0;
    if (parsed.corrupt || length > stream.size()) break;
    const Bytes payload = stream.first(length);
    stream = stream.subspan(length);
    if (length > 0 && (mode & kDiscards) != 0) continue;
    parsed.corrupt = length > 0 && checksum(mode, payload) != header.value().payload_crc;
    if (parsed.corrupt) break;
    parsed.frames.push_back({net::encode(header.value()), {payload.begin(), payload.end()}});
  }
  return parsed;
}

class Sink final : public net::TransportSink {
 public:
  explicit Sink(uint8_t mode) : mode_(mode) {}
  MutableBytes on_header(Rank, const FrameHeader& header) override {
    SCANT_CHECK(header.length > 0 && header.length <= net::kFramePayloadBytesMax);
    if ((mode_ & kDiscards) != 0) return {};
    memory_.assign(header.length, std::byte{0});
    return memory_;
  }
  void on_frame(Rank, const FrameHeader& header, MutableBytes payload) override {
    SCANT_CHECK(payload.size() == header.length);
    frames.push_back({net::encode(header), {payload.begin(), payload.end()}});
  }
  void on_sent(uint64_t) override {}
  void on_peer_down(Rank, const Error&) override {}
  std::vector<Delivered> frames;

 private:
  uint8_t mode_;
  std::vector<std::byte> memory_;
};

void check_stream(Bytes stream, uint8_t mode, size_t piece, size_t budget) {
  std::array<int, 2> ends{};
  SCANT_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends.data()) == 0);
  net::Fd writer(ends[0]);
  const Parsed expected = parse_whole(stream, mode);
  const auto made = net::Connection::create(
      net::Fd(ends[1]), (mode & kCrossesWire) != 0 ? AF_INET : AF_UNIX, kJob, false);
  net::Connection& connection = *made.value();
  Sink sink(mode);
  const auto read_all = [&] {
    for (;;) {
      auto progress = connection.read(1, sink, budget);
      if (!progress || progress.value().ended || progress.value().bytes == 0) return progress;
    }
  };
  bool failed = false;
  for (size_t at = 0; at < stream.size() && !failed; at += piece) {
    const Bytes part = stream.subspan(at, std::min(piece, stream.size() - at));
    SCANT_CHECK(::send(writer.get(), part.data(), part.size(), MSG_NOSIGNAL) ==
                static_cast<ssize_t>(part.size()));
    failed = !read_all().ok();
  }
  writer.close();
  if (!failed) {
    const auto last = read_all();
    SCANT_CHECK(last.ok() && last.value().ended);
  }
  SCANT_CHECK(failed == expected.corrupt && connection.corrupt() == expected.corrupt);
  SCANT_CHECK(connection.said_goodbye() == expected.goodbye);
  SCANT_CHECK(sink.frames == expected.frames);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  const size_t piece = size_t{input.byte()} + 1;
  const size_t budget = size_t{input.byte()} * 8 + 1;
  std::vector<std::byte> stream(input.rest().begin(), input.rest().end());
  check_header(Bytes(stream).first(std::min(stream.size(), kFrameHeaderBytes)));
  if ((mode & kSealed) != 0) seal(stream, mode);
  check_header(Bytes(stream).first(std::min(stream.size(), kFrameHeaderBytes)));
  check_stream(stream, mode, piece, budget);
  return 0;
}
