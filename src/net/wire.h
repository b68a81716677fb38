// Little-endian reading and writing of fixed-size messages. The reader never passes its end.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "scant/types.h"

namespace scant::net {

class WireWriter {
 public:
  explicit WireWriter(MutableBytes out) : out_(out) {}
  template <typename T>
  void put(T value) {
    static_assert(std::is_unsigned_v<T>);
    SCANT_CHECK(used_ + sizeof(T) <= out_.size());
    for (size_t i = 0; i < sizeof(T); ++i) out_[used_++] = static_cast<std::byte>(value >> (8 * i));
  }
  void put_bytes(Bytes bytes) {
    SCANT_CHECK(used_ + bytes.size() <= out_.size());
    if (!bytes.empty()) std::memcpy(out_.data() + used_, bytes.data(), bytes.size());
    used_ += bytes.size();
  }
  [[nodiscard]] size_t used() const { return used_; }

 private:
  MutableBytes out_;
  size_t used_ = 0;
};

class WireReader {
 public:
  explicit WireReader(Bytes in) : in_(in) {}
  // Zero past the end; ok() then turns false.
  template <typename T>
  T get() {
    static_assert(std::is_unsigned_v<T>);
    uint64_t value = 0;
    if (used_ + sizeof(T) > in_.size()) {
      ok_ = false;
      return 0;
    }
    for (size_t i = 0; i < sizeof(T); ++i)
      value |= std::to_integer<uint64_t>(in_[used_++]) << (8 * i);
    return static_cast<T>(value);
  }
  Bytes get_bytes(size_t count) {
    if (count > in_.size() - used_) {
      ok_ = false;
      return {};
    }
    const Bytes bytes = in_.subspan(used_, count);
    used_ += count;
    return bytes;
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return used_ == in_.size(); }

 private:
  Bytes in_;
  size_t used_ = 0;
  bool ok_ = true;
};

}  // namespace scant::net
