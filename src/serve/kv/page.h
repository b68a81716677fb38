// A page holds the keys and values of so many tokens, of all layers.
#pragma once

#include <cstdint>

namespace scant::serve {

inline constexpr uint32_t kPageTokens = 16;

}  // namespace scant::serve
