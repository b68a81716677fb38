// The handshake against strangers and against meddlers on the path. Nonces are random, yet every
// property here holds for any of them. Input: what to do, then identity and bytes.
#include <array>
#include <optional>
#include <vector>

#include "fuzz_input.h"
#include "net/handshake.h"

using namespace scant;
using net::Handshake;

namespace {

constexpr uint32_t kWorld = 4;
constexpr Rank kAcceptor = 1;

const net::Secret& secret() {
  static const net::Secret value = net::random_secret();
  return value;
}

const net::JobHash& job() {
  static const net::JobHash value = net::hash_job("fuzzed");
  return value;
}

void check_failed(const Handshake& handshake, const Result<void>& fed, Bytes out) {
  SCANT_CHECK(!fed.ok() && !fed.error().message.empty());
  SCANT_CHECK(fed.error().code == ErrorCode::refused || fed.error().code == ErrorCode::mismatch);
  SCANT_CHECK(handshake.wanted() == 0 && !handshake.finished() && !handshake.awaits_decision());
  SCANT_CHECK(handshake.failure()[0] != '\0');
  SCANT_CHECK(out.empty(), "an unauthenticated peer got an answer");
}

// Bytes of somebody without the secret: refused at the first message, without an answer.
void stranger(Handshake handshake, Bytes bytes) {
  std::vector<std::byte> message(handshake.wanted());
  std::copy_n(bytes.begin(), std::min(bytes.size(), message.size()), message.begin());
  std::vector<std::byte> out;
  const auto fed = handshake.feed(message, out);
  check_failed(handshake, fed, out);
}

net::Identity identity_from(fuzz::Input& input) {
  net::Identity identity;
  identity.source = static_cast<Rank>(input.half());
  identity.destination = input.byte() % 4;
  identity.world_size = kWorld + input.byte() % 2;
  identity.lane = input.byte();
  identity.lanes = input.byte();
  return identity;
}

// One message in transit; true when the meddler changed it.
bool meddle(std::vector<std::byte>& message, size_t ordinal, fuzz::Input& input) {
  if (input.byte() % 4 != ordinal) return false;
  const size_t at = input.half() % message.size();
  const auto flips = static_cast<std::byte>(input.byte());
  message[at] ^= flips;
  return flips != std::byte{0};
}

// The holder of the secret and one message changed on the way: the change is noticed by whoever
// reads it. Unchanged, the verdict is what the identities and the owner say.
void meddler(fuzz::Input& input) {
  const net::Identity identity = identity_from(input);
  const auto refusal = static_cast<net::Refusal>(input.byte() % 6);
  auto connector = Handshake::connector(secret(), job(), identity);
  auto acceptor = Handshake::acceptor(secret(), job(), kAcceptor, kWorld);
  std::vector<std::byte> message = connector.start();
  for (size_t ordinal = 0; ordinal < 3; ++ordinal) {
    Handshake& reader = ordinal == 1 ? connector : acceptor;
    const bool changed = meddle(message, ordinal, input);
    SCANT_CHECK(message.size() == reader.wanted());
    std::vector<std::byte> out;
    const auto fed = reader.feed(message, out);
    if (changed) return check_failed(reader, fed, out);
    SCANT_CHECK(fed.ok());
    message = std::move(out);
  }
  SCANT_CHECK(acceptor.awaits_decision() && message.empty());
  SCANT_CHECK(acceptor.identity() == identity);
  const bool accepted = acceptor.decide(refusal, message).ok();
  SCANT_CHECK(accepted == (refusal == net::Refusal::none && identity.world_size == kWorld &&
                           identity.destination == kAcceptor));
  SCANT_CHECK(acceptor.finished() == accepted);
  const bool changed = meddle(message, 3, input);
  std::vector<std::byte> out;
  const auto fed = connector.feed(message, out);
  SCANT_CHECK(connector.refused_by_peer() == (!changed && !accepted));
  if (changed || !accepted) return check_failed(connector, fed, out);
  SCANT_CHECK(fed.ok() && connector.finished() && out.empty());
}

// A genuine first message, then bytes of somebody who only overheard it.
void cut_in(bool at_acceptor, fuzz::Input& input) {
  const net::Identity identity = identity_from(input);
  auto connector = Handshake::connector(secret(), job(), identity);
  auto acceptor = Handshake::acceptor(secret(), job(), kAcceptor, kWorld);
  std::vector<std::byte> challenge;
  SCANT_CHECK(acceptor.feed(connector.start(), challenge).ok());
  if (at_acceptor) return stranger(acceptor, input.rest());
  std::vector<std::byte> proof;
  SCANT_CHECK(connector.feed(challenge, proof).ok());
  stranger(connector, input.rest());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  switch (input.byte() % 5) {
    case 0:
      stranger(Handshake::acceptor(secret(), job(), kAcceptor, kWorld), input.rest());
      break;
    case 1:
      stranger(Handshake::connector(secret(), job(), {2, kAcceptor, kWorld, 0, 1}), input.rest());
      break;
    case 2:
      cut_in(true, input);
      break;
    case 3:
      cut_in(false, input);
      break;
    default:
      meddler(input);
  }
  return 0;
}
