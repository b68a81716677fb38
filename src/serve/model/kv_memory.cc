#include "serve/model/kv_memory.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "codec/quantise/rounding.h"

namespace scant::serve {
namespace {

constexpr uint64_t kScaleBytes = 2 * kPageTokens * sizeof(float);  // of keys, then of values
constexpr float kCodeMax = 127;

uint64_t unit(KvKind kind) {
  return kind == KvKind::f32 ? sizeof(float) : kind == KvKind::bf16 ? sizeof(uint16_t) : 1;
}
uint64_t head_bytes(uint64_t head_size, KvKind kind) {
  return (kind == KvKind::q8 ? kScaleBytes : 0) + 2 * kPageTokens * head_size * unit(kind);
}

// Codes `step` apart. Returns the scale; NaN, with codes of 0, where a value is not finite.
float store_q8(const float* from, size_t n, int8_t* to, size_t step) {
  uint32_t largest_bits = 0;
  for (size_t i = 0; i < n; ++i)
    largest_bits = std::max(largest_bits, codec::magnitude_bits(from[i]));
  const auto largest = std::bit_cast<float>(largest_bits);
  const float by = largest > 0 ? kCodeMax / largest : 0;  // infinite where `largest` is subnormal
  if (largest_bits >= codec::kInfinityBits || !std::isfinite(by)) {
    for (size_t i = 0; i < n; ++i) to[i * step] = 0;
    return largest_bits >= codec::kInfinityBits ? NAN : 0.0f;
  }
  for (size_t i = 0; i < n; ++i)
    to[i * step] = static_cast<int8_t>(std::clamp(std::nearbyint(from[i] * by), -127.0f, 127.0f));
  return largest / kCodeMax;
}

}  // namespace

uint64_t kv_page_bytes(const Description& d, KvKind kind) {
  return uint64_t{d.layers} * d.kv_heads * head_bytes(d.head_size, kind);
}

Result<KvMemory> KvMemory::create(const Description& description, KvKind kind, uint32_t pages) {
  KvMemory made;
  made.kind_ = kind;
  made.head_size_ = description.head_size;
  made.kv_heads_ = description.kv_heads;
  made.pages_ = pages;
  made.page_bytes_ = kv_page_bytes(description, kind);
  made.head_bytes_ = head_bytes(description.head_size, kind);
  const Error none{.code = ErrorCode::resource,
                   .message = "no memory for " + std::to_string(pages) + " pages of " +
                              std::to_string(made.page_bytes_) + " bytes for keys and values"};
  constexpr uint64_t kBytesMax = uint64_t{1} << 44;
  if (pages > 0 && made.page_bytes_ > kBytesMax / pages) return none;
  auto memory = base::Buffer::allocate(made.page_bytes_ * pages);
  if (!memory) return none;
  made.memory_ = std::move(memory).value();
  return made;
}

uint64_t KvMemory::at(uint32_t page, uint32_t layer, uint32_t head) const {
  return page * page_bytes_ + (uint64_t{layer} * kv_heads_ + head) * head_bytes_;
}

void KvMemory::store(uint32_t page, uint32_t slot, uint32_t layer, uint32_t head, const float* key,
                     const float* value) {
  std::byte* const to = memory_.data() + at(page, layer, head);
  const size_t n = head_size_;
  if (kind_ == KvKind::f32) {
    auto* const keys = reinterpret_cast<float*>(to);
    for (size_t d = 0; d < n; ++d) keys[kPageTokens * d + slot] = key[d];
    std::copy_n(value, n, keys + kPageTokens * n + slot * n);
  } else if (kind_ == KvKind::bf16) {
    auto* const keys = reinterpret_cast<uint16_t*>(to);
    for (size_t d = 0; d < n; ++d) keys[kPageTokens * d + slot] = codec::bf16_nearest(key[d]);
    uint16_t* const values = keys + kPageTokens * n + slot * n;
    for (size_t d = 0; d < n; ++d) values[d] = codec::bf16_nearest(value[d]);
  } else {
    auto* const scales = reinterpret_cast<float*>(to);
    auto* const keys = reinterpret_cast<int8_t*>(to + kScaleBytes);
    scales[slot] = store_q8(key, n, keys + slot, kPageTokens);
    scales[kPageTokens + slot] = store_q8(value, n, keys + kPageTokens * n + slot * n, 1);
  }
}

const float* KvMemory::keys(uint32_t page, uint32_t layer, uint32_t head,
                            const StepKernels& kernels, float* room) const {
  const std::byte* const from = memory_.data() + at(page, layer, head);
  if (kind_ == KvKind::f32) return reinterpret_cast<const float*>(from);
  if (kind_ == KvKind::bf16) {
    kernels.widen_bf16(reinterpret_cast<const uint16_t*>(from), kPageTokens * head_size_, room);
  } else {
    kernels.widen_keys_i8(reinterpret_cast<const int8_t*>(from + kScaleBytes),
                          reinterpret_cast<const float*>(from), head_size_, room);
  }
  return room;
}

const float* KvMemory::values(uint32_t page, uint32_t layer, uint32_t head,
                              const StepKernels& kernels, float* room) const {
  const size_t n = head_size_;
  const uint64_t behind_keys = kPageTokens * n * unit(kind_);
  const std::byte* const from = memory_.data() + at(page, layer, head);
  const size_t stride = value_stride();
  if (kind_ == KvKind::f32) {
    const auto* const values = reinterpret_cast<const float*>(from + behind_keys);
    if (stride == n) return values;
    for (size_t j = 0; j < kPageTokens; ++j) std::copy_n(values + j * n, n, room + j * stride);
  } else if (kind_ == KvKind::bf16) {
    const auto* const values = reinterpret_cast<const uint16_t*>(from + behind_keys);
    for (size_t j = 0; j < kPageTokens; ++j)
      kernels.widen_bf16(values + j * n, n, room + j * stride);
  } else {
    const auto* const scales = reinterpret_cast<const float*>(from) + kPageTokens;
    const auto* const values = reinterpret_cast<const int8_t*>(from + kScaleBytes + behind_keys);
    for (size_t j = 0; j < kPageTokens; ++j)
      kernels.widen_i8(values + j * n, scales[j], n, room + j * stride);
  }
  return room;
}

void KvMemory::copy_page(uint32_t from, uint32_t to) {
  SCANT_CHECK(from < pages_ && to < pages_);
  if (from == to) return;
  std::memcpy(memory_.data() + to * page_bytes_, memory_.data() + from * page_bytes_, page_bytes_);
}

}  // namespace scant::serve
