// Test support: a peer made of a plain socket, which can do what no transport would do.
#pragma once

#include <string>
#include <vector>

#include "net/address_record.h"
#include "net/frame.h"
#include "net/handshake.h"
#include "net/socket.h"
#include "scant/collective/store.h"

namespace scant::net {

class RawPeer {
 public:
  // Connects to 127.0.0.1; waits for the connection.
  explicit RawPeer(uint16_t port);
  explicit RawPeer(Fd fd) : fd_(std::move(fd)) {}

  void write(Bytes bytes);
  // Up to `count` bytes; fewer when the other end closes or nothing comes for `patience_ms`.
  [[nodiscard]] std::vector<std::byte> read(size_t count, int patience_ms = 20'000);
  // True when the other end closed without sending another byte.
  [[nodiscard]] bool closed_silently();
  void close() { fd_.close(); }
  [[nodiscard]] int fd() const { return fd_.get(); }

  // Runs a handshake to its end; what was written is kept in `written`.
  Result<void> shake(Handshake handshake);
  std::vector<std::vector<std::byte>> written;

 private:
  Fd fd_;
};

[[nodiscard]] AddressRecord record_of(Store& store, const std::string& job, Rank rank);
[[nodiscard]] Secret secret_of(Store& store, const std::string& job);
// An encoded frame with its payload, as a connection would send it as frame `sequence`.
[[nodiscard]] std::vector<std::byte> frame_bytes(FrameHeader header, Bytes payload,
                                                 const std::string& job, uint64_t sequence);

}  // namespace scant::net
