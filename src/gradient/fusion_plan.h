// Which parts travel together, how, and at which points of the codec's plane. A plain value with
// one meaning as bytes; all ranks use the same one in every step. docs/gradients.md, "Plan".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/point.h"
#include "gradient/layout.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::gradient {

enum class Path : uint8_t { all_reduce = 0, split = 1, gather = 2 };
inline constexpr int kPathCount = 3;
[[nodiscard]] const char* name(Path path);
[[nodiscard]] std::optional<Path> path_of(std::string_view name);

inline constexpr codec::Point kNoSecondLeg{1.0, codec::ValueKind::f32};

// With factors both points of `split` have one rank, and both have a rest or none.
struct PartPlan {
  codec::Point first = {};   // what each rank sends of its gradient
  codec::Point second = {};  // split: what the owner sends of the average; else none
  friend bool operator==(const PartPlan&, const PartPlan&) = default;
};

struct BufferPlan {
  uint32_t first_part = 0;
  uint32_t parts = 0;
  Path path = Path::all_reduce;
  std::vector<PartPlan> points = {};  // one a part; all_reduce: none
  friend bool operator==(const BufferPlan&, const BufferPlan&) = default;
};

struct FusionPlan {
  std::vector<BufferPlan> buffers;
  uint32_t reversed = 0;  // so many of the last take their turns in the opposite order; never 1
  friend bool operator==(const FusionPlan&, const FusionPlan&) = default;
};

inline constexpr uint32_t kFusionPlanMagic = 0x4C504353;  // "SCPL" in memory
// Plans without factors are written as version 2, as they always were.
inline constexpr uint16_t kFusionPlanVersion = 3;
inline constexpr uint16_t kPlanVersionWithoutFactors = 2;

// Whether the plan obeys the rules of the document for this layout; the error names buffer and
// part.
[[nodiscard]] Result<void> validate(const FusionPlan& plan, const Layout& layout);
[[nodiscard]] std::vector<std::byte> serialise(const FusionPlan& plan, const Layout& layout);
// Checks everything, validate() included. ErrorCode::corrupt, unsupported (version), mismatch
// (ranks or parts of another layout).
[[nodiscard]] Result<FusionPlan> parse_fusion_plan(Bytes bytes, const Layout& layout);
// The buffer whose turn it is, `turn` counted from 0.
[[nodiscard]] uint32_t buffer_at(const FusionPlan& plan, uint32_t turn);
// What ranks compare.
[[nodiscard]] uint64_t hash_of(Bytes serialised);

// codec::point_for() of a part.
[[nodiscard]] codec::Point point_for(codec::Point wanted, uint32_t part, const Layout& layout);
// Bytes of both factors of a part as records.
[[nodiscard]] double factor_bytes(uint32_t part, codec::Point point, const Layout& layout);

// One path and point for everything, buffers closed once they have at least `buffer_bytes` of f32
// (a count of tensors by the time that it is a plan).
struct UniformPlan {
  Path path = Path::all_reduce;
  codec::Point point = {};
  uint64_t buffer_bytes = uint64_t{25} << 20;
  uint64_t first_buffer_bytes = uint64_t{1} << 20;  // so that the first can go early
  // Parts of at most so many elements keep density 1 (values of at least bf16): below, positions
  // and headers cost more than they save. By row, so do tensors of one row.
  uint64_t small_elements = 2048;
};
[[nodiscard]] FusionPlan uniform_plan(const UniformPlan& wanted, const Layout& layout);

// Bytes that one rank sends in a step by this plan; records of density below 1 are estimated.
[[nodiscard]] double sent_bytes(const FusionPlan& plan, const Layout& layout);

}  // namespace scant::gradient
