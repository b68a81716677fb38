#include "journal/matrices.h"

#include <algorithm>
#include <utility>

#include "base/fault.h"
#include "base/little_endian.h"

namespace scant::journal {
namespace {

constexpr uint64_t kSeed = 0;  // of directions, which nobody asks for
constexpr uint64_t kLeastSide = 2;

std::string name(const Matrix& matrix) { return "matrix part " + std::to_string(matrix.part); }

}  // namespace

void write_matrix(const Matrix& matrix, std::byte* out) {
  base::store_little(out, matrix.part);
  base::store_little(out + 4, matrix.tensor);
  base::store_little(out + 8, matrix.rank);
  base::store_little(out + 12, uint32_t{0});
  base::store_little(out + 16, matrix.columns);
  base::store_little(out + 24, matrix.range.first);
  base::store_little(out + 32, matrix.range.elements);
}

Matrix read_matrix(const std::byte* bytes) {
  return {
      .part = base::load_little<uint32_t>(bytes),
      .tensor = base::load_little<uint32_t>(bytes + 4),
      .rank = base::load_little<uint32_t>(bytes + 8),
      .columns = base::load_little<uint64_t>(bytes + 16),
      .range = {base::load_little<uint64_t>(bytes + 24), base::load_little<uint64_t>(bytes + 32)}};
}

Error corrupt_step(const std::string& what) {
  return base::corrupt("a step of the journal: " + what);
}

void Matrices::begin() {
  end();  // a step that failed was not ended
  for (auto& [part, one] : known_) one.used = false;
  last_.reset();
}

// Both sides are at least two, and no two matrices overlap: so what they take together is bounded
// by the model.
Result<codec::Shape> Matrices::check(const Matrix& matrix, uint64_t tensor_bytes) const {
  const uint64_t elements = tensor_bytes / sizeof(float);
  const codec::Range range = matrix.range;
  if (matrix.part >= codec::kLeftFactors) return corrupt_step(name(matrix) + ": no such part");
  if (range.elements == 0 || range.first > elements || range.elements > elements - range.first) {
    return corrupt_step(name(matrix) + " fits no tensor of the model");
  }
  if (matrix.columns == 0 || elements % matrix.columns != 0) {
    return corrupt_step(name(matrix) + ": a tensor of " + std::to_string(elements) +
                        " elements has no rows of " + std::to_string(matrix.columns));
  }
  const codec::Shape shape{elements / matrix.columns, matrix.columns};
  const uint64_t rows = codec::rows_touched(shape, range);
  const uint64_t side = std::min(rows, matrix.columns);
  if (side < kLeastSide || matrix.rank == 0 || matrix.rank > codec::kRankMax ||
      matrix.rank > side) {
    return corrupt_step(name(matrix) + ": rank " + std::to_string(matrix.rank) + " of " +
                        codec::text({rows, matrix.columns}));
  }
  const bool follows = !last_ || (last_->part < matrix.part &&
                                  (last_->tensor < matrix.tensor ||
                                   (last_->tensor == matrix.tensor &&
                                    last_->range.first + last_->range.elements <= range.first)));
  if (!follows) return corrupt_step(name(matrix) + " does not follow the one before it");
  return shape;
}

// Of a step before, where it was the same.
Matrices::Known& Matrices::known(const Matrix& matrix, codec::Shape shape) {
  const auto found = known_.find(matrix.part);
  if (found != known_.end()) {
    const Matrix& before = found->second.matrix;
    const bool same = before.tensor == matrix.tensor && before.columns == matrix.columns &&
                      before.range == matrix.range;
    if (same) return found->second;
    known_.erase(found);
  }
  Known made{.matrix = matrix, .factors = codec::Factors(shape, matrix.range, kSeed)};
  return known_.emplace(matrix.part, std::move(made)).first->second;
}

Result<void> Matrices::open(std::span<const Matrix> matrices, std::span<const uint64_t> tensors) {
  open_.clear();
  for (const Matrix& matrix : matrices) {
    const uint64_t bytes = matrix.tensor < tensors.size() ? tensors[matrix.tensor] : 0;
    const Result<codec::Shape> shape = check(matrix, bytes);
    if (!shape) return shape.error();
    last_ = matrix;
    Known& one = known(matrix, shape.value());
    one.matrix = matrix;
    if (Result<void> set = one.factors.set_rank(matrix.rank); !set) return set;
    one.left.assign(one.factors.left_elements(), 0.0f);
    one.right.assign(one.factors.right_elements(), 0.0f);
    one.used = true;
    one.came = false;
    open_.push_back(&one);
  }
  return {};
}

Matrices::Known* Matrices::with_part(uint32_t part) const {
  const auto found =
      std::ranges::lower_bound(open_, part, {}, [](const Known* one) { return one->matrix.part; });
  return found != open_.end() && (*found)->matrix.part == part ? *found : nullptr;
}

bool Matrices::is_factor(const codec::RecordHeader& header) const {
  return !open_.empty() && header.tensor >= codec::kLeftFactors;
}

Result<std::span<float>> Matrices::room_of(const codec::RecordHeader& header) {
  const bool right = header.tensor >= codec::kRightFactors;
  const uint32_t part = header.tensor - (right ? codec::kRightFactors : codec::kLeftFactors);
  Known* const one = with_part(part);
  if (one == nullptr) {
    return corrupt_step("factors of part " + std::to_string(part) + ", which is no matrix");
  }
  const codec::Shape wanted{one->factors.rank(),
                            right ? one->factors.columns() : one->factors.rows()};
  std::vector<float>& values = right ? one->right : one->left;
  if (header.shape != wanted || header.first > values.size() ||
      header.elements > values.size() - header.first) {
    return corrupt_step(name(one->matrix) + ": its " +
                        (right ? "coefficients are " : "left factor is ") + codec::text(wanted) +
                        ", not as a record says: " + codec::text(header.shape));
  }
  one->came = true;
  return std::span(values).subspan(header.first, header.elements);
}

// The last one that begins before the range ends.
Result<bool> Matrices::is_rest(uint32_t tensor, codec::Range range) {
  const auto place = [](const Known* one) {
    return std::pair(one->matrix.tensor, one->matrix.range.first);
  };
  const uint64_t end = range.first + range.elements;
  const auto behind = std::ranges::lower_bound(open_, std::pair(tensor, end), {}, place);
  if (behind == open_.begin()) return false;
  Known& one = **std::prev(behind);
  const codec::Range of = one.matrix.range;
  if (one.matrix.tensor != tensor || of.first + of.elements <= range.first) return false;
  if (range.first < of.first || end > of.first + of.elements) {
    return corrupt_step(name(one.matrix) + " holds a part of a record");
  }
  one.came = true;
  return true;
}

void Matrices::add_average(size_t number, std::span<float> out, codec::Workspace& workspace) {
  Known& one = *open_[number];
  one.factors.set_basis(one.left);
  one.factors.add_average(one.right, one.matrix.range, out, workspace);
}

void Matrices::end() {
  open_.clear();
  std::erase_if(known_, [](const auto& one) { return !one.second.used; });
}

size_t Matrices::memory_bytes() const {
  size_t bytes = 0;
  for (const auto& [part, one] : known_) {
    bytes +=
        (one.left.capacity() + one.right.capacity()) * sizeof(float) + one.factors.memory_bytes();
  }
  return bytes;
}

}  // namespace scant::journal
