#include "codec/tile/row_codes.h"

#include <algorithm>
#include <array>

namespace scant::codec {
namespace {

constexpr size_t kRoom = kRowChunk + 64;  // the decoder writes whole vectors

}  // namespace

void row_to_codes(ValueKind kind, float* values, size_t n, uint16_t base, uint8_t* scales,
                  uint8_t* codes) {
  std::array<std::byte, kRoom> packed{};
  kernels().quantise_rest(kind, {}, 0, values, n, base, scales, packed.data());
  const unsigned width = bits(kind);
  const unsigned mask = (1U << width) - 1;
  for (size_t i = 0; i < n; ++i) {
    const size_t at = i * width;
    const unsigned wide = std::to_integer<unsigned>(packed[at / 8]) |
                          std::to_integer<unsigned>(packed[at / 8 + 1]) << 8U;
    codes[i] = static_cast<uint8_t>(wide >> (at % 8) & mask);
  }
}

void row_from_codes(ValueKind kind, const uint8_t* scales, const uint8_t* codes, size_t n,
                    uint16_t base, float* values, const Kernels& by) {
  std::array<std::byte, kRoom> packed{};
  const unsigned width = bits(kind);
  for (size_t i = 0; i < n; ++i) {
    const size_t at = i * width;
    const unsigned wide = unsigned{codes[i]} << (at % 8);
    packed[at / 8] |= static_cast<std::byte>(wide);
    packed[at / 8 + 1] |= static_cast<std::byte>(wide >> 8U);
  }
  std::array<float, kRoom> decoded{};
  by.decode(kind, {.base = base, .scales = scales, .codes = packed.data()}, n, decoded.data());
  std::copy_n(decoded.begin(), n, values);
}

}  // namespace scant::codec
