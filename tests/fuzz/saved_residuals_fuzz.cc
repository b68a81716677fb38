// Saved residuals and directions. What restores is saved again as something that restores to the
// same. Input: mode, saved bytes.
#include <memory>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "fuzz_input.h"
#include "gradient/gradient_step.h"

using namespace scant;

namespace {

constexpr uint8_t kSealed = 1;             // magic, version, ranks, rank and checksum are put right
constexpr uint8_t kWithoutDirections = 2;  // sealed as of the version before them
constexpr int kRanks = 2;

void seal(std::vector<std::byte>& saved, uint32_t version) {
  if (saved.size() < 28) return;
  base::store_little(saved.data(), uint32_t{0x52474353});
  base::store_little(saved.data() + 4, version);
  base::store_little(saved.data() + 8, uint32_t{kRanks});
  base::store_little(saved.data() + 12, uint32_t{0});
  const size_t body = saved.size() - 4;
  base::store_little(saved.data() + body, base::crc32c(Bytes(saved).first(body)));
}

std::unique_ptr<gradient::GradientStep> make_step() {
  const std::vector<codec::Shape> shapes = {{1, 10}, {8, 16}, {3, 64}};
  auto layout = gradient::Layout::create(shapes, kRanks);
  auto step =
      gradient::GradientStep::create(std::move(layout).value(), {}, gradient::everyone(kRanks, 0));
  return std::move(step).value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  std::vector<std::byte> saved(input.rest().begin(), input.rest().end());
  if ((mode & kSealed) != 0) seal(saved, (mode & kWithoutDirections) != 0 ? 1 : 2);
  const auto step = make_step();
  if (const Result<void> restored = step->restore(saved); !restored) {
    SCANT_CHECK(!restored.error().message.empty());
    return 0;
  }
  const auto again = make_step();
  const std::vector<std::byte> first = step->save().value();
  SCANT_CHECK(again->restore(first).ok());
  SCANT_CHECK(again->save().value() == first);
  return 0;
}
