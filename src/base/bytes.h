// Bounded little-endian writing and reading of messages whose layout is a sequence of fields. What
// was read past the end is zero, and ok() tells; writing past the end is a programmer's error.
#pragma once

#include <cstring>

#include "base/check.h"
#include "base/little_endian.h"
#include "scant/base/types.h"

namespace scant::base {

class ByteWriter {
 public:
  explicit ByteWriter(MutableBytes out) : out_(out) {}
  template <typename T>
  void put(T value) {
    SCANT_CHECK(sizeof(T) <= out_.size() - used_);
    store_little(out_.data() + used_, value);
    used_ += sizeof(T);
  }
  void put_bytes(Bytes bytes) {
    SCANT_CHECK(bytes.size() <= out_.size() - used_);
    if (!bytes.empty()) std::memcpy(out_.data() + used_, bytes.data(), bytes.size());
    used_ += bytes.size();
  }
  [[nodiscard]] size_t used() const { return used_; }

 private:
  MutableBytes out_;
  size_t used_ = 0;
};

class ByteReader {
 public:
  explicit ByteReader(Bytes in) : in_(in) {}
  // Zero past the end; ok() then turns false.
  template <typename T>
  T get() {
    if (sizeof(T) > in_.size() - used_) {
      ok_ = false;
      return 0;
    }
    used_ += sizeof(T);
    return load_little<T>(in_.data() + used_ - sizeof(T));
  }
  // Empty past the end; ok() then turns false.
  Bytes get_bytes(size_t count) {
    if (count > in_.size() - used_) {
      ok_ = false;
      return {};
    }
    used_ += count;
    return in_.subspan(used_ - count, count);
  }
  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] bool at_end() const { return used_ == in_.size(); }
  [[nodiscard]] size_t left() const { return in_.size() - used_; }

 private:
  Bytes in_;
  size_t used_ = 0;
  bool ok_ = true;
};

}  // namespace scant::base
