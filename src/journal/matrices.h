// Parts of a step that travelled as factors, and their averages made from these. docs/journal.md,
// "Factors"; the arithmetic is codec::Factors. One owner thread at a time. Memory: two f32 copies
// of the factors of one entry.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "codec/rank/factors.h"
#include "codec/record/record.h"
#include "scant/base/result.h"

namespace scant::journal {

struct Matrix {
  uint32_t part = 0;  // of the plan's layout: records of its factors name it
  uint32_t tensor = 0;
  uint32_t rank = 0;
  uint64_t columns = 0;  // of the tensor
  codec::Range range;    // of its elements
  bool operator==(const Matrix&) const = default;
};

inline constexpr size_t kMatrixBytes = 40;
void write_matrix(const Matrix& matrix, std::byte* out);
[[nodiscard]] Matrix read_matrix(const std::byte* bytes);

// An error of a step's body.
[[nodiscard]] Error corrupt_step(const std::string& what);

class Matrices {
 public:
  // A step begins.
  void begin();
  // Takes the matrices of the next buffer. `tensors`: bytes of each tensor. ErrorCode::corrupt
  // names a matrix that breaks a rule; resource: no memory. Throws std::bad_alloc.
  Result<void> open(std::span<const Matrix> matrices, std::span<const uint64_t> tensors);

  // Whether a record is of a factor of this buffer's matrices; the room for its values.
  [[nodiscard]] bool is_factor(const codec::RecordHeader& header) const;
  Result<std::span<float>> room_of(const codec::RecordHeader& header);
  // Whether these elements are of a rest. ErrorCode::corrupt: only some of them are.
  Result<bool> is_rest(uint32_t tensor, codec::Range range);

  // `number`: of a matrix of this buffer. Whether any record of it came; then its average, made in
  // `out`, which holds the average of the rests, or zeros.
  [[nodiscard]] bool came(size_t number) const { return open_[number]->came; }
  void add_average(size_t number, std::span<float> out, codec::Workspace& workspace);

  // Gives back memory that no matrix of the step needed.
  void end();
  [[nodiscard]] size_t memory_bytes() const;

 private:
  struct Known {
    Matrix matrix;
    codec::Factors factors;
    std::vector<float> left{};
    std::vector<float> right{};
    bool used = true;   // in this step
    bool came = false;  // a record
  };
  [[nodiscard]] Result<codec::Shape> check(const Matrix& matrix, uint64_t tensor_bytes) const;
  Known& known(const Matrix& matrix, codec::Shape shape);
  [[nodiscard]] Known* with_part(uint32_t part) const;

  std::map<uint32_t, Known> known_;  // by part
  std::vector<Known*> open_;         // by part, ascending
  std::optional<Matrix> last_;       // of this step
};

}  // namespace scant::journal
