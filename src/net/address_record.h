// What a rank publishes at the rendezvous so that others can find and name it. Text, one field a
// line, bounded; grammar in docs/wire.md.
#pragma once

#include <string>
#include <vector>

#include "scant/base/result.h"

namespace scant::net {

inline constexpr size_t kAddressRecordBytesMax = 4096;
inline constexpr size_t kAddressesMax = 16;

struct AddressRecord {
  uint32_t world_size = 0;
  std::string host;
  int64_t pid = 0;
  uint16_t port = 0;
  std::vector<std::string> addresses;  // numeric, best first
  std::string unix_name;               // abstract; empty: none
  std::string network;                 // network_identity()
  friend bool operator==(const AddressRecord&, const AddressRecord&) = default;
};

// Unprintable characters become '?', what exceeds a bound is cut off.
[[nodiscard]] std::string encode(const AddressRecord& record);
[[nodiscard]] Result<AddressRecord> decode_address_record(std::string_view text);

}  // namespace scant::net
