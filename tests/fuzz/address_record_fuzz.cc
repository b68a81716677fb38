// Address records: what decodes keeps the documented bounds and survives another round trip in the
// canonical form. Unknown keys are skipped, so the first form may differ from the canonical one.
#include <string>
#include <string_view>

#include "fuzz_input.h"
#include "net/address_record.h"

using scant::net::AddressRecord;

namespace {

void check_bounds(const AddressRecord& record) {
  SCANT_CHECK(record.world_size > 0);
  SCANT_CHECK(record.addresses.size() <= scant::net::kAddressesMax);
  const auto printable = [](const std::string& text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7F; });
  };
  SCANT_CHECK(printable(record.host) && printable(record.unix_name) && printable(record.network));
  for (const auto& address : record.addresses) SCANT_CHECK(printable(address));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto decoded =
      scant::net::decode_address_record({reinterpret_cast<const char*>(data), size});
  if (!decoded) {
    SCANT_CHECK(decoded.error().code == scant::ErrorCode::corrupt);
    SCANT_CHECK(!decoded.error().message.empty());
    return 0;
  }
  check_bounds(decoded.value());
  const std::string canonical = encode(decoded.value());
  const auto again = scant::net::decode_address_record(canonical);
  SCANT_CHECK(again.ok(), "the canonical form of a record does not decode");
  SCANT_CHECK(again.value() == decoded.value());
  SCANT_CHECK(encode(again.value()) == canonical);
  return 0;
}
