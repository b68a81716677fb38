// What the golden files hold: one line for each thing that is made from seeds, with its size and a
// hash of its bytes. Each producer below adds the lines of its subject, in a fixed order.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "base/rng.h"
#include "scant/base/types.h"

namespace scant::golden {

// FNV-1a of 64 bits. Most formats end with their own crc32c, and a crc32c of such bytes is the same
// number whatever they hold.
class Digest {
 public:
  void add(Bytes bytes) {
    for (const std::byte one : bytes) hash_ = (hash_ ^ std::to_integer<uint64_t>(one)) * kPrime;
    size_ += bytes.size();
  }
  void add_number(uint64_t number) {
    for (int i = 0; i < 8; ++i) hash_ = (hash_ ^ (number >> (8 * i) & 0xFF)) * kPrime;
    size_ += sizeof(number);
  }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] uint64_t hash() const { return hash_; }
  friend bool operator==(const Digest&, const Digest&) = default;

 private:
  static constexpr uint64_t kPrime = 0x100000001b3;
  uint64_t hash_ = 0xcbf29ce484222325;
  uint64_t size_ = 0;
};

template <typename T>
[[nodiscard]] Digest digest_of(const std::vector<T>& values) {
  static_assert(std::is_trivially_copyable_v<T>);
  Digest digest;
  digest.add(std::as_bytes(std::span(values)));
  return digest;
}

struct Line {
  std::string name;  // "SUBJECT/...", without blanks
  uint64_t size = 0;
  uint64_t hash = 0;
};

class Lines {
 public:
  void add(std::string name, const Digest& digest) {
    all_.push_back({std::move(name), digest.size(), digest.hash()});
  }
  [[nodiscard]] const std::vector<Line>& all() const { return all_; }

 private:
  std::vector<Line> all_;
};

// Floats of every kind that could be treated in two ways. No function of the C library takes part,
// so that they are the same everywhere.
enum class Family : uint8_t { normal, heavy, denormal, huge, zero, repeated, lone, wide, strange };
inline constexpr int kFamilyCount = 9;
[[nodiscard]] std::vector<float> draw_values(Family family, size_t count, uint64_t seed);

// By subject: the word before the first "/" of each line.
void add_records(Lines& lines);      // "record"
void add_averages(Lines& lines);     // "average"
void add_plans(Lines& lines);        // "plan"
void add_collectives(Lines& lines);  // "collective"
void add_frames(Lines& lines);       // "frame"
void add_journals(Lines& lines);     // "journal"

}  // namespace scant::golden
