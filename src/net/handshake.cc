// The handshake's messages and states; docs/wire.md gives their layout.
#include "net/handshake.h"

#include <algorithm>
#include <sodium.h>

#include "base/bytes.h"
#include "base/check.h"

namespace scant::net {
namespace {

constexpr uint32_t kHelloMagic = 0x4C484353;      // "SCHL"
constexpr uint32_t kChallengeMagic = 0x48434353;  // "SCCH"
constexpr uint32_t kProofMagic = 0x52504353;      // "SCPR"
constexpr uint32_t kVerdictMagic = 0x45564353;    // "SCVE"
constexpr uint16_t kHandshakeVersion = 1;

static_assert(kMacBytes == crypto_auth_hmacsha256_BYTES);
static_assert(kSecretBytes == crypto_auth_hmacsha256_KEYBYTES);

const unsigned char* raw(const std::byte* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

void initialise_sodium() { SCANT_CHECK(sodium_init() >= 0, "libsodium cannot start"); }

bool equal(Bytes a, Bytes b) {
  return a.size() == b.size() && sodium_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace

Secret random_secret() {
  initialise_sodium();
  Secret secret;
  randombytes_buf(secret.data(), secret.size());
  return secret;
}

JobHash hash_job(std::string_view job) {
  initialise_sodium();
  JobHash hash;
  crypto_generichash(raw(hash.data()), hash.size(),
                     reinterpret_cast<const unsigned char*>(job.data()), job.size(), nullptr, 0);
  return hash;
}

std::string fingerprint(const Secret& secret) {
  initialise_sodium();
  constexpr std::string_view kLabel = "scant fingerprint of a secret";
  std::array<unsigned char, 16> hash{};
  crypto_generichash(hash.data(), hash.size(),
                     reinterpret_cast<const unsigned char*>(kLabel.data()), kLabel.size(),
                     raw(secret.data()), secret.size());
  std::array<char, 2 * hash.size() + 1> digits{};
  sodium_bin2hex(digits.data(), digits.size(), hash.data(), hash.size());
  return digits.data();
}

const char* name(Refusal refusal) {
  switch (refusal) {
    case Refusal::none:
      return "none";
    case Refusal::duplicate:
      return "that rank is connected already";
    case Refusal::world_size:
      return "the world sizes differ";
    case Refusal::destination:
      return "another rank was expected at this address";
    case Refusal::rank:
      return "the rank is out of range";
    case Refusal::lane:
      return "the connection number is out of range";
  }
  return "unknown";
}

Handshake Handshake::connector(const Secret& secret, const JobHash& job, const Identity& identity) {
  Handshake handshake(secret, job);
  handshake.identity_ = identity;
  handshake.state_ = State::wants_challenge;
  initialise_sodium();
  randombytes_buf(handshake.connector_nonce_.data(), kNonceBytes);
  return handshake;
}

Handshake Handshake::acceptor(const Secret& secret, const JobHash& job, Rank self,
                              uint32_t world_size) {
  Handshake handshake(secret, job);
  handshake.self_ = self;
  handshake.world_size_ = world_size;
  handshake.state_ = State::wants_hello;
  initialise_sodium();
  randombytes_buf(handshake.acceptor_nonce_.data(), kNonceBytes);
  return handshake;
}

size_t Handshake::wanted() const {
  switch (state_) {
    case State::wants_hello:
      return kHelloBytes;
    case State::wants_challenge:
      return kChallengeBytes;
    case State::wants_proof:
      return kProofBytes;
    case State::wants_verdict:
      return kVerdictBytes;
    case State::deciding:
    case State::finished:
    case State::failed:
      return 0;
  }
  return 0;
}

// Every MAC covers its role, both identities, both nonces (the acceptor's is zero in the hello) and
// the code.
Handshake::Mac Handshake::mac(std::string_view label, uint32_t code) const {
  std::array<std::byte, 16 + 20 + sizeof(JobHash) + 2 * kNonceBytes + 4> text{};
  base::ByteWriter w(text);
  SCANT_CHECK(label.size() <= 16);
  std::array<std::byte, 16> padded{};
  std::transform(label.begin(), label.end(), padded.begin(),
                 [](char c) { return static_cast<std::byte>(c); });
  w.put_bytes(padded);
  w.put(static_cast<uint32_t>(identity_.source));
  w.put(static_cast<uint32_t>(identity_.destination));
  w.put(identity_.world_size);
  w.put(static_cast<uint32_t>(identity_.lane));
  w.put(static_cast<uint32_t>(identity_.lanes));
  w.put_bytes(job_);
  w.put_bytes(connector_nonce_);
  if (label == "hello") {
    w.put_bytes(std::array<std::byte, kNonceBytes>{});
  } else {
    w.put_bytes(acceptor_nonce_);
  }
  w.put(code);
  Mac out;
  crypto_auth_hmacsha256(raw(out.data()), raw(text.data()), text.size(), raw(secret_.data()));
  return out;
}

Error Handshake::fail(const char* why) {
  state_ = State::failed;
  failure_ = why;
  return Error{ErrorCode::refused, 0, identity_.source, why};
}

std::vector<std::byte> Handshake::start() {
  SCANT_CHECK(state_ == State::wants_challenge);
  std::vector<std::byte> out(kHelloBytes);
  base::ByteWriter w(out);
  w.put(kHelloMagic);
  w.put(kHandshakeVersion);
  w.put(identity_.lane);
  w.put(identity_.lanes);
  w.put(static_cast<uint32_t>(identity_.source));
  w.put(static_cast<uint32_t>(identity_.destination));
  w.put(identity_.world_size);
  w.put_bytes(job_);
  w.put_bytes(connector_nonce_);
  w.put_bytes(mac("hello"));
  SCANT_CHECK(w.used() == kHelloBytes);
  return out;
}

Result<void> Handshake::feed(Bytes message, std::vector<std::byte>& out) {
  SCANT_CHECK(message.size() == wanted() && !message.empty());
  switch (state_) {
    case State::wants_hello:
      return on_hello(message, out);
    case State::wants_challenge:
      return on_challenge(message, out);
    case State::wants_proof:
      return on_proof(message);
    case State::wants_verdict:
      return on_verdict(message);
    default:
      return fail("no message was expected");
  }
}

Result<void> Handshake::on_hello(Bytes message, std::vector<std::byte>& out) {
  base::ByteReader r(message);
  if (r.get<uint32_t>() != kHelloMagic) return fail("not a hello");
  const auto version = r.get<uint16_t>();
  if (version != kHandshakeVersion) return fail("hello of another version");
  identity_.lane = r.get<uint8_t>();
  identity_.lanes = r.get<uint8_t>();
  identity_.source = static_cast<Rank>(r.get<uint32_t>());
  identity_.destination = static_cast<Rank>(r.get<uint32_t>());
  identity_.world_size = r.get<uint32_t>();
  const Bytes job = r.get_bytes(sizeof(JobHash));
  const Bytes nonce = r.get_bytes(kNonceBytes);
  const Bytes claimed = r.get_bytes(kMacBytes);
  if (!r.ok() || !equal(job, job_)) return fail("hello of another job");
  std::copy(nonce.begin(), nonce.end(), connector_nonce_.begin());
  if (!equal(claimed, mac("hello"))) return fail("hello without the job's secret");
  std::vector<std::byte> reply(kChallengeBytes);
  base::ByteWriter w(reply);
  w.put(kChallengeMagic);
  w.put_bytes(acceptor_nonce_);
  w.put_bytes(mac("challenge"));
  out.insert(out.end(), reply.begin(), reply.end());
  state_ = State::wants_proof;
  return {};
}

Result<void> Handshake::on_challenge(Bytes message, std::vector<std::byte>& out) {
  base::ByteReader r(message);
  if (r.get<uint32_t>() != kChallengeMagic) return fail("not a challenge");
  const Bytes nonce = r.get_bytes(kNonceBytes);
  const Bytes claimed = r.get_bytes(kMacBytes);
  std::copy(nonce.begin(), nonce.end(), acceptor_nonce_.begin());
  if (!equal(claimed, mac("challenge"))) return fail("challenge without the job's secret");
  std::vector<std::byte> reply(kProofBytes);
  base::ByteWriter w(reply);
  w.put(kProofMagic);
  w.put_bytes(mac("proof"));
  out.insert(out.end(), reply.begin(), reply.end());
  state_ = State::wants_verdict;
  return {};
}

Result<void> Handshake::on_proof(Bytes message) {
  base::ByteReader r(message);
  if (r.get<uint32_t>() != kProofMagic) return fail("not a proof");
  if (!equal(r.get_bytes(kMacBytes), mac("proof")))
    return fail("proof that does not answer the challenge");
  state_ = State::deciding;
  return {};
}

Result<void> Handshake::decide(Refusal refusal, std::vector<std::byte>& out) {
  SCANT_CHECK(state_ == State::deciding);
  if (refusal == Refusal::none && identity_.world_size != world_size_)
    refusal = Refusal::world_size;
  if (refusal == Refusal::none && identity_.destination != self_) refusal = Refusal::destination;
  const auto code = static_cast<uint32_t>(refusal);
  std::vector<std::byte> reply(kVerdictBytes);
  base::ByteWriter w(reply);
  w.put(kVerdictMagic);
  w.put(code);
  w.put_bytes(mac("verdict", code));
  out.insert(out.end(), reply.begin(), reply.end());
  if (refusal != Refusal::none) {
    return fail(name(refusal));
  }
  state_ = State::finished;
  return {};
}

Result<void> Handshake::on_verdict(Bytes message) {
  base::ByteReader r(message);
  if (r.get<uint32_t>() != kVerdictMagic) return fail("not a verdict");
  const auto code = r.get<uint32_t>();
  if (!equal(r.get_bytes(kMacBytes), mac("verdict", code)))
    return fail("verdict without the job's secret");
  if (code != 0) {
    const auto refusal = static_cast<Refusal>(code);
    Error error = fail(name(refusal));
    refused_by_peer_ = true;
    if (refusal == Refusal::world_size) error.code = ErrorCode::mismatch;
    error.peer = identity_.destination;
    error.message = "rank " + std::to_string(identity_.destination) + " refused rank " +
                    std::to_string(identity_.source) + " of " +
                    std::to_string(identity_.world_size) + ": " + failure_;
    return error;
  }
  state_ = State::finished;
  return {};
}

}  // namespace scant::net
