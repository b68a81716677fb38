#include "gradient/round_factors.h"

#include <algorithm>
#include <string>

#include "base/fault.h"
#include "base/little_endian.h"

namespace scant::gradient {

codec::Factors& RoundFactors::factors_of(uint32_t part) {
  const PartLayout& known = layout_.parts()[part];
  const codec::Shape shape = layout_.tensors()[known.tensor].shape;
  return known_.try_emplace(part, shape, known.range, codec::kDirectionsSeed + part).first->second;
}

Result<void> RoundFactors::prepare(const SliceTable& table) {
  for (std::vector<float>* array : {&values_, &sent_, &unsent_, &lost_}) {
    array->resize(table.factor_elements());
  }
  if (!table.matrices().empty()) encoded.resize(layout_.slices().size());
  for (const MatrixPart& matrix : table.matrices()) {
    if (Result<void> set = factors_of(matrix.part).set_rank(matrix.rank); !set) return set;
  }
  return {};
}

void RoundFactors::begin() {
  std::ranges::fill(unsent_, 0.0f);
  std::ranges::fill(lost_, 0.0f);
  encoded.assign(encoded.size(), false);
}

Result<void> RoundFactors::restore(Bytes saved) {
  constexpr size_t kHead = kSavedHeadBytes;
  const auto wrong = [] { return base::corrupt("saved residuals: directions are damaged"); };
  if (saved.size() < kHead || (saved.size() - kHead) % sizeof(float) != 0) return wrong();
  const auto part = base::load_little<uint32_t>(saved.data());
  const auto rank = base::load_little<uint32_t>(saved.data() + 4);
  const auto drawn = base::load_little<uint64_t>(saved.data() + 8);
  if (part >= layout_.parts().size() || rank > layout_.rank_max(part)) {
    return Error{.code = ErrorCode::mismatch,
                 .message = "saved residuals: directions of part " + std::to_string(part) +
                            " are of another model"};
  }
  std::vector<float> directions((saved.size() - kHead) / sizeof(float));
  std::ranges::copy(saved.subspan(kHead), std::as_writable_bytes(std::span(directions)).begin());
  if (!factors_of(part).restore_directions(rank, drawn, directions)) return wrong();
  return {};
}

size_t RoundFactors::memory_bytes() const {
  size_t bytes = 0;
  for (const auto* array : {&values_, &sent_, &unsent_, &lost_}) {
    bytes += array->capacity() * sizeof(float);
  }
  for (const auto& [part, factors] : known_) bytes += factors.memory_bytes();
  return bytes;
}

uint64_t RoundFactors::scratch_elements(const SliceTable& table) const {
  uint64_t most = 0;
  for (const MatrixPart& matrix : table.matrices()) {
    most = std::max(most, matrix.left_elements + 2 * matrix.right_elements);
  }
  return most;
}

}  // namespace scant::gradient
