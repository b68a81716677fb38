// Payloads of the engine's control frames: what decodes encodes to the same bytes, except that
// control characters in a cancel's text become spaces, but for the mark of `failed`. Input: which
// decoder, its argument, payload.
#include <vector>

#include "collective/engine/control.h"
#include "fuzz_input.h"

using namespace scant;

namespace {

template <typename T>
void check_refused(const Result<T>& decoded) {
  SCANT_CHECK(decoded.error().code == ErrorCode::corrupt && !decoded.error().message.empty());
}

void cancel(Bytes payload) {
  const auto decoded = collective::decode_cancel(payload);
  if (!decoded) return check_refused(decoded);
  std::vector<std::byte> expected(payload.begin(), payload.end());
  const bool marked = decoded.value().error.code == ErrorCode::failed;
  std::replace_if(
      expected.begin() + 12, expected.end() - (marked ? 1 : 0),
      [](std::byte b) { return b < std::byte{0x20} || b == std::byte{0x7F}; }, std::byte{' '});
  SCANT_CHECK(fuzz::equal(collective::encode_cancel(decoded.value().error), expected));
}

void proposal(Bytes payload, size_t stations) {
  const auto decoded = collective::decode_proposal(payload, stations);
  if (!decoded) return check_refused(decoded);
  SCANT_CHECK(decoded.value().live.size() == stations);
  SCANT_CHECK(fuzz::equal(collective::encode_proposal(decoded.value()), payload));
  SCANT_CHECK(payload.size() <= collective::kControlPayloadBytesMax);
  SCANT_CHECK(!collective::decode_proposal(payload, stations + 1).ok());
}

// Any descriptor off the wire makes one short printable sentence.
void descriptor(fuzz::Input& input) {
  net::CallDescriptor call;
  call.kind = input.byte();
  call.dtype = input.byte();
  call.reduce = input.byte();
  call.algorithm = input.byte();
  call.root = input.half();
  call.group_size = input.half();
  for (int shift = 0; shift < 64; shift += 8) call.bytes |= uint64_t{input.byte()} << shift;
  const std::string text = collective::describe(call, true);
  SCANT_CHECK(!text.empty() && text.size() < 160);
  SCANT_CHECK(std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7F; }));
  SCANT_CHECK(text.starts_with(collective::describe(call, false)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  switch (input.byte() % 3) {
    case 0:
      cancel(input.rest());
      break;
    case 1: {
      const size_t stations = input.half();
      proposal(input.rest(), stations);
      break;
    }
    default:
      descriptor(input);
  }
  return 0;
}
