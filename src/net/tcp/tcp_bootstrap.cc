// Bringing up the transport: listen, publish, look up, connect (mesh.h). Runs in the creating
// thread; everything has a deadline. Every error names this rank and the option to blame.
#include <algorithm>
#include <array>
#include <sodium.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/little_endian.h"
#include "net/tcp/mesh.h"
#include "net/tcp/tcp_transport.h"

namespace scant::net {
namespace {

constexpr size_t kLanesMax = 16;
constexpr auto kPeerTimeoutMin = std::chrono::milliseconds(50);
constexpr rlim_t kDescriptorsSpare = 64;  // for everything else that the process has open

class Bootstrap {
 public:
  Bootstrap(Store& store, const CommunicatorOptions& options)
      : store_(store), options_(options), deadline_(clock_.now() + options.connect_timeout) {
    lanes_ =
        options.connections_per_pair == 0 ? 1 : static_cast<size_t>(options.connections_per_pair);
  }

  Result<Established> run() {
    for (auto step : {&Bootstrap::check, &Bootstrap::listen, &Bootstrap::publish,
                      &Bootstrap::look_up, &Bootstrap::connect}) {
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

  [[nodiscard]] Error failed(ErrorCode code, const std::string& what, int sys_errno = 0) const {
    return Error{code, sys_errno, options_.rank,
                 "rank " + std::to_string(options_.rank) + ": " + what};
  }
  [[nodiscard]] Error invalid(const std::string& what) const {
    return failed(ErrorCode::invalid_argument, what);
  }

  Result<void> check() {
    const std::string size = std::to_string(options_.size);
    if (options_.size < 1 || options_.size > 65535)
      return invalid("size " + size + " is out of range");
    if (options_.rank < 0 || options_.rank >= options_.size) {
      return invalid("rank is out of range for size " + size);
    }
    if (options_.job.empty() || options_.job.size() > 256) {
      return invalid("job (SCANT_JOB) must have 1 to 256 bytes");
    }
    if (options_.connections_per_pair < 0 || lanes_ > kLanesMax) {
      return invalid("connections_per_pair (SCANT_CONNECTIONS) must be 0 to " +
                     std::to_string(kLanesMax));
    }
    if (options_.peer_timeout < kPeerTimeoutMin) {
      return invalid("peer_timeout (SCANT_PEER_TIMEOUT_S) is below 50 ms");
    }
    if (options_.connect_timeout <= Duration::zero())
      return invalid("connect_timeout is not positive");
    rlimit descriptors{};
    const rlim_t needed = (world() - 1) * lanes_ + kDescriptorsSpare;
    if (getrlimit(RLIMIT_NOFILE, &descriptors) == 0 && descriptors.rlim_cur < needed) {
      return failed(ErrorCode::resource, "size " + size + " needs " + std::to_string(needed) +
                                             " open files, the limit is " +
                                             std::to_string(descriptors.rlim_cur) + " (ulimit -n)");
    }
    job_ = hash_job(options_.job);
    established_.job = base::load_little<uint32_t>(job_.data());
    established_.peers.resize(world());
    return {};
  }

  Result<void> listen() {
    const bool interface = is_interface(options_.address);
    std::vector<std::string> addresses;
    if (interface || options_.address.empty()) {
      addresses = local_addresses(options_.address);
      if (interface && addresses.empty()) {
        return invalid("interface " + options_.address +
                       " (address or SCANT_INTERFACE) has no usable address");
      }
      // Ranks of one network namespace try loopback first; nobody else does.
      if (!interface) addresses.insert(addresses.begin(), {"127.0.0.1", "::1"});
    } else {
      addresses = {options_.address};
    }
    if (addresses.size() > kAddressesMax) addresses.resize(kAddressesMax);
    auto tcp = listen_tcp(options_.address.empty() ? "" : addresses.front(), options_.port);
    if (!tcp) {
      return failed(tcp.error().code,
                    tcp.error().message + " (address or SCANT_INTERFACE, and port)",
                    tcp.error().sys_errno);
    }
    listeners_.push_back(std::move(tcp.value().fd));
    record_.world_size = static_cast<uint32_t>(options_.size);
    record_.host = host_name();
    record_.pid = getpid();
    record_.port = tcp.value().port;
    record_.addresses = std::move(addresses);
    record_.network = network_identity();
    if (options_.same_host_sockets && !record_.network.empty()) listen_near();
    return {};
  }

  // Without the unix socket the ranks of this host use TCP.
  void listen_near() {
    const Secret random = random_secret();
    std::array<char, 33> hex{};
    sodium_bin2hex(hex.data(), hex.size(), reinterpret_cast<const unsigned char*>(random.data()),
                   16);
    const std::string name = std::string("scant-") + hex.data();
    auto listener = listen_unix(name);
    if (!listener) return;
    record_.unix_name = name;
    listeners_.push_back(std::move(listener.value().fd));
  }

  Result<void> publish() {
    if (options_.rank == 0) {
      secret_ = random_secret();
      const std::string_view value(reinterpret_cast<const char*>(secret_.data()), secret_.size());
      const auto set = store_.set_if_absent(key("secret"), value);
      if (!set) return store_failed(set.error());
      if (!set.value()) return duplicate();
    }
    const auto set =
        store_.set_if_absent(key("rank/" + std::to_string(options_.rank)), encode(record_));
    if (!set) return store_failed(set.error());
    return set.value() ? Result<void>() : duplicate();
  }

  [[nodiscard]] Error store_failed(const Error& cause) const {
    return failed(cause.code, "the rendezvous failed: " + cause.message, cause.sys_errno);
  }

  Result<void> duplicate() {
    std::string who = "another process";
    const auto text = store_.get(key("rank/" + std::to_string(options_.rank)), Duration::zero());
    if (text) {
      const auto record = decode_address_record(text.value());
      if (record)
        who = "host " + record.value().host + ", pid " + std::to_string(record.value().pid);
    }
    return invalid("this rank of job '" + options_.job + "' is registered already by " + who +
                   ": give each process its own rank, and each run an empty directory in "
                   "SCANT_STORE or a name of its own in SCANT_JOB");
  }

  Result<void> look_up() {
    const auto secret = store_.get(key("secret"), left());
    if (!secret && secret.error().code != ErrorCode::timeout) return store_failed(secret.error());
    std::vector<Rank> absent;
    for (Rank r = 0; r < options_.size; ++r) {
      // Once somebody is missing, only who else is.
      const bool waits = secret.ok() && absent.empty();
      const auto text =
          store_.get(key("rank/" + std::to_string(r)), waits ? left() : Duration::zero());
      if (text) {
        auto taken = take_record(r, text.value());
        if (!taken) return taken;
      } else if (text.error().code == ErrorCode::timeout) {
        absent.push_back(r);
      } else {
        return store_failed(text.error());
      }
    }
    if (absent.empty() && !secret) absent.push_back(0);
    if (!absent.empty()) return missing_ranks(options_.rank, world(), absent, "");
    if (secret.value().size() != secret_.size()) {
      return failed(ErrorCode::corrupt, "the job's secret in the rendezvous has a wrong length");
    }
    std::transform(secret.value().begin(), secret.value().end(), secret_.begin(),
                   [](char c) { return static_cast<std::byte>(c); });
    const auto set = store_.set_if_absent(check_key(options_.rank), fingerprint(secret_));
    return set ? Result<void>() : store_failed(set.error());
  }

  [[nodiscard]] std::string check_key(Rank rank) const {
    return key("check/" + std::to_string(rank));
  }

  Result<void> take_record(Rank rank, std::string_view text) {
    auto record = decode_address_record(text);
    if (!record) {
      return failed(record.error().code,
                    "what rank " + std::to_string(rank) + " published: " + record.error().message);
    }
    if (record.value().world_size != record_.world_size) {
      Error error =
          failed(ErrorCode::mismatch,
                 "its world size is " + std::to_string(options_.size) + ", that of rank " +
                     std::to_string(rank) + " (host " + record.value().host + ") is " +
                     std::to_string(record.value().world_size) +
                     ": start all with one WORLD_SIZE, and with an empty SCANT_STORE");
      error.peer = rank;
      return error;
    }
    established_.peers[static_cast<size_t>(rank)].record = std::move(record).value();
    return {};
  }

  Result<void> connect() {
    MeshOptions mesh;
    mesh.rank = options_.rank;
    mesh.lanes = lanes_;
    mesh.same_host_sockets = options_.same_host_sockets;
    mesh.secret = secret_;
    mesh.job = job_;
    mesh.deadline = deadline_;
    mesh.holds_another_secret = [this](Rank rank) {
      const auto check = store_.get(check_key(rank), Duration::zero());
      return check.ok() && check.value() != fingerprint(secret_);
    };
    auto built = Mesh(mesh, std::move(listeners_), std::move(established_.peers)).build();
    if (!built) return built.error();
    established_.peers = std::move(built).value();
    return {};
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
  Established established_;
};

}  // namespace

Result<Established> bootstrap_tcp(Store& store, const CommunicatorOptions& options) {
  return Bootstrap(store, options).run();
}

}  // namespace scant::net
