// Datagrams: what decodes encodes to the same bytes and keeps the bounds of its piece. Input: one
// byte that says whether the checksum is put right, then the datagram.
#include <vector>

#include "base/bytes.h"
#include "base/crc.h"
#include "fuzz_input.h"
#include "net/datagram.h"

using namespace scant;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const bool seals = input.byte() % 2 == 1;
  std::vector<std::byte> bytes(input.rest().begin(), input.rest().end());
  if (seals && bytes.size() >= net::kDatagramCrcBytes) {
    const size_t covered = bytes.size() - net::kDatagramCrcBytes;
    base::ByteWriter(MutableBytes(bytes).subspan(covered))
        .put(base::crc32c(Bytes(bytes).first(covered)));
  }
  const auto decoded = net::decode_datagram(bytes);
  if (!decoded) {
    SCANT_CHECK(decoded.error().code == ErrorCode::corrupt && !decoded.error().message.empty());
    return 0;
  }
  const net::Datagram& datagram = decoded.value();
  SCANT_CHECK(fuzz::equal(encode(datagram), bytes));
  SCANT_CHECK(bytes.size() <= net::kDatagramBytesMax);
  if (datagram.kind == net::DatagramKind::data) {
    SCANT_CHECK(uint64_t{datagram.offset} + datagram.piece.size() <= datagram.total);
  }
  return 0;
}
