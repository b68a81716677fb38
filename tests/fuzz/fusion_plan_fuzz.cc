// Plans. What parses obeys the rules, is the same bytes again, and sends a finite number of bytes.
// Input: mode, then a plan's bytes.
#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "fuzz_input.h"
#include "gradient/fusion_plan.h"

using namespace scant;

namespace {

constexpr uint8_t kSealed = 1;   // magic, version, ranks, parts and checksum are put right
constexpr size_t kLayouts = 4;   // chosen by the mode's next two bits
constexpr uint8_t kFactors = 8;  // sealed as of the version that has them

const gradient::Layout& layout_of(size_t index) {
  static const auto layouts = [] {
    const std::vector<codec::Shape> several = {{1, 10}, {300, 300}, {1, 5000000}, {1, 1}};
    const std::vector<codec::Shape> one = {{1, 1}};
    const std::vector<codec::Shape> many(1000, codec::Shape{1, 3});
    std::vector<gradient::Layout> made;
    made.push_back(gradient::Layout::create(several, 4).value());
    made.push_back(gradient::Layout::create(several, 1).value());
    made.push_back(gradient::Layout::create(one, 65535).value());
    made.push_back(gradient::Layout::create(many, 9).value());
    return made;
  }();
  return layouts[index % kLayouts];
}

void seal(MutableBytes plan, uint16_t version, const gradient::Layout& layout) {
  if (plan.size() < 20) return;
  base::store_little(plan.data() + 0, gradient::kFusionPlanMagic);
  base::store_little(plan.data() + 4, version);
  base::store_little(plan.data() + 6, static_cast<uint16_t>(layout.ranks()));
  base::store_little(plan.data() + 8, static_cast<uint32_t>(layout.parts().size()));
  const size_t body = plan.size() - 4;
  base::store_little(plan.data() + body, base::crc32c(Bytes(plan).first(body)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  const gradient::Layout& layout = layout_of(mode >> 1);
  // Exactly the right size, so that a sanitizer sees a step past it.
  const size_t bytes = input.rest().size();
  const auto memory = std::make_unique<std::byte[]>(bytes);
  std::ranges::copy(std::span(data, size).last(bytes), reinterpret_cast<uint8_t*>(memory.get()));
  const MutableBytes plan(memory.get(), bytes);
  const bool factors = (mode & kFactors) != 0;
  const uint16_t version =
      factors ? gradient::kFusionPlanVersion : gradient::kPlanVersionWithoutFactors;
  if ((mode & kSealed) != 0) seal(plan, version, layout);
  const auto parsed = gradient::parse_fusion_plan(plan, layout);
  if (!parsed) {
    SCANT_CHECK(!parsed.error().message.empty());
    return 0;
  }
  SCANT_CHECK(gradient::validate(parsed.value(), layout).ok());
  SCANT_CHECK(fuzz::equal(gradient::serialise(parsed.value(), layout), plan));
  const double sent = gradient::sent_bytes(parsed.value(), layout);
  SCANT_CHECK(std::isfinite(sent) && sent >= 0);
  return 0;
}
