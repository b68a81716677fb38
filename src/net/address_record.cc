// Text form of an address record.
#include "net/address_record.h"

#include <algorithm>
#include <charconv>

#include "base/fault.h"

namespace scant::net {
namespace {

constexpr std::string_view kFirstLine = "scant 1";
constexpr size_t kFieldBytesMax = 256;
constexpr size_t kAddressBytesMax = 64;  // numeric, with the name of an interface
// Whatever the fields hold, the encoding is one that decodes.
static_assert(3 * (kFieldBytesMax + 16) + kAddressesMax * (kAddressBytesMax + 16) + 128 <=
              kAddressRecordBytesMax);

Error corrupt(const std::string& what) { return base::corrupt("address record: " + what); }

bool printable(char c) { return c >= 0x20 && c < 0x7F; }

template <typename T>
bool parse(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool apply(AddressRecord& record, std::string_view key, std::string_view value) {
  if (key == "size") return parse(value, record.world_size);
  if (key == "pid") return parse(value, record.pid);
  if (key == "port") return parse(value, record.port);
  if (key == "host") return record.host = value, true;
  if (key == "unix") return record.unix_name = value, true;
  if (key == "network") return record.network = value, true;
  if (key == "address") {
    record.addresses.emplace_back(value);
    return value.size() <= kAddressBytesMax && record.addresses.size() <= kAddressesMax;
  }
  return true;  // a later version may say more
}

}  // namespace

std::string encode(const AddressRecord& record) {
  std::string text(kFirstLine);
  const auto line = [&text](std::string_view key, std::string_view value) {
    text.append("\n").append(key).append(" ");
    for (const char c : value.substr(0, kFieldBytesMax)) text += printable(c) ? c : '?';
  };
  line("size", std::to_string(record.world_size));
  line("host", record.host);
  line("pid", std::to_string(record.pid));
  line("port", std::to_string(record.port));
  if (!record.unix_name.empty()) line("unix", record.unix_name);
  if (!record.network.empty()) line("network", record.network);
  const size_t addresses = std::min(record.addresses.size(), kAddressesMax);
  for (size_t i = 0; i < addresses; ++i) {
    line("address", std::string_view(record.addresses[i]).substr(0, kAddressBytesMax));
  }
  return text;
}

Result<AddressRecord> decode_address_record(std::string_view text) {
  if (text.size() > kAddressRecordBytesMax) return corrupt("too long");
  AddressRecord record;
  bool first = true;
  while (!text.empty() || first) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    if (first) {
      if (line != kFirstLine) return corrupt("not of this version");
      first = false;
      continue;
    }
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || !std::all_of(line.begin(), line.end(), printable)) {
      return corrupt("malformed line");
    }
    const std::string_view value = line.substr(space + 1);
    if (value.size() > kFieldBytesMax || !apply(record, line.substr(0, space), value)) {
      return corrupt("malformed value");
    }
  }
  if (record.world_size == 0) return corrupt("no world size");
  return record;
}

}  // namespace scant::net
