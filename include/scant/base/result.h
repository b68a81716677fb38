// Result<T> and the closed list of errors that every Scant call can return.
// Values are copied or moved; nothing here allocates except an error's message.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace scant {

using Rank = int32_t;
inline constexpr Rank kNoRank = -1;

// docs/errors.md explains each code, what causes it and what a caller can do.
enum class ErrorCode : uint8_t {
  invalid_argument,  // this rank's call is wrong: size, dtype, root, options
  mismatch,          // ranks disagree: operation, size, dtype, world size
  peer_lost,         // a peer died, stopped or became unreachable
  timeout,           // a deadline passed while every needed peer was alive
  refused,           // the job's secret or another check of who may enter failed
  corrupt,           // bytes failed a checksum, a length or a version check
  resource,          // memory, descriptors, disk or a bounded queue ran out
  io,                // the operating system refused; see sys_errno
  closed,            // the communicator was shut down or aborted
  unsupported,       // a valid request that this build or backend cannot serve
  failed,            // a peer's program ended by an error, which the message repeats
};
inline constexpr int kErrorCodeCount = 11;

[[nodiscard]] const char* name(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::io;
  int sys_errno = 0;    // 0 when the operating system is not the cause
  Rank peer = kNoRank;  // the rank to blame, in the communicator's numbering
  std::string message;  // one sentence, names the argument or the peer

  // "peer_lost: rank 2 (host b, pid 71) ...: Connection reset by peer"
  [[nodiscard]] std::string to_string() const;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor): `return value;` and `return error;` are the point
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  // NOLINTNEXTLINE(google-explicit-constructor): `return value;` and `return error;` are the point
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  [[nodiscard]] bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] T& value() & { return std::get<0>(state_); }
  [[nodiscard]] const T& value() const& { return std::get<0>(state_); }
  [[nodiscard]] T&& value() && { return std::get<0>(std::move(state_)); }
  [[nodiscard]] const Error& error() const { return std::get<1>(state_); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  // NOLINTNEXTLINE(google-explicit-constructor): `return value;` and `return error;` are the point
  Result(Error error) : error_(std::move(error)) {}

  [[nodiscard]] bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  [[nodiscard]] const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

}  // namespace scant
