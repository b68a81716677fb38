// Where memory lies: of this host, of this host and within reach of a device's copies, or of a
// device. Plain values.
#pragma once

#include <cstdint>
#include <span>

namespace scant::codec {

// What a device was given on one stream happens in that order. Null: the device's own first stream.
using Stream = void*;

struct Place {
  enum class Kind : uint8_t { host, pinned, device };
  Kind kind = Kind::host;
  int ordinal = 0;          // of the device; host: 0
  Stream stream = nullptr;  // device: whoever reads comes after all that was given there before
  friend bool operator==(const Place&, const Place&) = default;
};

template <typename T>
struct Placed {
  std::span<T> memory{};
  Place place{};
};

}  // namespace scant::codec
