// Sixteen rows of a tensor, or its last ones, as a strip of one kind: what writing a packed file
// and measuring what a kind would lose share. One owner thread.
#pragma once

#include <span>
#include <vector>

#include "serve/file/tensor_kind.h"

namespace scant::serve {

// A kind in strips, and what a sparse one keeps.
struct PackPoint {
  TensorKind kind = TensorKind::q8;
  double density = 1;  // this share of each row is kept: the largest magnitudes
};

class StripPacker {
 public:
  // Magnitudes are multiplied with `column_weights` before they are compared; empty: all are 1.
  StripPacker(PackPoint point, size_t columns, std::vector<float> column_weights = {});

  // Packs up to 16 rows without gaps. Values are finite; they become what is left when the strip's
  // values are taken away. The strip is valid until the next call.
  Bytes pack(float* values, size_t rows);
  [[nodiscard]] uint16_t base() const { return base_; }        // of the last strip
  [[nodiscard]] uint64_t entries() const { return entries_; }  // kept in all strips so far

 private:
  void keep(const float* values, size_t rows);

  PackPoint point_;
  size_t columns_;
  std::vector<float> column_weights_;
  uint16_t base_ = 0;
  uint64_t entries_ = 0;
  std::vector<std::byte> strip_;
  std::vector<uint64_t> kept_;
  std::vector<uint16_t> halves_;
  std::vector<float> row_;  // weighted
  std::vector<float> unpacked_;
};

// Bytes of the tables behind the strips of a tensor.
[[nodiscard]] uint64_t table_bytes(TensorKind kind, uint64_t rows);

}  // namespace scant::serve
