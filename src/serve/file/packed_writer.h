// Writes a packed file, rows by rows: a strip of 16 rows is the most of a tensor that it holds. The
// file appears under its name when it is whole. One owner thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "serve/file/description.h"
#include "serve/file/output_file.h"
#include "serve/file/packed_format.h"
#include "serve/file/strip_packer.h"

namespace scant::serve {

struct PackedTensor {
  std::string name;
  TensorKind kind = TensorKind::f32;
  std::vector<uint64_t> dims;
  uint32_t place = 0;
  double density = 1;  // sparse kinds: this share of each row is kept, by magnitude
  std::vector<float> column_weights{};  // magnitudes are multiplied with these; empty: all are 1
};

class PackedWriter {
 public:
  // ErrorCode::io with errno; ErrorCode::resource.
  [[nodiscard]] static Result<std::unique_ptr<PackedWriter>> create(const std::string& path);

  // Begins a run. Runs are written in the order of use.
  Result<void> begin_run();
  // ErrorCode::invalid_argument: the message names the tensor, then the fault.
  Result<void> begin_tensor(PackedTensor tensor);
  // Any number of whole rows. Their kind is row by row, and the same for all rows of a tensor.
  // GGUF's blocks can be kept, or become any kind but other blocks. NaN and infinities are refused
  // for codes and sparse kinds.
  Result<void> add_rows(TensorKind kind, Bytes rows);
  // Returns the bytes of the tensor. ErrorCode::invalid_argument: rows are missing.
  Result<uint64_t> end_tensor();

  Result<void> add_part(PartKind kind, std::string name, std::vector<std::byte> bytes);
  // After all tensors and parts. Returns the bytes of the file.
  Result<uint64_t> finish(const Description& description);

 private:
  explicit PackedWriter(OutputFile file) : file_(std::move(file)) {}
  Result<void> put(Bytes bytes);  // of pages
  Result<void> put_zeros_to(uint64_t align);
  Result<void> end_run();
  Result<void> add_converted(TensorKind kind, Bytes rows);
  Result<void> put_strip();
  Result<void> put_bits();
  Result<void> put_values();
  Result<void> put_tables();
  Result<void> refuse_not_finite() const;
  [[nodiscard]] Error invalid(const std::string& what) const;

  OutputFile file_;
  PackedIndex index_;
  std::vector<std::vector<std::byte>> part_bytes_;
  uint32_t page_crc_ = 0;

  bool open_ = false;  // a tensor is
  PackedTensor now_;
  codec::Shape shape_;
  TensorKind from_ = TensorKind::f32;  // its rows come as
  uint64_t rows_ = 0;                  // taken of the tensor
  size_t gathered_ = 0;                // rows in floats_
  bool as_bits_ = false;               // bf16 tiles of bf16: the gathered rows are in halves_
  std::vector<float> floats_;
  std::vector<uint16_t> halves_;
  std::vector<std::byte> strip_;
  std::optional<StripPacker> packer_;
  std::vector<uint16_t> bases_;
  std::vector<uint64_t> ends_;  // of strips
};

}  // namespace scant::serve
