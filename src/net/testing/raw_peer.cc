// Bodies of the test support.
#include "net/testing/raw_peer.h"

#include <algorithm>
#include <cerrno>
#include <poll.h>
#include <sys/socket.h>

#include "base/check.h"
#include "base/crc.h"
#include "base/little_endian.h"

namespace scant::net {

RawPeer::RawPeer(uint16_t port) {
  auto fd = begin_connect(ip_address("127.0.0.1", port).value());
  SCANT_CHECK(fd.ok());
  fd_ = std::move(fd).value();
  pollfd state{fd_.get(), POLLOUT, 0};
  SCANT_CHECK(::poll(&state, 1, 20'000) == 1 && pending_error(fd_.get()) == 0);
}

void RawPeer::write(Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n > 0) {
      bytes = bytes.subspan(static_cast<size_t>(n));
      continue;
    }
    if (errno != EAGAIN) return;  // the other end has had enough
    pollfd state{fd_.get(), POLLOUT, 0};
    if (::poll(&state, 1, 20'000) <= 0) return;
  }
}

std::vector<std::byte> RawPeer::read(size_t count, int patience_ms) {
  std::vector<std::byte> bytes(count);
  size_t got = 0;
  while (got < count) {
    pollfd state{fd_.get(), POLLIN, 0};
    if (::poll(&state, 1, patience_ms) <= 0) break;
    const ssize_t n = ::recv(fd_.get(), bytes.data() + got, count - got, 0);
    if (n < 0 && errno == EAGAIN) continue;
    if (n <= 0) break;
    got += static_cast<size_t>(n);
  }
  bytes.resize(got);
  return bytes;
}

bool RawPeer::closed_silently() {
  pollfd state{fd_.get(), POLLIN, 0};
  if (::poll(&state, 1, 20'000) <= 0) return false;
  std::byte byte{};
  return ::recv(fd_.get(), &byte, 1, 0) <= 0;
}

Result<void> RawPeer::shake(Handshake handshake) {
  std::vector<std::byte> out;
  if (handshake.wanted() == kChallengeBytes) out = handshake.start();
  for (;;) {
    if (!out.empty()) written.push_back(out);
    write(out);
    out.clear();
    if (handshake.awaits_decision()) {
      auto decided = handshake.decide(Refusal::none, out);
      if (!decided) return decided;
      continue;
    }
    if (handshake.finished()) return {};
    const auto message = read(handshake.wanted());
    if (message.size() != handshake.wanted()) {
      return Error{ErrorCode::closed, 0, kNoRank, "closed during the handshake"};
    }
    auto fed = handshake.feed(message, out);
    if (!fed) return fed;
  }
}

AddressRecord record_of(Store& store, const std::string& job, Rank rank) {
  const auto text =
      store.get("scant/" + job + "/rank/" + std::to_string(rank), std::chrono::seconds(60));
  SCANT_CHECK(text.ok());
  return decode_address_record(text.value()).value();
}

Secret secret_of(Store& store, const std::string& job) {
  const auto text = store.get("scant/" + job + "/secret", std::chrono::seconds(60));
  SCANT_CHECK(text.ok() && text.value().size() == kSecretBytes);
  Secret secret;
  std::transform(text.value().begin(), text.value().end(), secret.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  return secret;
}

std::vector<std::byte> frame_bytes(FrameHeader header, Bytes payload, const std::string& job,
                                   uint64_t sequence) {
  const JobHash hash = hash_job(job);
  header.job = base::load_little<uint32_t>(hash.data());
  header.sequence = sequence;
  header.length = static_cast<uint32_t>(payload.size());
  header.payload_crc = payload.empty() ? 0 : base::crc32c(payload);
  const EncodedHeader encoded = encode(header);
  std::vector<std::byte> bytes(encoded.size() + payload.size());
  std::copy(encoded.begin(), encoded.end(), bytes.begin());
  std::copy(payload.begin(), payload.end(), bytes.begin() + kFrameHeaderBytes);
  return bytes;
}

}  // namespace scant::net
