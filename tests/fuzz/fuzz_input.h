// The fuzzers' view of their input: small numbers from the front, what is left as bytes. Zero past
// the end. A property that does not hold ends the program through SCANT_CHECK.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "scant/base/types.h"

namespace scant::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : left_(reinterpret_cast<const std::byte*>(data), size) {}

  uint8_t byte() {
    if (left_.empty()) return 0;
    const auto value = std::to_integer<uint8_t>(left_.front());
    left_ = left_.subspan(1);
    return value;
  }
  uint16_t half() {
    const uint8_t low = byte();
    return static_cast<uint16_t>(low | byte() << 8);
  }
  [[nodiscard]] Bytes rest() const { return left_; }

 private:
  Bytes left_;
};

inline bool equal(Bytes a, Bytes b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

}  // namespace scant::fuzz
