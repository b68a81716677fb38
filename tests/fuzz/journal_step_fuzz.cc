// Bodies of steps. What is read can be written again as the same bytes, but for what is reserved;
// decoding stays within the model's tensors and gives the same twice; a factor that is found gives
// what was found. Input: mode, then the body.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "base/crc.h"
#include "base/little_endian.h"
#include "codec/record/record.h"
#include "fuzz_input.h"
#include "journal/step.h"

using namespace scant;
using namespace scant::journal;

namespace {

constexpr uint8_t kSealed = 1;   // records get magic, version, length and checksum that fit
constexpr uint8_t kMatched = 2;  // and matrices and records of factors what the others say
const std::vector<uint64_t> kTensors{400, 16, 6, 0, 20000};  // bytes
constexpr size_t kMatrixTensor = 4;

// A copy of exactly the right size, so that a sanitizer sees a step past it.
struct Exact {
  explicit Exact(Bytes bytes)
      : memory(std::make_unique<std::byte[]>(bytes.size())), size(bytes.size()) {
    std::copy(bytes.begin(), bytes.end(), memory.get());
  }
  [[nodiscard]] MutableBytes view() const { return {memory.get(), size}; }
  std::unique_ptr<std::byte[]> memory;
  size_t size;
};

void seal(MutableBytes record) {
  constexpr size_t kLengthAt = 48;
  constexpr size_t kCrcAt = 60;
  if (record.size() < codec::kRecordHeaderBytes) return;
  base::store_little(record.data(), codec::kRecordMagic);
  base::store_little(record.data() + 4, uint32_t{codec::kRecordVersion});
  base::store_little(record.data() + kLengthAt, uint64_t{record.size()});
  const uint32_t crc = base::crc32c(record.subspan(codec::kRecordHeaderBytes),
                                    base::crc32c(Bytes(record).first(kCrcAt)));
  base::store_little(record.data() + kCrcAt, crc);
}

// So that a matrix of few rows and columns is one, in the only tensor that has room for some.
void match(Matrix& matrix) {
  constexpr uint64_t kColumns[] = {100, 4, 8, 50, 625};
  const uint64_t elements = kTensors[kMatrixTensor] / sizeof(float);
  matrix.part &= 0xF;
  matrix.tensor = kMatrixTensor;
  matrix.columns = kColumns[matrix.columns % std::size(kColumns)];
  matrix.range.first %= elements;
  matrix.range.elements = 1 + (matrix.range.elements - 1) % (elements - matrix.range.first);
  matrix.rank = 1 + (matrix.rank - 1) % 8;
}

// A record of a factor of one of these matrices, by the lowest bits of its tensor, is as wide as
// that: on the left as the matrix has rows, on the right as it has columns.
void match(std::span<const Matrix> matrices, MutableBytes record) {
  constexpr size_t kTensorAt = 8;
  constexpr size_t kShapeAt = 16;
  if (matrices.empty() || record.size() < codec::kRecordHeaderBytes) return;
  const auto drawn = base::load_little<uint32_t>(record.data() + kTensorAt);
  if (drawn < codec::kLeftFactors) return;
  const Matrix& of = matrices[(drawn - 1) % matrices.size()];
  const bool right = drawn >= codec::kRightFactors;
  const codec::Shape shape{kTensors[kMatrixTensor] / sizeof(float) / of.columns, of.columns};
  const uint64_t rows = codec::rows_touched(shape, of.range);
  base::store_little(record.data() + kTensorAt,
                     of.part + (right ? codec::kRightFactors : codec::kLeftFactors));
  base::store_little(record.data() + kShapeAt, uint64_t{of.rank});
  base::store_little(record.data() + kShapeAt + 8, right ? of.columns : rows);
}

// The parts of a right body are within it, one behind the other.
void change_records(Step& step, MutableBytes body, bool matched) {
  constexpr size_t kPartHeadBytes = 24;
  size_t at = body.size();
  for (const Part& part : step.parts) at -= kPartHeadBytes + part.size();
  std::span<const Matrix> matrices;
  for (Part& part : step.parts) {
    at += kPartHeadBytes;
    if (part.kind == PartKind::matrices) {
      for (size_t i = 0; matched && i < part.matrices.size(); ++i) {
        match(part.matrices[i]);
        write_matrix(part.matrices[i], body.data() + at + i * kMatrixBytes);
      }
      matrices = part.matrices;
    }
    if (part.kind == PartKind::averages || part.kind == PartKind::gathered) {
      const MutableBytes record = body.subspan(at, part.bytes.size());
      if (matched) match(matrices, record);
      seal(record);
    }
    at += part.size();
  }
}

std::vector<std::byte> write(const Step& step) {
  const WrittenStep written(step);
  std::vector<std::byte> all;
  for (const Bytes piece : written.pieces()) all.insert(all.end(), piece.begin(), piece.end());
  return all;
}

std::vector<std::vector<std::byte>> values(Gradients& gradients) {
  std::vector<std::vector<std::byte>> all;
  for (size_t i = 0; i < gradients.tensors(); ++i) {
    const Bytes one = gradients.tensor(i);
    all.emplace_back(one.begin(), one.end());
  }
  return all;
}

void check_decoding(Step step) {
  const auto memory = Gradients::create(kTensors);
  Gradients& gradients = *memory.value();
  for (size_t i = 0; i < kTensors.size(); ++i) std::ranges::fill(gradients.tensor(i), std::byte{0});
  const Result<void> decoded = gradients.decode(step, false);
  if (!decoded) {
    SCANT_CHECK(!decoded.error().message.empty());
    return;
  }
  const auto found = values(gradients);
  step.crc = gradients.crc(step.present);
  SCANT_CHECK(gradients.decode(step, true).ok());
  SCANT_CHECK(values(gradients) == found);
  // As the writer proves it: records first, then the factor.
  const float factor = std::exchange(step.factor, 1.0f);
  std::vector<Bytes> views(found.begin(), found.end());
  SCANT_CHECK(gradients.decode(step, false).ok());
  float is = 1;
  if (!gradients.find_factor(views, is)) return;
  if (gradients.crc(step.present) != step.crc) return;
  SCANT_CHECK(std::isfinite(is) && std::isfinite(factor));
  step.factor = is;
  SCANT_CHECK(gradients.decode(step, true).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t mode = input.byte();
  const Exact body(input.rest());
  auto step = read_step(body.view());
  if (!step) {
    SCANT_CHECK(step.error().code == ErrorCode::corrupt);
    return 0;
  }
  const bool matched = (mode & kMatched) != 0;
  if ((mode & kSealed) != 0) change_records(step.value(), body.view(), matched);
  const auto again = read_step(body.view());
  SCANT_CHECK(again.ok());
  const auto written = write(again.value());
  SCANT_CHECK(written.size() == body.size);
  const auto third = read_step(written);
  SCANT_CHECK(third.ok() && fuzz::equal(write(third.value()), written));
  check_decoding(again.value());
  return 0;
}
