// Mutual authentication of two ranks as a protocol core without I/O: bytes in, bytes out, a
// verdict. Four messages of fixed size (docs/wire.md, Handshake); each carries an HMAC-SHA-256
// under the job's secret, so a stranger is refused at its first message and a replayed hello cannot
// answer the fresh challenge. Owner: whoever drives the connection.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::net {

inline constexpr size_t kSecretBytes = 32;
inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kMacBytes = 32;
inline constexpr size_t kHelloBytes = 116;
inline constexpr size_t kChallengeBytes = 68;
inline constexpr size_t kProofBytes = 36;
inline constexpr size_t kVerdictBytes = 40;
inline constexpr size_t kHandshakeMessageBytesMax = kHelloBytes;

using Secret = std::array<std::byte, kSecretBytes>;
using JobHash = std::array<std::byte, 32>;

[[nodiscard]] Secret random_secret();
[[nodiscard]] JobHash hash_job(std::string_view job);
// Hexadecimal digits that differ for two secrets and say nothing else of them: what ranks compare
// at the rendezvous.
[[nodiscard]] std::string fingerprint(const Secret& secret);

struct Identity {
  Rank source = kNoRank;       // the connecting rank
  Rank destination = kNoRank;  // the accepting rank
  uint32_t world_size = 0;
  uint8_t lane = 0;
  uint8_t lanes = 1;
  friend bool operator==(const Identity&, const Identity&) = default;
};

enum class Refusal : uint32_t {
  none = 0,
  duplicate = 1,
  world_size = 2,
  destination = 3,
  rank = 4,
  lane = 5
};
[[nodiscard]] const char* name(Refusal refusal);

// Both ends: feed() consumes exactly wanted() bytes at a time and appends what to send to `out`.
class Handshake {
 public:
  // The connecting end knows whom it wants.
  static Handshake connector(const Secret& secret, const JobHash& job, const Identity& identity);
  // The accepting end learns who came; `self` and `world_size` are its own.
  static Handshake acceptor(const Secret& secret, const JobHash& job, Rank self,
                            uint32_t world_size);

  [[nodiscard]] size_t wanted() const;  // bytes of the next message; 0 when finished
  // Bytes to send before anything arrives: the connector's hello.
  [[nodiscard]] std::vector<std::byte> start();
  // One whole message. An error ends the handshake; `out` may still hold a refusal for an
  // authenticated peer.
  Result<void> feed(Bytes message, std::vector<std::byte>& out);
  [[nodiscard]] bool finished() const { return state_ == State::finished; }
  // The acceptor, once the proof holds and before the verdict: who it is. The owner answers through
  // decide().
  [[nodiscard]] bool awaits_decision() const { return state_ == State::deciding; }
  [[nodiscard]] const Identity& identity() const { return identity_; }
  // After an error: its cause as one of a few constants, for counters.
  [[nodiscard]] const char* failure() const { return failure_; }
  // After an error at the connecting end: the refusal came from who holds the secret.
  [[nodiscard]] bool refused_by_peer() const { return refused_by_peer_; }
  Result<void> decide(Refusal refusal, std::vector<std::byte>& out);

 private:
  enum class State {
    wants_hello,
    wants_challenge,
    wants_proof,
    deciding,
    wants_verdict,
    finished,
    failed
  };
  using Mac = std::array<std::byte, kMacBytes>;

  Handshake(const Secret& secret, const JobHash& job) : secret_(secret), job_(job) {}
  [[nodiscard]] Mac mac(std::string_view label, uint32_t code = 0) const;
  Result<void> on_hello(Bytes message, std::vector<std::byte>& out);
  Result<void> on_challenge(Bytes message, std::vector<std::byte>& out);
  Result<void> on_proof(Bytes message);
  Result<void> on_verdict(Bytes message);
  Error fail(const char* why);

  Secret secret_;
  JobHash job_;
  State state_ = State::failed;
  const char* failure_ = "";
  bool refused_by_peer_ = false;
  Identity identity_;
  Rank self_ = kNoRank;
  uint32_t world_size_ = 0;
  std::array<std::byte, kNonceBytes> connector_nonce_{};
  std::array<std::byte, kNonceBytes> acceptor_nonce_{};
};

}  // namespace scant::net
