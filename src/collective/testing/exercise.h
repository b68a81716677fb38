// Test support: one operation on all ranks of a group with a known answer. Values are small
// integers, so that every dtype's sum is exact and the answer does not depend on the order of
// reduction.
#pragma once

#include <string>
#include <vector>

#include "base/rng.h"
#include "collective/call.h"

namespace scant::collective {

struct ExerciseSpec {
  OpKind kind = OpKind::all_reduce;
  DType dtype = DType::f32;
  ReduceOp reduce = ReduceOp::sum;
  Rank root = 0;
  int size = 1;
  uint64_t elements = 1;  // of the whole vector, or of the largest part, or exchange: capacity
  bool uneven = false;    // parts differ in size
  bool fractions =
      false;  // all_reduce of f32 or f64: sums that round, equal on all ranks all the same
  bool in_place = false;  // all_reduce; exchange: the own part
  uint64_t seed = 0;
  [[nodiscard]] std::string to_string() const;
};

[[nodiscard]] ExerciseSpec random_spec(base::Rng& rng, int size, uint64_t elements_max);

class Exercise {
 public:
  explicit Exercise(const ExerciseSpec& spec);
  [[nodiscard]] const ExerciseSpec& spec() const { return spec_; }
  // Prepares this rank's buffers and returns its call; once for each rank.
  [[nodiscard]] Call call(Rank rank);
  // Empty when the rank's outputs are what they should be.
  [[nodiscard]] std::string verify(Rank rank) const;
  // Of the rank's outputs.
  [[nodiscard]] uint32_t digest(Rank rank) const;
  // Frees the rank's buffers: an engine that still writes there is caught by the address sanitizer.
  void drop(Rank rank);

 private:
  struct Buffers {
    std::vector<std::vector<std::byte>> inputs;
    std::vector<std::vector<std::byte>> outputs;
    std::vector<uint64_t> received;
  };
  [[nodiscard]] uint64_t part_elements(Rank from, Rank to) const;
  [[nodiscard]] int64_t value(Rank from, Rank to, uint64_t element) const;
  [[nodiscard]] double typed_value(Rank from, Rank to, uint64_t element) const;
  [[nodiscard]] double reduced(Rank part, uint64_t element) const;
  void fill(std::vector<std::byte>& buffer, Rank from, Rank to, uint64_t elements) const;
  [[nodiscard]] Call call_on(Buffers& own, Rank rank) const;
  [[nodiscard]] std::string compare_exchange(Rank rank) const;
  [[nodiscard]] std::string compare(Bytes buffer, Rank from, Rank to, bool reduction) const;

  ExerciseSpec spec_;
  std::vector<Buffers> buffers_;
};

}  // namespace scant::collective
