// Sockets as owned descriptors, and the few calls the transport makes on them. No policy here.
#pragma once

#include <string>
#include <sys/socket.h>
#include <vector>

#include "base/descriptor.h"
#include "scant/base/result.h"

namespace scant::net {

using Fd = base::Descriptor;

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  [[nodiscard]] int family() const { return storage.ss_family; }
};

[[nodiscard]] Result<SocketAddress> ip_address(const std::string& host, uint16_t port);
[[nodiscard]] SocketAddress unix_address(const std::string& abstract_name);

struct Listener {
  Fd fd;
  uint16_t port = 0;  // 0 for unix sockets
};

// `host` empty: every address of this machine, IPv6 and IPv4 where both exist.
[[nodiscard]] Result<Listener> listen_tcp(const std::string& host, uint16_t port);
[[nodiscard]] Result<Listener> listen_unix(const std::string& abstract_name);
// Begins a connection; it is established or refused when the descriptor becomes writable.
[[nodiscard]] Result<Fd> begin_connect(const SocketAddress& address);
[[nodiscard]] int pending_error(int fd);
// Who is at the other end: "10.0.0.2:4711", "[fd00::2]:4711", or "?" when it is gone.
[[nodiscard]] std::string peer_address(int fd);
// No delay, keep-alive, buffers: what every connection between ranks wants.
void tune(int fd, int family);

// Addresses of this machine that others may reach: global ones, without loopback. With `interface`:
// of that one only.
[[nodiscard]] std::vector<std::string> local_addresses(const std::string& interface);
[[nodiscard]] bool is_interface(const std::string& name);
[[nodiscard]] std::string host_name();
// Equal for two processes exactly when they share a kernel and a network namespace.
[[nodiscard]] std::string network_identity();

}  // namespace scant::net
