// The bytes that docs/wire.md shows and describes, held against the code, so that the document
// cannot go stale.
#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <dirent.h>
#include <fstream>
#include <gtest/gtest.h>
#include <set>
#include <sodium.h>
#include <sstream>
#include <sys/socket.h>

#include "base/bytes.h"
#include "base/crc.h"
#include "net/address_record.h"
#include "net/frame.h"
#include "net/handshake.h"
#include "net/tcp/connection.h"

namespace scant::net {
namespace {

// The fenced block that follows the line `marker` in the document.
std::vector<std::string> block_after(const std::string& marker) {
  std::ifstream file(SCANT_DOCUMENT);
  EXPECT_TRUE(file.good()) << SCANT_DOCUMENT;
  std::vector<std::string> lines;
  std::string line;
  while (std::getline(file, line) && line != marker) continue;
  while (std::getline(file, line) && !line.starts_with("```")) continue;
  while (std::getline(file, line) && line != "```") lines.push_back(line);
  EXPECT_FALSE(lines.empty()) << "no block after " << marker;
  return lines;
}

// Lines "OFFSET  HEX HEX ...  meaning"; the offsets must add up.
std::vector<std::byte> bytes_of(const std::vector<std::string>& lines) {
  std::vector<std::byte> bytes;
  for (const std::string& line : lines) {
    EXPECT_EQ(std::stoul(line.substr(0, 2)), bytes.size()) << line;
    const size_t end = std::min(line.find("  ", 4), line.size());
    std::istringstream hex(line.substr(4, end - 4));
    for (std::string pair; hex >> pair;) {
      unsigned value = 0;
      const auto parsed = std::from_chars(pair.data(), pair.data() + pair.size(), value, 16);
      EXPECT_TRUE(parsed.ec == std::errc() && pair.size() == 2) << line;
      bytes.push_back(static_cast<std::byte>(value));
    }
  }
  return bytes;
}

FrameHeader example() {
  FrameHeader header;
  header.type = FrameType::data;
  header.flags = 2;
  header.job = 0x0D0C0B0A;
  header.epoch = 1;
  header.sequence = 7;
  header.operation = 42;
  header.call = {5, 7, 0, 4, 2, 4, 5};
  header.credit = 77;
  return header;
}

const std::string kExamplePayload = "scant";

std::vector<std::byte> encoded_example() {
  FrameHeader header = example();
  const Bytes payload(reinterpret_cast<const std::byte*>(kExamplePayload.data()),
                      kExamplePayload.size());
  header.length = static_cast<uint32_t>(payload.size());
  header.payload_crc = base::crc32c(payload);
  const EncodedHeader encoded = encode(header);
  std::vector<std::byte> bytes(encoded.begin(), encoded.end());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
  return bytes;
}

std::string hex(Bytes bytes) {
  std::string text;
  for (const std::byte byte : bytes) {
    static constexpr char kDigits[] = "0123456789abcdef";
    text += kDigits[std::to_integer<unsigned>(byte) >> 4];
    text += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return text;
}

TEST(Wire, TheFrameOfTheDocumentIsTheFrameOfTheCode) {
  EXPECT_EQ(hex(bytes_of(block_after("<!-- example: frame -->"))), hex(encoded_example()));
}

TEST(Wire, TheElementTypesOfTheDocumentAreThoseOfTheCode) {
  std::ifstream file(SCANT_DOCUMENT);
  std::string line;
  while (std::getline(file, line) && line != "<!-- table: dtypes -->") continue;
  for (int head = 0; head < 3; ++head) std::getline(file, line);
  std::set<int> listed;
  while (std::getline(file, line) && line.starts_with("| ")) {
    std::istringstream row(line);
    char bar = 0;
    int code = -1;
    std::string name;
    size_t size = 0;
    row >> bar >> code >> bar >> name >> bar >> size;
    listed.insert(code);
    EXPECT_EQ(name, scant::name(static_cast<DType>(code))) << line;
    EXPECT_EQ(size, size_bytes(static_cast<DType>(code))) << line;
    if (code >= kMovedDTypeFirst) {
      EXPECT_EQ(static_cast<int>(moved_dtype(name)), code) << line;
    }
  }
  for (int code = 0; code < 256; ++code) EXPECT_EQ(listed.contains(code), is_dtype(code)) << code;
  EXPECT_EQ(moved_dtype("float128"), moved_dtype("other"));
}

TEST(Wire, TheFrameOfTheDocumentDecodes) {
  const auto bytes = bytes_of(block_after("<!-- example: frame -->"));
  ASSERT_EQ(bytes.size(), kFrameHeaderBytes + 5);
  const auto header = decode(Bytes(bytes).first(kFrameHeaderBytes));
  ASSERT_TRUE(header.ok()) << header.error().to_string();
  EXPECT_EQ(header.value().operation, 42U);
  EXPECT_EQ(header.value().call, example().call);
}

TEST(Wire, TheAddressRecordOfTheDocumentIsThatOfTheCode) {
  AddressRecord record;
  record.world_size = 2;
  record.host = "alpha";
  record.pid = 4711;
  record.port = 40001;
  record.unix_name = "scant-00112233445566778899aabbccddeeff";
  record.network = "9f8b1c52-4026531840";
  record.addresses = {"127.0.0.1", "10.0.0.2"};
  std::string text;
  for (const auto& line : block_after("<!-- example: address record -->")) {
    text += (text.empty() ? "" : "\n") + line;
  }
  EXPECT_EQ(text, encode(record));
  const auto decoded = decode_address_record(text);
  ASSERT_TRUE(decoded.ok()) << decoded.error().to_string();
  EXPECT_EQ(decoded.value(), record);
}

// A MAC as the document describes it, computed without the code under test.
std::vector<std::byte> mac_of(const Secret& secret, const std::string& label, Bytes hello,
                              Bytes acceptor_nonce, uint32_t code) {
  std::vector<std::byte> text(136);
  base::ByteWriter w(text);
  std::array<std::byte, 16> padded{};
  std::transform(label.begin(), label.end(), padded.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  w.put_bytes(padded);
  w.put_bytes(hello.subspan(8, 12));           // source, destination, world size
  w.put(std::to_integer<uint32_t>(hello[6]));  // lane
  w.put(std::to_integer<uint32_t>(hello[7]));  // lanes
  w.put_bytes(hello.subspan(20, 64));          // job hash, connector's nonce
  w.put_bytes(acceptor_nonce);
  w.put(code);
  EXPECT_EQ(w.used(), text.size());
  std::vector<std::byte> mac(kMacBytes);
  crypto_auth_hmacsha256(reinterpret_cast<unsigned char*>(mac.data()),
                         reinterpret_cast<const unsigned char*>(text.data()), text.size(),
                         reinterpret_cast<const unsigned char*>(secret.data()));
  return mac;
}

TEST(Wire, TheHandshakeHasTheLayoutOfTheDocument) {
  const Secret secret = random_secret();
  const JobHash job = hash_job("documented");
  auto connector = Handshake::connector(secret, job, {0x0102, 1, 0x0203, 2, 3});
  auto acceptor = Handshake::acceptor(secret, job, 1, 0x0203);
  const auto hello = connector.start();
  EXPECT_EQ(hex(Bytes(hello).first(20)),
            "5343484c0100020302010000"
            "01000000"
            "03020000");
  EXPECT_EQ(hex(Bytes(hello).subspan(20, 32)), hex(job));
  EXPECT_EQ(hex(Bytes(hello).subspan(84)),
            hex(mac_of(secret, "hello", hello, std::array<std::byte, kNonceBytes>{}, 0)));
  std::vector<std::byte> challenge;
  ASSERT_TRUE(acceptor.feed(hello, challenge).ok());
  const Bytes nonce = Bytes(challenge).subspan(4, 32);
  EXPECT_EQ(hex(Bytes(challenge).first(4)), "53434348");
  EXPECT_EQ(hex(Bytes(challenge).subspan(36)), hex(mac_of(secret, "challenge", hello, nonce, 0)));
  std::vector<std::byte> proof;
  ASSERT_TRUE(connector.feed(challenge, proof).ok());
  EXPECT_EQ(hex(Bytes(proof).first(4)), "53435052");
  EXPECT_EQ(hex(Bytes(proof).subspan(4)), hex(mac_of(secret, "proof", hello, nonce, 0)));
  std::vector<std::byte> verdict;
  ASSERT_TRUE(acceptor.feed(proof, verdict).ok());
  ASSERT_FALSE(acceptor.decide(Refusal::duplicate, verdict).ok());
  EXPECT_EQ(hex(Bytes(verdict).first(8)), "5343564501000000");
  EXPECT_EQ(hex(Bytes(verdict).subspan(8)), hex(mac_of(secret, "verdict", hello, nonce, 1)));
}

size_t open_descriptors() {
  size_t count = 0;
  DIR* directory = opendir("/proc/self/fd");
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count;
}

// A peer may pass descriptors along with its bytes; those that are no shared memory are closed.
TEST(Wire, DescriptorsThatComeAlongDoNotStayOpen) {
  std::array<int, 2> ends{};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  const Fd writer(ends[0]);
  const auto made = Connection::create(Fd(ends[1]), AF_UNIX, 0, true);
  ASSERT_TRUE(made.ok());
  Connection& connection = *made.value();
  const std::array<int, 2> passed = {writer.get(), writer.get()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(passed))> control{};
  auto heartbeat = encode(FrameHeader{});
  iovec vector{heartbeat.data(), heartbeat.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* item = CMSG_FIRSTHDR(&message);
  item->cmsg_level = SOL_SOCKET;
  item->cmsg_type = SCM_RIGHTS;
  item->cmsg_len = CMSG_LEN(sizeof(passed));
  std::memcpy(CMSG_DATA(item), passed.data(), sizeof(passed));
  const size_t before = open_descriptors();
  ASSERT_EQ(sendmsg(writer.get(), &message, 0), static_cast<ssize_t>(heartbeat.size()));
  class Nothing final : public TransportSink {
    MutableBytes on_header(Rank, const FrameHeader&) override { return {}; }
    void on_frame(Rank, const FrameHeader&, MutableBytes) override {}
    void on_sent(uint64_t) override {}
    void on_peer_down(Rank, const Error&) override {}
  } sink;
  const auto progress = connection.read(1, sink, 4096);
  ASSERT_TRUE(progress.ok()) << progress.error().to_string();
  EXPECT_EQ(progress.value().bytes, heartbeat.size());
  EXPECT_EQ(open_descriptors(), before);
}

}  // namespace
}  // namespace scant::net
