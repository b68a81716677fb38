// Thin wrappers over the socket calls; errors keep errno.
#include "net/socket.h"

#include <arpa/inet.h>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

namespace scant::net {
namespace {

constexpr int kBacklog = 1024;  // every rank may connect at once
constexpr int kUnixBufferBytes =
    1 << 20;  // the default of 208 KiB stalls a sender of 256 KiB segments

Error failed(const std::string& what) { return Error{ErrorCode::io, errno, kNoRank, what}; }

void set_option(int fd, int level, int option, int value) {
  // Tuning only: a kernel that lacks the option still carries the bytes.
  static_cast<void>(setsockopt(fd, level, option, &value, sizeof(value)));
}

uint16_t bound_port(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return 0;
  if (storage.ss_family == AF_INET)
    return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
  if (storage.ss_family == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
  return 0;
}

Result<Listener> listen_on(const SocketAddress& address, const std::string& what) {
  Listener listener;
  listener.fd = Fd(socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!listener.fd.open()) return failed("cannot open a socket for " + what);
  if (address.family() == AF_INET6) set_option(listener.fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(listener.fd.get(), reinterpret_cast<const sockaddr*>(&address.storage),
           address.length) != 0) {
    return failed("cannot bind " + what);
  }
  if (::listen(listener.fd.get(), kBacklog) != 0) return failed("cannot listen on " + what);
  listener.port = bound_port(listener.fd.get());
  return listener;
}

}  // namespace

Result<SocketAddress> ip_address(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0 ||
      found == nullptr) {
    return Error{ErrorCode::invalid_argument, 0, kNoRank,
                 "'" + host + "' is neither a numeric address nor an interface of this host"};
  }
  SocketAddress address;
  std::memcpy(&address.storage, found->ai_addr, found->ai_addrlen);
  address.length = found->ai_addrlen;
  freeaddrinfo(found);
  return address;
}

SocketAddress unix_address(const std::string& abstract_name) {
  SocketAddress address;
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  un->sun_family = AF_UNIX;
  const size_t length = std::min(abstract_name.size(), sizeof(un->sun_path) - 1);
  std::memcpy(un->sun_path + 1, abstract_name.data(),
              length);  // the leading zero byte makes it abstract
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return address;
}

Result<Listener> listen_tcp(const std::string& host, uint16_t port) {
  const std::string what = (host.empty() ? "any address" : host) + " port " + std::to_string(port);
  if (!host.empty()) {
    const auto address = ip_address(host, port);
    if (!address) return address.error();
    return listen_on(address.value(), what);
  }
  auto both = listen_on(ip_address("::", port).value(), what);
  if (both || (both.error().sys_errno != EAFNOSUPPORT && both.error().sys_errno != EADDRNOTAVAIL))
    return both;
  return listen_on(ip_address("0.0.0.0", port).value(), what);
}

Result<Listener> listen_unix(const std::string& abstract_name) {
  return listen_on(unix_address(abstract_name), "a unix socket");
}

Result<Fd> begin_connect(const SocketAddress& address) {
  Fd fd(socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.open()) return failed("cannot open a socket");
  tune(fd.get(), address.family());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.length) !=
          0 &&
      errno != EINPROGRESS) {
    return failed("cannot connect");
  }
  return fd;
}

int pending_error(int fd) {
  int error = 0;
  socklen_t length = sizeof(error);
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return errno;
  return error;
}

std::string peer_address(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  std::array<char, NI_MAXHOST> host{};
  std::array<char, NI_MAXSERV> port{};
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0 ||
      getnameinfo(reinterpret_cast<const sockaddr*>(&storage), length, host.data(), host.size(),
                  port.data(), port.size(), NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "?";
  }
  std::string address = host.data();
  constexpr std::string_view kMapped = "::ffff:";  // IPv4 at a socket of both families
  if (address.starts_with(kMapped)) address.erase(0, kMapped.size());
  const bool is_v6 = address.find(':') != std::string::npos;
  return (is_v6 ? "[" + address + "]:" : address + ":") + port.data();
}

void tune(int fd, int family) {
  if (family == AF_UNIX) {
    set_option(fd, SOL_SOCKET, SO_SNDBUF, kUnixBufferBytes);
    return;
  }
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

bool is_interface(const std::string& name) {
  return !name.empty() && if_nametoindex(name.c_str()) != 0;
}

std::vector<std::string> local_addresses(const std::string& interface) {
  std::vector<std::string> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || (entry->ifa_flags & IFF_UP) == 0) continue;
    const bool wanted =
        interface.empty() ? (entry->ifa_flags & IFF_LOOPBACK) == 0 : interface == entry->ifa_name;
    const int family = entry->ifa_addr->sa_family;
    if (!wanted || (family != AF_INET && family != AF_INET6)) continue;
    if (family == AF_INET6 &&
        IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr)) {
      continue;  // without a scope nobody else can use it
    }
    std::array<char, NI_MAXHOST> host{};
    const auto length =
        static_cast<socklen_t>(family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    if (getnameinfo(entry->ifa_addr, length, host.data(), host.size(), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      addresses.emplace_back(host.data());
    }
  }
  freeifaddrs(list);
  return addresses;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

std::string network_identity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  struct stat info {};
  if (boot.empty() || stat("/proc/self/ns/net", &info) != 0) return {};
  return boot + ":" + std::to_string(info.st_ino);
}

}  // namespace scant::net
