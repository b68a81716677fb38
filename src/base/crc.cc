// CRC32C. Long inputs are folded by carry-less multiplication 128 bytes at a time (Gopal
// et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ", 2009, section on
// bit-reflected folding): a 16-byte lane moves D bits ahead as lo*K(D+32) xor hi*K(D-32), K(n) =
// reflected(x^n mod P) << 1. The folded block is congruent to the message, so the crc32 instruction
// finishes it. Constants are computed, not copied.
#include "base/crc.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace scant::base {
namespace {

constexpr uint32_t kPolynomialReflected = 0x82F63B78u;

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit)
      value = (value >> 1) ^ ((value & 1u) != 0 ? kPolynomialReflected : 0u);
    table[i] = value;
  }
  return table;
}
constexpr auto kTable = make_table();

uint32_t update_table(const std::byte* data, size_t size, uint32_t crc) {
  for (size_t i = 0; i < size; ++i) {
    crc = (crc >> 8) ^ kTable[(crc ^ std::to_integer<uint32_t>(data[i])) & 0xFFu];
  }
  return crc;
}

// reflected(x^n mod P) << 1: multiplying by x in the reflected domain is a right shift.
constexpr uint64_t fold_constant(unsigned n) {
  uint32_t value = 0x80000000u;  // x^0, reflected
  for (unsigned i = 0; i < n; ++i)
    value = (value >> 1) ^ ((value & 1u) != 0 ? kPolynomialReflected : 0u);
  return static_cast<uint64_t>(value) << 1;
}

constexpr size_t kBlock = 128;  // bytes a fold step moves ahead
constexpr uint64_t kFoldLow = fold_constant(kBlock * 8 + 32);
constexpr uint64_t kFoldHigh = fold_constant(kBlock * 8 - 32);
constexpr size_t kFoldMin = 2 * kBlock;  // below, folding is no faster than the crc32 instruction

struct Implementations {
  Crc32cImplementation list[4];
  size_t count = 0;
  void add(Crc32cImplementation implementation) { list[count++] = implementation; }
};

#if defined(__x86_64__)

__attribute__((target("sse4.2"))) uint32_t update_sse42(const std::byte* data, size_t size,
                                                        uint32_t crc) {
  uint64_t wide = crc;
  while (size >= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    wide = _mm_crc32_u64(wide, word);
    data += 8;
    size -= 8;
  }
  auto narrow = static_cast<uint32_t>(wide);
  while (size > 0) {
    narrow = _mm_crc32_u8(narrow, std::to_integer<uint8_t>(*data));
    ++data;
    --size;
  }
  return narrow;
}

__attribute__((target("sse4.2,pclmul"), always_inline)) inline __m128i load128(
    const std::byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

__attribute__((target("sse4.2,pclmul"))) uint32_t update_pclmul(const std::byte* data, size_t size,
                                                                uint32_t crc) {
  if (size < kFoldMin) return update_sse42(data, size, crc);
  __m128i lanes[8];
  for (size_t i = 0; i < 8; ++i) lanes[i] = load128(data + 16 * i);
  lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
  const __m128i constants =
      _mm_set_epi64x(static_cast<long long>(kFoldHigh), static_cast<long long>(kFoldLow));
  data += kBlock;
  size -= kBlock;
  while (size >= kBlock) {
    for (size_t i = 0; i < 8; ++i) {
      const __m128i low = _mm_clmulepi64_si128(lanes[i], constants, 0x00);
      const __m128i high = _mm_clmulepi64_si128(lanes[i], constants, 0x11);
      lanes[i] = _mm_xor_si128(_mm_xor_si128(low, high), load128(data + 16 * i));
    }
    data += kBlock;
    size -= kBlock;
  }
  alignas(16) std::byte folded[kBlock];
  std::memcpy(folded, lanes, kBlock);
  return update_sse42(data, size, update_sse42(folded, kBlock, 0));
}

__attribute__((target("avx2,vpclmulqdq"), always_inline)) inline __m256i load256(
    const std::byte* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

__attribute__((target("avx2,vpclmulqdq"), always_inline)) inline __m256i fold256(__m256i lane,
                                                                                 __m256i constants,
                                                                                 __m256i next) {
  const __m256i low = _mm256_clmulepi64_epi128(lane, constants, 0x00);
  const __m256i high = _mm256_clmulepi64_epi128(lane, constants, 0x11);
  return _mm256_xor_si256(_mm256_xor_si256(low, high), next);
}

__attribute__((target("sse4.2,avx2,vpclmulqdq"))) uint32_t update_vpclmul(const std::byte* data,
                                                                          size_t size,
                                                                          uint32_t crc) {
  if (size < kFoldMin) return update_sse42(data, size, crc);
  __m256i a = load256(data);
  __m256i b = load256(data + 32);
  __m256i c = load256(data + 64);
  __m256i d = load256(data + 96);
  a = _mm256_xor_si256(a, _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, static_cast<int>(crc)));
  const __m256i constants = _mm256_broadcastsi128_si256(
      _mm_set_epi64x(static_cast<long long>(kFoldHigh), static_cast<long long>(kFoldLow)));
  data += kBlock;
  size -= kBlock;
  while (size >= kBlock) {
    a = fold256(a, constants, load256(data));
    b = fold256(b, constants, load256(data + 32));
    c = fold256(c, constants, load256(data + 64));
    d = fold256(d, constants, load256(data + 96));
    data += kBlock;
    size -= kBlock;
  }
  alignas(32) std::byte folded[kBlock];
  _mm256_store_si256(reinterpret_cast<__m256i*>(folded), a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(folded + 32), b);
  _mm256_store_si256(reinterpret_cast<__m256i*>(folded + 64), c);
  _mm256_store_si256(reinterpret_cast<__m256i*>(folded + 96), d);
  return update_sse42(data, size, update_sse42(folded, kBlock, 0));
}

Implementations find() {
  Implementations found;
  __builtin_cpu_init();
  const bool crc = __builtin_cpu_supports("sse4.2");
  const bool fold = crc && __builtin_cpu_supports("pclmul");
  if (fold && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq")) {
    found.add({"vpclmul", update_vpclmul});
  }
  if (fold) found.add({"pclmul", update_pclmul});
  if (crc) found.add({"sse4.2", update_sse42});
  found.add({"table", update_table});
  return found;
}

#elif defined(__aarch64__)

// The compilers spell targets differently, and arm_acle.h declares its crc32 functions only in
// builds whose baseline has them.
#if defined(__clang__)
#define SCANT_TARGET_CRC __attribute__((target("crc")))
#define SCANT_TARGET_FOLD __attribute__((target("crc,aes")))
#define SCANT_CRC32C_WORD __builtin_arm_crc32cd
#define SCANT_CRC32C_BYTE __builtin_arm_crc32cb
#else
#define SCANT_TARGET_CRC __attribute__((target("+crc")))
#define SCANT_TARGET_FOLD __attribute__((target("+crc+crypto")))
#define SCANT_CRC32C_WORD __builtin_aarch64_crc32cx
#define SCANT_CRC32C_BYTE __builtin_aarch64_crc32cb
#endif

SCANT_TARGET_CRC uint32_t update_armv8(const std::byte* data, size_t size, uint32_t crc) {
  while (size >= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    crc = SCANT_CRC32C_WORD(crc, word);
    data += 8;
    size -= 8;
  }
  while (size > 0) {
    crc = SCANT_CRC32C_BYTE(crc, std::to_integer<uint8_t>(*data));
    ++data;
    --size;
  }
  return crc;
}

SCANT_TARGET_FOLD uint32_t update_pmull(const std::byte* data, size_t size, uint32_t crc) {
  if (size < kFoldMin) return update_armv8(data, size, crc);
  const auto load = [](const std::byte* from) {
    return vreinterpretq_u64_u8(vld1q_u8(reinterpret_cast<const uint8_t*>(from)));
  };
  uint64x2_t lanes[8];
  for (size_t i = 0; i < 8; ++i) lanes[i] = load(data + 16 * i);
  lanes[0] = veorq_u64(lanes[0], vsetq_lane_u64(crc, vdupq_n_u64(0), 0));
  data += kBlock;
  size -= kBlock;
  while (size >= kBlock) {
    for (size_t i = 0; i < 8; ++i) {
      const poly128_t low = vmull_p64(vgetq_lane_u64(lanes[i], 0), kFoldLow);
      const poly128_t high = vmull_p64(vgetq_lane_u64(lanes[i], 1), kFoldHigh);
      lanes[i] = veorq_u64(veorq_u64(vreinterpretq_u64_p128(low), vreinterpretq_u64_p128(high)),
                           load(data + 16 * i));
    }
    data += kBlock;
    size -= kBlock;
  }
  std::byte folded[kBlock];
  std::memcpy(folded, lanes, kBlock);
  return update_armv8(data, size, update_armv8(folded, kBlock, 0));
}

Implementations find() {
  Implementations found;
  const unsigned long capabilities = getauxval(AT_HWCAP);
  const bool crc = (capabilities & HWCAP_CRC32) != 0;
  if (crc && (capabilities & HWCAP_PMULL) != 0) found.add({"pmull", update_pmull});
  if (crc) found.add({"armv8", update_armv8});
  found.add({"table", update_table});
  return found;
}

#else

Implementations find() {
  Implementations found;
  found.add({"table", update_table});
  return found;
}

#endif

}  // namespace

std::span<const Crc32cImplementation> crc32c_implementations() {
  static const Implementations found = find();
  return {found.list, found.count};
}

uint32_t crc32c(Bytes data, uint32_t crc) {
  static const auto update = crc32c_implementations().front().update;
  return ~update(data.data(), data.size(), ~crc);
}

uint32_t crc32c_reference(Bytes data, uint32_t crc) {
  return ~update_table(data.data(), data.size(), ~crc);
}

const char* crc32c_implementation() { return crc32c_implementations().front().name; }

}  // namespace scant::base
