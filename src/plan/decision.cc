#include "plan/decision.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/crc.h"
#include "base/fault.h"
#include "base/little_endian.h"
#include "base/version.h"

namespace scant::plan {
namespace {

constexpr uint16_t kVersion = 2;
constexpr uint16_t kWithCurves = 1;
constexpr size_t kHeaderBytes = 24;
constexpr size_t kCrcBytes = 4;
// A plan with a buffer and two points for each part.
constexpr size_t kPlanBytes = 24;
constexpr size_t kPlanPartBytes = 8 + 24;

constexpr uint32_t kSoundingMost = 64 << 20;

Error damaged(const char* what) { return base::corrupt(std::string("decision: ") + what); }

}  // namespace

size_t decision_bytes(const gradient::Layout& layout) {
  return kHeaderBytes + kPlanBytes + kPlanPartBytes * layout.parts().size() + kCrcBytes;
}

std::vector<std::byte> serialise(const Decision& decision, const gradient::Layout& layout) {
  const std::vector<std::byte> plan = serialise(decision.plan, layout);
  std::vector<std::byte> bytes(decision_bytes(layout));
  SCANT_CHECK(kHeaderBytes + plan.size() + kCrcBytes <= bytes.size());
  base::store_little(bytes.data(), kDecisionMagic);
  base::store_little(bytes.data() + 4, kVersion);
  base::store_little(bytes.data() + 6, decision.curves ? kWithCurves : uint16_t{0});
  base::store_little(bytes.data() + 8, decision.steps);
  base::store_little(bytes.data() + 12, decision.skipped);
  base::store_little(bytes.data() + 16, decision.sounding_bytes);
  base::store_little(bytes.data() + 20, static_cast<uint32_t>(plan.size()));
  std::ranges::copy(plan, bytes.begin() + kHeaderBytes);
  const size_t end = bytes.size() - kCrcBytes;
  base::store_little(bytes.data() + end, base::crc32c(Bytes(bytes).first(end)));
  return bytes;
}

Result<Decision> parse_decision(Bytes bytes, const gradient::Layout& layout) {
  if (bytes.size() != decision_bytes(layout)) return damaged("another length");
  if (base::load_little<uint32_t>(bytes.data()) != kDecisionMagic) return damaged("no such thing");
  const auto version = base::load_little<uint16_t>(bytes.data() + 4);
  if (version != kVersion) return base::other_version("the decision", version, kVersion);
  const size_t end = bytes.size() - kCrcBytes;
  if (base::load_little<uint32_t>(bytes.data() + end) != base::crc32c(bytes.first(end))) {
    return damaged("its checksum is wrong");
  }
  const auto flags = base::load_little<uint16_t>(bytes.data() + 6);
  const auto plan_bytes = base::load_little<uint32_t>(bytes.data() + 20);
  if (flags > kWithCurves) return damaged("an unknown flag");
  if (plan_bytes > end - kHeaderBytes) return damaged("a plan longer than itself");
  const Bytes rest = bytes.subspan(kHeaderBytes + plan_bytes, end - kHeaderBytes - plan_bytes);
  if (std::ranges::any_of(rest, [](std::byte one) { return one != std::byte{0}; })) {
    return damaged("something after the plan");
  }
  Result<gradient::FusionPlan> plan =
      gradient::parse_fusion_plan(bytes.subspan(kHeaderBytes, plan_bytes), layout);
  if (!plan) return plan.error();
  Decision decision{.plan = std::move(plan).value(),
                    .steps = base::load_little<uint32_t>(bytes.data() + 8),
                    .skipped = base::load_little<uint32_t>(bytes.data() + 12),
                    .curves = flags == kWithCurves,
                    .sounding_bytes = base::load_little<uint32_t>(bytes.data() + 16)};
  if (decision.sounding_bytes > kSoundingMost) return damaged("a sounding of too many bytes");
  if (decision.skipped >= decision.steps) return damaged("no step is measured");
  return decision;
}

}  // namespace scant::plan
