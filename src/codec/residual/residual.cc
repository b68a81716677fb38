#include "codec/residual/residual.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "base/check.h"
#include "codec/kernels/kernels.h"

namespace scant::codec {
namespace {

constexpr std::array<const char*, kResidualKindCount> kNames = {"none", "f32", "bf16", "i8"};

size_t bytes_of_element(ResidualKind kind) {
  constexpr std::array<size_t, kResidualKindCount> kBytes = {0, 4, 2, 1};
  return kBytes[static_cast<size_t>(kind)];
}

constexpr uint64_t groups(uint64_t elements) {
  return (elements + kGroupElements - 1) / kGroupElements;
}

Error no_memory_for(uint64_t elements) {
  return Error{.code = ErrorCode::resource,
               .message = "no memory for a residual of " + std::to_string(elements) +
                          " elements: free some, or keep the residual as bf16 or i8"};
}

}  // namespace

const char* name(ResidualKind kind) {
  return static_cast<size_t>(kind) < kNames.size() ? kNames[static_cast<size_t>(kind)] : "?";
}

std::optional<ResidualKind> residual_kind(std::string_view text) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (text == kNames[i]) return static_cast<ResidualKind>(i);
  }
  return std::nullopt;
}

Result<ResidualStore> ResidualStore::create(ResidualKind kind, uint64_t first, uint64_t count) {
  SCANT_CHECK(first % kGroupElements == 0);
  const size_t element = bytes_of_element(kind);
  if (element > 0 && count > SIZE_MAX / element) return no_memory_for(count);
  Result<base::Buffer> data = base::Buffer::allocate(count * element);
  if (!data) return no_memory_for(count);
  const uint64_t scales = kind == ResidualKind::i8 ? groups(count) : 0;
  Result<base::Buffer> scale_memory = base::Buffer::allocate(scales * sizeof(uint16_t));
  if (!scale_memory) return no_memory_for(count);
  return ResidualStore(kind, first, count, std::move(data).value(),
                       std::move(scale_memory).value());
}

ResidualStore::ResidualStore(ResidualKind kind, uint64_t first, uint64_t count, base::Buffer data,
                             base::Buffer scales)
    : kind_(kind),
      first_(first),
      count_(count),
      data_(std::move(data)),
      scale_memory_(std::move(scales)),
      scales_(reinterpret_cast<uint16_t*>(scale_memory_.data()),
              scale_memory_.size() / sizeof(uint16_t)) {
  clear();
}

void ResidualStore::clear() {
  std::ranges::fill(data_.view(), std::byte{0});
  std::ranges::fill(scales_, uint16_t{0});
}

size_t ResidualStore::element_bytes() const { return bytes_of_element(kind_); }

float* ResidualStore::in_place() {
  return kind_ == ResidualKind::f32 ? reinterpret_cast<float*>(data_.data()) : nullptr;
}

const float* ResidualStore::in_place() const {
  return kind_ == ResidualKind::f32 ? reinterpret_cast<const float*>(data_.data()) : nullptr;
}

void ResidualStore::load(uint64_t first, size_t count, float* work) const {
  SCANT_CHECK(first >= first_ && first + count <= first_ + count_);
  const size_t at = first - first_;
  switch (kind_) {
    case ResidualKind::none:
      std::fill_n(work, count, 0.0f);
      return;
    case ResidualKind::f32:
      std::copy_n(reinterpret_cast<const float*>(data_.data()) + at, count, work);
      return;
    case ResidualKind::bf16:
      kernels().load_bf16(reinterpret_cast<const uint16_t*>(data_.data()) + at, count, work);
      return;
    case ResidualKind::i8:
      break;
  }
  SCANT_CHECK(at % kGroupElements == 0);
  kernels().load_i8(reinterpret_cast<const int8_t*>(data_.data()) + at,
                    scales_.data() + at / kGroupElements, count, work);
}

ResidualStore::Levels ResidualStore::levels(uint64_t first) const {
  SCANT_CHECK(kind_ == ResidualKind::i8 && first >= first_ && first % kGroupElements == 0);
  const size_t at = first - first_;
  return {reinterpret_cast<const int8_t*>(data_.data()) + at, scales_.data() + at / kGroupElements};
}

void ResidualStore::store(uint64_t first, size_t count, const float* work, DrawKey key) {
  SCANT_CHECK(first >= first_ && first + count <= first_ + count_);
  const size_t at = first - first_;
  switch (kind_) {
    case ResidualKind::none:
      return;
    case ResidualKind::f32:
      std::copy_n(work, count, in_place() + at);
      return;
    case ResidualKind::bf16:
      kernels().store_bf16(work, count, key, reinterpret_cast<uint16_t*>(data_.data()) + at);
      return;
    case ResidualKind::i8:
      break;
  }
  SCANT_CHECK(at % kGroupElements == 0 &&
              ((at + count) % kGroupElements == 0 || at + count == count_));
  kernels().store_i8(work, count, key, reinterpret_cast<int8_t*>(data_.data()) + at,
                     scales_.data() + at / kGroupElements);
}

bool ResidualStore::is_zero(uint64_t begin, uint64_t end) const {
  const size_t size = bytes_of_element(kind_);
  const Bytes part = data_.view().subspan((begin - first_) * size, (end - begin) * size);
  return std::all_of(part.begin(), part.end(), [](std::byte b) { return b == std::byte{0}; });
}

void ResidualStore::copy_group(const ResidualStore& other, uint64_t begin, uint64_t end) {
  const size_t size = bytes_of_element(kind_);
  std::memcpy(data_.data() + (begin - first_) * size,
              other.data_.data() + (begin - other.first_) * size, (end - begin) * size);
  if (kind_ == ResidualKind::i8) {
    scales_[(begin - first_) / kGroupElements] =
        other.scales_[(begin - other.first_) / kGroupElements];
  }
}

void ResidualStore::merge(const ResidualStore& other, DrawKey key) {
  const uint64_t begin = std::max(first_, other.first_);
  const uint64_t end = std::min(first_ + count_, other.first_ + other.count_);
  if (kind_ == ResidualKind::none || other.kind_ == ResidualKind::none) return;
  std::array<float, kGroupElements> own{};
  std::array<float, kGroupElements> theirs{};
  for (uint64_t group = begin; group < end; group += kGroupElements) {
    const uint64_t group_end = std::min(group + kGroupElements, first_ + count_);
    const uint64_t both_end = std::min(group_end, end);
    if (kind_ == other.kind_ && both_end == group_end && is_zero(group, group_end)) {
      copy_group(other, group, group_end);
      continue;
    }
    load(group, group_end - group, own.data());
    other.load(group, both_end - group, theirs.data());
    for (uint64_t i = 0; i < both_end - group; ++i) own[i] = finite_sum(own[i], theirs[i]);
    // Each group has draws of its own.
    store(group, group_end - group, own.data(), {key.add + static_cast<uint32_t>(group), key.flip});
  }
}

}  // namespace scant::codec
