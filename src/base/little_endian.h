// Numbers in the byte order of everything that Scant writes, at any address. The caller has checked
// that they are there.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace scant::base {

// Unsigned numbers, and floats by their bits.
template <typename T>
inline constexpr bool kHasOrder =
    std::is_unsigned_v<T> || std::is_same_v<T, float> || std::is_same_v<T, double>;
template <typename T>
using UnsignedOf = std::conditional_t<std::is_same_v<T, float>, uint32_t,
                                      std::conditional_t<std::is_same_v<T, double>, uint64_t, T>>;

template <typename T>
[[nodiscard]] inline T load_little(const std::byte* from) {
  static_assert(kHasOrder<T>);
  if constexpr (std::endian::native == std::endian::little) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    return value;
  } else {
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) value |= std::to_integer<uint64_t>(from[i]) << (8 * i);
    return std::bit_cast<T>(static_cast<UnsignedOf<T>>(value));
  }
}

template <typename T>
inline void store_little(std::byte* to, T value) {
  static_assert(kHasOrder<T>);
  if constexpr (std::endian::native == std::endian::little) {
    std::memcpy(to, &value, sizeof(T));
  } else {
    const uint64_t bits = std::bit_cast<UnsignedOf<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i) to[i] = static_cast<std::byte>(bits >> (8 * i));
  }
}

}  // namespace scant::base
