// Records back to floats: P of them added in the order given, weighted, tile by tile within the
// cache. The bits depend on the records and their order alone. One owner thread; the workspace's
// workers share the tiles.
#pragma once

#include <span>

#include "codec/range.h"
#include "codec/record/record.h"
#include "codec/workspace.h"
#include "scant/base/result.h"

namespace scant::codec {

// What each member's record counts in the mean of `members`; who sent none has zeros.
[[nodiscard]] constexpr float mean_weight(uint32_t members) {
  return 1.0f / static_cast<float>(members);
}

// out[i] = weight * (((0 + r0[i]) + r1[i]) + ...), for the tensor's elements [first, first +
// out.size()): the whole or a slice. Every record is of this tensor and shape and covers the range;
// else ErrorCode::mismatch, and `out` is untouched. `absent`: empty, or for each record the ranges
// of it that are not added, as if it held zeros there; they ascend, lie apart and within the
// record, else ErrorCode::invalid_argument.
[[nodiscard]] Result<void> accumulate(std::span<const RecordView> records, uint32_t tensor,
                                      Shape shape, uint64_t first, std::span<float> out,
                                      float weight, Workspace& workspace,
                                      std::span<const std::span<const Range>> absent = {});

}  // namespace scant::codec
