// Bringing up the mesh: publish, look up, connect to the lower ranks, accept the higher ones,
// authenticate both ways. Runs in the creating thread; everything has a deadline; nothing outlives
// it but authenticated sockets.
#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <poll.h>
#include <sodium.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/counters.h"
#include "net/handshake.h"
#include "net/tcp_transport.h"

namespace scant::net {
namespace {

constexpr auto kStrangerTimeout =
    std::chrono::seconds(5);  // an accepted connection must prove itself within this
constexpr auto kAttemptTimeout =
    std::chrono::seconds(3);  // before the next address of a rank is tried
constexpr size_t kLanesMax = 16;

Error invalid(const std::string& what) {
  return Error{ErrorCode::invalid_argument, 0, kNoRank, what};
}

void count_refusal(const std::string& reason) {
  base::counter("scant_net_refused_total", "Connections refused while authenticating",
                "{reason=\"" + reason + "\"}")
      .add();
}

// One socket on its way through the handshake.
struct Candidate {
  Fd fd;
  int family = 0;
  std::unique_ptr<Handshake> handshake;
  bool connecting = false;  // the socket is not established yet
  bool outgoing = false;
  Rank peer = kNoRank;
  uint8_t lane = 0;
  size_t address_index = 0;
  std::string address;
  Time deadline;
  std::array<std::byte, kHandshakeMessageBytesMax> in{};
  size_t in_bytes = 0;
  std::vector<std::byte> out;
  bool dead = false;
};

class Bootstrap {
 public:
  Bootstrap(Store& store, const CommunicatorOptions& options)
      : store_(store), options_(options), deadline_(clock_.now() + options.connect_timeout) {
    lanes_ =
        options.connections_per_pair == 0 ? 1 : static_cast<size_t>(options.connections_per_pair);
  }

  Result<Established> run() {
    for (auto step : {&Bootstrap::check, &Bootstrap::listen, &Bootstrap::publish,
                      &Bootstrap::look_up, &Bootstrap::connect_all, &Bootstrap::exchange}) {
      const Result<void> outcome = (this->*step)();
      if (!outcome) return outcome.error();
    }
    return std::move(established_);
  }

 private:
  [[nodiscard]] std::string key(const std::string& name) const {
    return "scant/" + options_.job + "/" + name;
  }
  [[nodiscard]] Duration left() const {
    return std::max<Duration>(deadline_ - clock_.now(), Duration::zero());
  }
  [[nodiscard]] auto world() const { return static_cast<size_t>(options_.size); }

  Result<void> check() {
    if (options_.size < 1 || options_.size > 65535)
      return invalid("size " + std::to_string(options_.size) + " is out of range");
    if (options_.rank < 0 || options_.rank >= options_.size) {
      return invalid("rank " + std::to_string(options_.rank) + " is out of range for size " +
                     std::to_string(options_.size));
    }
    if (options_.connections_per_pair < 0 || lanes_ > kLanesMax) {
      return invalid("connections_per_pair must be 0 to " + std::to_string(kLanesMax));
    }
    if (options_.peer_timeout < std::chrono::milliseconds(50))
      return invalid("peer_timeout must be at least 50 ms");
    job_ = hash_job(options_.job);
    for (size_t i = 0; i < 4; ++i)
      established_.job |= std::to_integer<uint32_t>(job_[i]) << (8 * i);
    established_.peers.resize(world());
    return {};
  }

  Result<void> listen() {
    const bool interface = is_interface(options_.address);
    auto addresses = interface || options_.address.empty()
                         ? local_addresses(interface ? options_.address : "")
                         : std::vector<std::string>{options_.address};
    if (interface && addresses.empty())
      return invalid("interface " + options_.address + " has no usable address");
    const std::string host = options_.address.empty() ? "" : addresses.front();
    auto tcp = listen_tcp(host, options_.port);
    if (!tcp) {
      Error error = tcp.error();
      error.message = "rank " + std::to_string(options_.rank) + ": " + error.message;
      return error;
    }
    record_.network = network_identity();
    // Ranks of one network namespace find loopback first; nobody else is offered it.
    if (options_.address.empty()) addresses.insert(addresses.end(), {"127.0.0.1", "::1"});
    if (addresses.size() > kAddressesMax) addresses.resize(kAddressesMax);
    record_.world_size = static_cast<uint32_t>(options_.size);
    record_.host = host_name();
    record_.pid = getpid();
    record_.port = tcp.value().port;
    record_.addresses = addresses;
    listeners_.push_back(std::move(tcp.value().fd));
    if (options_.same_host_sockets && !record_.network.empty()) {
      const Secret random = random_secret();
      std::array<char, 33> hex{};
      sodium_bin2hex(hex.data(), hex.size(), reinterpret_cast<const unsigned char*>(random.data()),
                     16);
      record_.unix_name = std::string("scant-") + hex.data();
      auto unix_listener = listen_unix(record_.unix_name);
      if (unix_listener) {
        listeners_.push_back(std::move(unix_listener.value().fd));
      } else {
        record_.unix_name.clear();
      }
    }
    return {};
  }

  Result<void> publish() {
    if (options_.rank == 0) {
      secret_ = random_secret();
      const std::string_view value(reinterpret_cast<const char*>(secret_.data()), secret_.size());
      const auto set = store_.set_if_absent(key("secret"), value);
      if (!set) return set.error();
      if (!set.value()) return duplicate();
    }
    const auto set =
        store_.set_if_absent(key("rank/" + std::to_string(options_.rank)), encode(record_));
    if (!set) return set.error();
    return set.value() ? Result<void>() : duplicate();
  }

  Result<void> duplicate() {
    std::string who = "another process";
    const auto text = store_.get(key("rank/" + std::to_string(options_.rank)), Duration::zero());
    if (text) {
      const auto record = decode_address_record(text.value());
      if (record)
        who = "host " + record.value().host + ", pid " + std::to_string(record.value().pid);
    }
    return Error{ErrorCode::invalid_argument, 0, options_.rank,
                 "rank " + std::to_string(options_.rank) + " of job '" + options_.job +
                     "' is registered already by " + who +
                     ": give each process its own rank, and each run its own job name or store"};
  }

  Result<void> look_up() {
    const auto secret = store_.get(key("secret"), left());
    if (!secret) return missing({0});
    if (secret.value().size() != secret_.size()) {
      return Error{ErrorCode::corrupt, 0, kNoRank, "the job's secret has a wrong length"};
    }
    std::transform(secret.value().begin(), secret.value().end(), secret_.begin(),
                   [](char c) { return static_cast<std::byte>(c); });
    std::vector<Rank> absent;
    for (Rank r = 0; r < options_.size; ++r) {
      const auto text =
          store_.get(key("rank/" + std::to_string(r)), absent.empty() ? left() : Duration::zero());
      if (!text) {
        if (text.error().code != ErrorCode::timeout) return text.error();
        absent.push_back(r);
        continue;
      }
      auto record = decode_address_record(text.value());
      if (!record) return record.error();
      if (record.value().world_size != record_.world_size) {
        return Error{ErrorCode::mismatch, 0, r,
                     "rank " + std::to_string(options_.rank) + " was told a world size of " +
                         std::to_string(options_.size) + ", rank " + std::to_string(r) +
                         " one of " + std::to_string(record.value().world_size)};
      }
      established_.peers[static_cast<size_t>(r)].record = std::move(record).value();
    }
    return absent.empty() ? Result<void>() : missing(absent);
  }

  Result<void> missing(const std::vector<Rank>& ranks) const {
    std::string list;
    for (const Rank r : ranks) list += (list.empty() ? "" : ", ") + std::to_string(r);
    const auto seconds =
        std::chrono::duration_cast<std::chrono::seconds>(options_.connect_timeout).count();
    return Error{ErrorCode::timeout, 0, ranks.front(),
                 "rank " + std::to_string(options_.rank) + " waited " + std::to_string(seconds) +
                     " s for rank" + (ranks.size() > 1 ? "s " : " ") + list + " of " +
                     std::to_string(options_.size) + " to connect"};
  }

  [[nodiscard]] bool same_network(Rank peer) const {
    const AddressRecord& record = established_.peers[static_cast<size_t>(peer)].record;
    return !record_.network.empty() && record.network == record_.network;
  }

  Result<void> connect_all() {
    for (Rank peer = 0; peer < options_.rank; ++peer) {
      for (size_t lane = 0; lane < lanes_; ++lane) {
        Candidate candidate;
        candidate.outgoing = true;
        candidate.peer = peer;
        candidate.lane = static_cast<uint8_t>(lane);
        begin_attempt(candidate);
        candidates_.push_back(std::move(candidate));
      }
    }
    return {};
  }

  // Addresses of a peer in the order to try: its unix socket and loopback only within one network
  // namespace.
  [[nodiscard]] std::vector<std::string> ways_to(Rank peer) const {
    const AddressRecord& record = established_.peers[static_cast<size_t>(peer)].record;
    std::vector<std::string> ways;
    const bool near = same_network(peer);
    if (near && options_.same_host_sockets && !record.unix_name.empty())
      ways.push_back("unix:" + record.unix_name);
    for (const std::string& address : record.addresses) {
      const bool loopback = address.starts_with("127.") || address == "::1";
      if (loopback && near)
        ways.insert(ways.begin() + (ways.empty() || !ways[0].starts_with("unix:") ? 0 : 1),
                    address);
      if (!loopback) ways.push_back(address);
    }
    return ways;
  }

  void begin_attempt(Candidate& candidate) {
    const auto ways = ways_to(candidate.peer);
    candidate.dead = ways.empty();
    if (candidate.dead) return;
    const std::string& way = ways[candidate.address_index++ % ways.size()];
    const AddressRecord& record = established_.peers[static_cast<size_t>(candidate.peer)].record;
    candidate.fd.close();
    candidate.in_bytes = 0;
    candidate.deadline = std::min<Time>(deadline_, clock_.now() + kAttemptTimeout);
    candidate.connecting = true;
    const Identity identity{options_.rank, candidate.peer, record_.world_size, candidate.lane,
                            static_cast<uint8_t>(lanes_)};
    candidate.handshake =
        std::make_unique<Handshake>(Handshake::connector(secret_, job_, identity));
    candidate.out = candidate.handshake->start();
    const bool is_unix = way.starts_with("unix:");
    candidate.address = is_unix ? "unix socket" : way + " port " + std::to_string(record.port);
    const auto address =
        is_unix ? Result<SocketAddress>(unix_address(way.substr(5))) : ip_address(way, record.port);
    if (!address) return;  // stays without a socket until its deadline, then tries the next way
    candidate.family = address.value().family();
    auto fd = begin_connect(address.value());
    if (fd) candidate.fd = std::move(fd).value();
  }

  void accept_all(const Fd& listener) {
    for (;;) {
      sockaddr_storage from{};
      socklen_t length = sizeof(from);
      Fd fd(accept4(listener.get(), reinterpret_cast<sockaddr*>(&from), &length,
                    SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd.open()) return;
      const size_t unknown = static_cast<size_t>(std::count_if(
          candidates_.begin(), candidates_.end(), [](const auto& c) { return !c.outgoing; }));
      if (unknown >= 2 * world() * lanes_ + 64) {
        count_refusal("too many unauthenticated connections");
        continue;
      }
      tune(fd.get(), from.ss_family);
      Candidate candidate;
      candidate.family = from.ss_family;
      candidate.fd = std::move(fd);
      candidate.handshake = std::make_unique<Handshake>(
          Handshake::acceptor(secret_, job_, options_.rank, record_.world_size));
      candidate.deadline = clock_.now() + kStrangerTimeout;
      candidates_.push_back(std::move(candidate));
    }
  }

  [[nodiscard]] size_t connected() const {
    size_t count = 0;
    for (const auto& peer : established_.peers) {
      count += static_cast<size_t>(std::count_if(peer.lanes.begin(), peer.lanes.end(),
                                                 [](const auto& lane) { return lane.fd.open(); }));
    }
    return count;
  }

  Result<void> exchange() {
    for (size_t r = 0; r < world(); ++r)
      established_.peers[r].lanes.resize(r == own() ? 0 : lanes_);
    while (connected() < (world() - 1) * lanes_) {
      if (clock_.now() >= deadline_) return not_connected();
      wait_for_events();
      const Result<void> outcome = advance_all();
      if (!outcome) return outcome;
    }
    return {};
  }

  [[nodiscard]] size_t own() const { return static_cast<size_t>(options_.rank); }

  Result<void> not_connected() const {
    std::vector<Rank> absent;
    for (size_t r = 0; r < world(); ++r) {
      const auto& lanes = established_.peers[r].lanes;
      if (std::any_of(lanes.begin(), lanes.end(),
                      [](const auto& lane) { return !lane.fd.open(); })) {
        absent.push_back(static_cast<Rank>(r));
      }
    }
    return missing(absent);
  }

  void wait_for_events() {
    std::vector<pollfd> polled;
    for (const Fd& listener : listeners_) polled.push_back({listener.get(), POLLIN, 0});
    for (const Candidate& candidate : candidates_) {
      const bool writes = candidate.connecting || !candidate.out.empty();
      polled.push_back(
          {candidate.fd.get(), static_cast<short>(writes ? POLLIN | POLLOUT : POLLIN), 0});
    }
    constexpr int kPauseMsMax = 50;  // deadlines of attempts are checked this often
    static_cast<void>(::poll(polled.data(), polled.size(), kPauseMsMax));
    for (const Fd& listener : listeners_) accept_all(listener);
  }

  Result<void> advance_all() {
    for (size_t i = 0; i < candidates_.size(); ++i) {
      const Result<void> outcome = advance(candidates_[i]);
      if (!outcome) return outcome;
    }
    std::erase_if(candidates_, [](const Candidate& candidate) { return candidate.dead; });
    return {};
  }

  // An error is this rank's fate; what only concerns one socket ends that socket.
  Result<void> advance(Candidate& candidate) {
    const bool late = clock_.now() >= candidate.deadline;
    if (late || !candidate.fd.open()) return give_up(candidate, late, "too slow");
    if (candidate.connecting) {
      pollfd state{candidate.fd.get(), POLLOUT, 0};
      if (::poll(&state, 1, 0) <= 0) return {};
      if (pending_error(candidate.fd.get()) != 0) return give_up(candidate, true, "unreachable");
      candidate.connecting = false;
    }
    write_some(candidate);
    while (candidate.handshake->wanted() > 0) {
      const size_t wanted = candidate.handshake->wanted();
      const ssize_t n = recv(candidate.fd.get(), candidate.in.data() + candidate.in_bytes,
                             wanted - candidate.in_bytes, MSG_DONTWAIT);
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return {};
      if (n <= 0) return give_up(candidate, true, "closed");
      candidate.in_bytes += static_cast<size_t>(n);
      if (candidate.in_bytes < wanted) return {};
      candidate.in_bytes = 0;
      const auto fed = candidate.handshake->feed(Bytes(candidate.in.data(), wanted), candidate.out);
      if (!fed) {
        if (candidate.outgoing) return fed.error();
        return give_up(candidate, true, fed.error().message);
      }
      if (candidate.handshake->awaits_decision()) decide(candidate);
      write_some(candidate);
    }
    if (candidate.handshake->finished() && candidate.out.empty()) establish(candidate);
    return {};
  }

  Result<void> give_up(Candidate& candidate, bool now, const std::string& reason) {
    if (!now) return {};
    if (candidate.outgoing) {
      if (clock_.now() < deadline_) begin_attempt(candidate);
      return {};
    }
    count_refusal(reason);
    candidate.dead = true;
    return {};
  }

  void decide(Candidate& candidate) {
    const Identity& who = candidate.handshake->identity();
    Refusal refusal = Refusal::none;
    if (who.source <= options_.rank || who.source >= options_.size) {
      refusal = Refusal::rank;
    } else if (who.lane >= lanes_ || who.lanes != lanes_) {
      refusal = Refusal::lane;
    } else if (established_.peers[static_cast<size_t>(who.source)].lanes[who.lane].fd.open()) {
      refusal = Refusal::duplicate;
    }
    const auto decided = candidate.handshake->decide(refusal, candidate.out);
    candidate.peer = who.source;
    candidate.lane = who.lane;
    candidate.address = candidate.family == AF_UNIX ? "unix socket" : "incoming";
    if (!decided) count_refusal(decided.error().message);
  }

  void write_some(Candidate& candidate) {
    while (!candidate.out.empty()) {
      const ssize_t n =
          ::send(candidate.fd.get(), candidate.out.data(), candidate.out.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      candidate.out.erase(candidate.out.begin(), candidate.out.begin() + n);
    }
  }

  void establish(Candidate& candidate) {
    Established::Peer& peer = established_.peers[static_cast<size_t>(candidate.peer)];
    peer.lanes[candidate.lane] = {std::move(candidate.fd), candidate.family};
    if (candidate.address != "incoming") {
      peer.address = candidate.address;
    } else if (!peer.record.addresses.empty()) {
      peer.address = peer.record.addresses.front();
    }
    candidate.dead = true;
  }

  base::MonotonicClock clock_;
  Store& store_;
  const CommunicatorOptions& options_;
  Time deadline_;
  size_t lanes_ = 1;
  Secret secret_{};
  JobHash job_{};
  AddressRecord record_;
  std::vector<Fd> listeners_;
  std::vector<Candidate> candidates_;
  Established established_;
};

}  // namespace

Result<Established> bootstrap_tcp(Store& store, const CommunicatorOptions& options) {
  return Bootstrap(store, options).run();
}

}  // namespace scant::net
