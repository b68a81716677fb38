// Saved encoders. What restores saves to the same bytes, and takes a step whose record is valid.
// Input: mode, saved bytes.
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/encoder.h"
#include "fuzz_input.h"

using namespace scant;

namespace {

constexpr uint8_t kSealed = 1;  // magic, version and checksum are put right
constexpr uint64_t kElementsMax = 1 << 16;

void seal(std::vector<std::byte>& saved) {
  if (saved.size() < 12) return;
  base::store_little(saved.data(), uint32_t{0x53524353});
  base::store_little(saved.data() + 4, uint8_t{1});
  const size_t body = saved.size() - 4;
  base::store_little(saved.data() + body, base::crc32c(Bytes(saved).first(body)));
}

void take_a_step(codec::Encoder& encoder) {
  const std::vector<float> gradient(encoder.range().elements, 0.25f);
  codec::Workspace workspace;
  codec::RecordBuffer record;
  for (const codec::Point point :
       {codec::Point{0.05, codec::ValueKind::q3}, codec::Point{1.0, codec::ValueKind::q4}}) {
    const auto report = encoder.encode(gradient, point, workspace, record);
    SCANT_CHECK(report.ok());
    const auto parsed = codec::RecordView::parse(record.view());
    SCANT_CHECK(parsed.ok() && parsed.value().entries() == report.value().entries);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  std::vector<std::byte> saved(input.rest().begin(), input.rest().end());
  if ((mode & kSealed) != 0) seal(saved);
  auto restored = codec::Encoder::restore(saved);
  if (!restored) {
    SCANT_CHECK(!restored.error().message.empty());
    return 0;
  }
  SCANT_CHECK(fuzz::equal(restored.value().save(), saved));
  if (restored.value().range().elements <= kElementsMax) take_a_step(restored.value());
  return 0;
}
