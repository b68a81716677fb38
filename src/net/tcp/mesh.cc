// One poll(2) loop over listeners and candidates. A socket that misbehaves ends alone; only what
// the deadline or an authenticated refusal says is this rank's fate.
#include "net/tcp/mesh.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <poll.h>
#include <sys/socket.h>
#include <utility>

#include "base/check.h"
#include "net/net_counters.h"

namespace scant::net {
namespace {

using namespace std::chrono_literals;

// An accepted connection must prove itself within this.
constexpr Duration kStrangerTimeout = 5s;
// Before the next address of a rank is tried.
constexpr Duration kAttemptTimeout = 3s;
constexpr Duration kRetryPauseFirst = 20ms;
constexpr Duration kRetryPauseMax = 1s;
// Between two questions to the rendezvous about one rank, whoever knocks in its name.
constexpr Duration kSecretPause = 1s;
// Connections that have not proven themselves, at most; the oldest stranger makes room.
constexpr size_t kStrangersMax = 256;
// Then a line on stderr says who is missing; the next one when the wait has doubled.
constexpr Duration kNoticeFirst = 10s;
// Deadlines are looked at this often.
constexpr int kPauseMsMax = 50;

bool is_loopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

PathKind kind_of(int family) { return family == AF_UNIX ? PathKind::unix_socket : PathKind::tcp; }

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// Nothing more will come from it, not even unread bytes.
bool has_ended(const Fd& fd) {
  char byte = 0;
  const ssize_t n = recv(fd.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && !would_block());
}

}  // namespace

Error missing_ranks(Rank self, size_t world_size, const std::vector<Rank>& ranks,
                    const std::string& detail, const std::string& verb) {
  std::string list;
  for (const Rank r : ranks) list += (list.empty() ? "" : ", ") + std::to_string(r);
  return Error{ErrorCode::timeout, 0, ranks.front(),
               "rank " + std::to_string(self) + " " + verb + " rank" +
                   (ranks.size() > 1 ? "s " : " ") + list + " of " + std::to_string(world_size) +
                   (detail.empty() ? " to start" : " to connect (" + detail + ")")};
}

Mesh::Mesh(const MeshOptions& options, std::vector<Fd> listeners,
           std::vector<Established::Peer> peers)
    : options_(options),
      listeners_(std::move(listeners)),
      peers_(std::move(peers)),
      last_failure_(peers_.size()),
      secret_asked_(peers_.size()) {}

Result<std::vector<Established::Peer>> Mesh::build() {
  for (size_t r = 0; r < world(); ++r) {
    if (r != static_cast<size_t>(options_.rank)) peers_[r].lanes.resize(options_.lanes);
  }
  missing_lanes_ = (world() - 1) * options_.lanes;
  const auto planned = plan();
  if (!planned) return planned.error();
  const Time begin = clock_.now();
  Duration notice = kNoticeFirst;
  while (missing_lanes_ > 0) {
    if (clock_.now() >= options_.deadline) return not_connected(kGaveUp);
    if (clock_.now() - begin >= notice) {
      std::fprintf(stderr, "scant: %s\n", not_connected("waits for").message.c_str());
      notice *= 2;
    }
    wait_for_events();
    for (const Fd& listener : listeners_) {
      const auto accepted = accept_all(listener);
      if (!accepted) return accepted.error();
    }
    const auto advanced = advance_all();
    if (!advanced) return advanced.error();
    if (missing_lanes_ == 0) drop_ended();
  }
  return std::move(peers_);
}

bool Mesh::near(Rank peer) {
  const std::string& own = record(options_.rank).network;
  return !own.empty() && record(peer).network == own;
}

// Addresses of a peer in the order to try: its unix socket and loopback only within one network
// namespace, since elsewhere they would lead to somebody else.
std::vector<std::string> Mesh::ways_to(Rank peer) {
  const AddressRecord& of = record(peer);
  std::vector<std::string> ways;
  if (near(peer)) {
    if (options_.same_host_sockets && !of.unix_name.empty()) ways.push_back("unix:" + of.unix_name);
    std::copy_if(of.addresses.begin(), of.addresses.end(), std::back_inserter(ways), is_loopback);
  }
  std::copy_if(of.addresses.begin(), of.addresses.end(), std::back_inserter(ways),
               [](const std::string& address) { return !is_loopback(address); });
  return ways;
}

Result<void> Mesh::plan() {
  for (Rank peer = 0; peer < options_.rank; ++peer) {
    if (ways_to(peer).empty()) {
      const std::string host = record(peer).host;
      return Error{ErrorCode::invalid_argument, 0, peer,
                   "rank " + std::to_string(peer) + " (host " + host +
                       ") published no address that rank " + std::to_string(options_.rank) +
                       " on host " + record(options_.rank).host +
                       " can reach: give it another address (address or SCANT_INTERFACE)"};
    }
    for (size_t lane = 0; lane < options_.lanes; ++lane) {
      Candidate candidate;
      candidate.outgoing = true;
      candidate.peer = peer;
      candidate.lane = static_cast<uint8_t>(lane);
      candidates_.push_back(std::move(candidate));
    }
  }
  return {};
}

void Mesh::attempt(Candidate& candidate) {
  const auto ways = ways_to(candidate.peer);
  const std::string& way = ways[candidate.attempts % ways.size()];
  ++candidate.attempts;
  candidate.in_bytes = 0;
  candidate.deadline = std::min<Time>(options_.deadline, clock_.now() + kAttemptTimeout);
  candidate.connecting = true;
  const Identity identity{options_.rank, candidate.peer, static_cast<uint32_t>(world()),
                          candidate.lane, static_cast<uint8_t>(options_.lanes)};
  candidate.handshake.emplace(Handshake::connector(options_.secret, options_.job, identity));
  candidate.out = candidate.handshake->start();
  const bool is_unix = way.starts_with("unix:");
  const uint16_t port = record(candidate.peer).port;
  const bool is_v6 = way.find(':') != std::string::npos;
  candidate.address =
      is_unix ? "unix socket" : (is_v6 ? "[" + way + "]" : way) + ":" + std::to_string(port);
  const auto address =
      is_unix ? Result<SocketAddress>(unix_address(way.substr(5))) : ip_address(way, port);
  if (!address) return retry(candidate, address.error().message);
  candidate.family = address.value().family();
  auto fd = begin_connect(address.value());
  if (!fd) return retry(candidate, fd.error().to_string());
  candidate.fd = std::move(fd).value();
}

// The next way at once; a pause when all have been tried.
void Mesh::retry(Candidate& candidate, const std::string& why) {
  last_failure_[static_cast<size_t>(candidate.peer)] = candidate.address + ": " + why;
  candidate.fd.close();
  const size_t ways = ways_to(candidate.peer).size();
  candidate.not_before = clock_.now();
  if (candidate.attempts % ways != 0) return;
  const auto doublings = std::min<size_t>(candidate.attempts / ways, 10);
  candidate.not_before += std::min<Duration>(kRetryPauseMax, kRetryPauseFirst * (1 << doublings));
}

void Mesh::wait_for_events() {
  std::vector<pollfd> polled;
  for (const Fd& listener : listeners_) polled.push_back({listener.get(), POLLIN, 0});
  int pause = kPauseMsMax;
  for (const Candidate& candidate : candidates_) {
    if (!candidate.fd.open()) {
      const auto left =
          std::chrono::ceil<std::chrono::milliseconds>(candidate.not_before - clock_.now());
      pause = std::clamp(static_cast<int>(left.count()), 0, pause);
      continue;
    }
    const bool writes = candidate.connecting || !candidate.out.empty();
    polled.push_back(
        {candidate.fd.get(), static_cast<short>(writes ? POLLIN | POLLOUT : POLLIN), 0});
  }
  static_cast<void>(::poll(polled.data(), polled.size(), pause));
}

Result<void> Mesh::accept_all(const Fd& listener) {
  for (;;) {
    sockaddr_storage from{};
    socklen_t length = sizeof(from);
    Fd fd(accept4(listener.get(), reinterpret_cast<sockaddr*>(&from), &length,
                  SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.open()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        return Error{ErrorCode::resource, errno, options_.rank,
                     "rank " + std::to_string(options_.rank) + " cannot accept connections"};
      }
      return {};
    }
    make_room();
    tune(fd.get(), from.ss_family);
    Candidate candidate;
    candidate.family = from.ss_family;
    candidate.address = from.ss_family == AF_UNIX ? "unix socket" : peer_address(fd.get());
    candidate.fd = std::move(fd);
    candidate.handshake.emplace(Handshake::acceptor(options_.secret, options_.job, options_.rank,
                                                    static_cast<uint32_t>(world())));
    candidate.deadline = clock_.now() + kStrangerTimeout;
    candidates_.push_back(std::move(candidate));
  }
}

// Ranks prove themselves within a round trip, so the oldest that has not is most likely nobody's.
void Mesh::make_room() {
  const auto stranger = [](const Candidate& candidate) {
    return !candidate.outgoing && !candidate.dead && !candidate.proven_once;
  };
  const auto count = std::count_if(candidates_.begin(), candidates_.end(), stranger);
  if (static_cast<size_t>(count) < kStrangersMax) return;
  refuse(*std::find_if(candidates_.begin(), candidates_.end(), stranger),
         "too many unproven connections");
}

Result<void> Mesh::advance_all() {
  for (Candidate& candidate : candidates_) {
    if (candidate.dead) continue;
    auto advanced = advance(candidate);
    if (!advanced) return advanced;
  }
  std::erase_if(candidates_, [](const Candidate& candidate) { return candidate.dead; });
  return {};
}

Result<void> Mesh::advance(Candidate& candidate) {
  const Time now = clock_.now();
  if (!candidate.fd.open()) {
    if (now >= candidate.not_before) attempt(candidate);
    return {};
  }
  if (now >= candidate.deadline) {
    if (candidate.outgoing) {
      retry(candidate, candidate.connecting ? "no answer" : "no answer to the handshake");
    } else {
      refuse(candidate, "too slow");
    }
    return {};
  }
  if (candidate.connecting) {
    pollfd state{candidate.fd.get(), POLLOUT, 0};
    if (::poll(&state, 1, 0) <= 0) return {};
    const int error = pending_error(candidate.fd.get());
    if (error != 0) {
      retry(candidate, std::strerror(error));
      return {};
    }
    candidate.connecting = false;
  }
  write_some(candidate);
  return feed(candidate);
}

// Reads exactly what the handshake wants: what follows belongs to the frames.
Result<void> Mesh::feed(Candidate& candidate) {
  while (candidate.handshake->wanted() > 0) {
    const size_t wanted = candidate.handshake->wanted();
    const ssize_t n = recv(candidate.fd.get(), candidate.in.data() + candidate.in_bytes,
                           wanted - candidate.in_bytes, MSG_DONTWAIT);
    if (n < 0 && would_block()) return {};
    if (n <= 0) {
      if (candidate.outgoing) {
        retry(candidate,
              "it closed the connection during the handshake, as it does to another secret");
        return check_secret(candidate.peer);
      }
      refuse(candidate, "closed early");
      return {};
    }
    bytes_counter(Direction::received, kind_of(candidate.family), Content::handshake)
        .add(static_cast<uint64_t>(n));
    candidate.in_bytes += static_cast<size_t>(n);
    if (candidate.in_bytes < wanted) return {};
    candidate.in_bytes = 0;
    const auto fed = candidate.handshake->feed(Bytes(candidate.in.data(), wanted), candidate.out);
    if (!fed && candidate.outgoing) {
      // Only who holds the secret can refuse this rank; anybody can answer at an old address.
      if (candidate.handshake->refused_by_peer()) return fed.error();
      retry(candidate, fed.error().message);
      return check_secret(candidate.peer);
    }
    if (!fed) {
      refuse(candidate, candidate.handshake->failure());
      return check_secret(candidate.handshake->identity().source);
    }
    candidate.proven_once = true;
    if (candidate.handshake->awaits_decision()) decide(candidate);
    write_some(candidate);
  }
  if (!candidate.out.empty()) return {};
  if (candidate.handshake->finished()) {
    establish(candidate);
  } else {
    refuse(candidate, candidate.handshake->failure());
  }
  return {};
}

// A handshake that fails is that of a stranger, or of a rank with another secret. Only the
// rendezvous can tell: who cannot write there ends nobody's start.
Result<void> Mesh::check_secret(Rank rank) {
  const bool known = rank >= 0 && static_cast<size_t>(rank) < world() && rank != options_.rank;
  if (!known || !options_.holds_another_secret) return {};
  Time& asked = secret_asked_[static_cast<size_t>(rank)];
  if (clock_.now() < asked) return {};
  asked = clock_.now() + kSecretPause;
  if (!options_.holds_another_secret(rank)) return {};
  const AddressRecord& of = record(rank);
  return Error{ErrorCode::refused, 0, rank,
               "rank " + std::to_string(options_.rank) + " and rank " + std::to_string(rank) +
                   " (host " + of.host + ", pid " + std::to_string(of.pid) +
                   ") hold different secrets of the job: start all ranks with one rendezvous "
                   "(SCANT_STORE), and let nobody change its key 'secret'"};
}

void Mesh::refuse(Candidate& candidate, const char* reason) {
  refused_counter(reason).add();
  ++refused_;
  last_refused_ = candidate.address + ": " + reason;
  candidate.fd.close();
  candidate.dead = true;
}

void Mesh::decide(Candidate& candidate) {
  const Identity& who = candidate.handshake->identity();
  Refusal refusal = Refusal::none;
  if (who.world_size != world()) {
    refusal = Refusal::world_size;
  } else if (who.source <= options_.rank || static_cast<size_t>(who.source) >= world()) {
    refusal = Refusal::rank;
  } else if (who.lane >= options_.lanes || who.lanes != options_.lanes) {
    refusal = Refusal::lane;
  } else if (taken(who)) {
    refusal = Refusal::duplicate;
  }
  candidate.peer = who.source;
  candidate.lane = who.lane;
  // A refusal goes out as the verdict; feed() ends the connection once it is written.
  static_cast<void>(candidate.handshake->decide(refusal, candidate.out));
}

// Taken by a connection that still lives. A rank whose attempt timed out after its proof comes
// again, and must not be refused because of its own remains.
bool Mesh::taken(const Identity& who) {
  auto& lane = peers_[static_cast<size_t>(who.source)].lanes[who.lane];
  if (!lane.fd.open()) return false;
  if (!has_ended(lane.fd)) return true;
  lane.fd.close();
  ++missing_lanes_;
  return false;
}

// Before the listeners close: whoever gave up an accepted connection meanwhile will come again and
// must find them open.
void Mesh::drop_ended() {
  for (size_t r = static_cast<size_t>(options_.rank) + 1; r < world(); ++r) {
    for (Established::Lane& lane : peers_[r].lanes) {
      if (!has_ended(lane.fd)) continue;
      lane.fd.close();
      ++missing_lanes_;
    }
  }
}

void Mesh::write_some(Candidate& candidate) {
  while (!candidate.out.empty()) {
    const ssize_t n =
        ::send(candidate.fd.get(), candidate.out.data(), candidate.out.size(), MSG_NOSIGNAL);
    if (n <= 0) return;  // an error shows again when reading
    bytes_counter(Direction::sent, kind_of(candidate.family), Content::handshake)
        .add(static_cast<uint64_t>(n));
    candidate.out.erase(candidate.out.begin(), candidate.out.begin() + n);
  }
}

void Mesh::establish(Candidate& candidate) {
  Established::Peer& peer = peers_[static_cast<size_t>(candidate.peer)];
  if (peer.lanes[candidate.lane].fd.open()) return refuse(candidate, name(Refusal::duplicate));
  peer.lanes[candidate.lane] = {std::move(candidate.fd), candidate.family};
  --missing_lanes_;
  peer.address = candidate.address;
  candidate.dead = true;
}

Error Mesh::not_connected(const std::string& verb) const {
  std::vector<Rank> absent;
  std::string detail;
  for (size_t r = 0; r < world(); ++r) {
    const auto& lanes = peers_[r].lanes;
    const bool whole =
        std::all_of(lanes.begin(), lanes.end(), [](const auto& lane) { return lane.fd.open(); });
    if (whole) continue;
    absent.push_back(static_cast<Rank>(r));
    if (!last_failure_[r].empty()) detail = last_failure_[r];
  }
  if (detail.empty()) detail = "no connection of theirs arrived";
  if (refused_ > 0) {
    detail +=
        "; " + std::to_string(refused_) +
        (refused_ == 1 ? " connection was refused, " : " connections were refused, the last ") +
        last_refused_;
  }
  return missing_ranks(options_.rank, world(), absent, detail, verb);
}

}  // namespace scant::net
