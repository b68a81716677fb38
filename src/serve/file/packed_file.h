// A packed file, mapped. open() checks everything that says where something lies; check() checks
// the pages of a tensor. docs/packed.md is the grammar. Any thread reads.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "scant/base/result.h"
#include "serve/file/description.h"
#include "serve/file/mapped_file.h"
#include "serve/file/packed_format.h"

namespace scant::serve {

class PackedFile {
 public:
  // Checks header, index and parts with their checksums, and sparse tensors with their pages, since
  // their bits say what is read. ErrorCode::corrupt names the fault, ErrorCode::unsupported the
  // other version.
  [[nodiscard]] static Result<PackedFile> open(const std::string& path);

  [[nodiscard]] const std::vector<Tensor>& tensors() const { return index_.tensors; }
  [[nodiscard]] const Tensor* find(std::string_view name) const;
  [[nodiscard]] const std::vector<Run>& runs() const { return index_.runs; }
  [[nodiscard]] const Description& description() const { return description_; }
  [[nodiscard]] const std::vector<FilePart>& parts() const { return index_.parts; }
  [[nodiscard]] Bytes part(size_t index) const { return part_bytes_[index]; }
  [[nodiscard]] std::optional<Bytes> part(PartKind kind) const;
  [[nodiscard]] const MappedFile& file() const { return file_; }

  // Whether the checksums of a tensor's pages fit, and its tables agree. ErrorCode::corrupt names
  // page and tensor.
  [[nodiscard]] Result<void> check(const Tensor& tensor) const;

 private:
  PackedFile(MappedFile file, PackedIndex index)
      : file_(std::move(file)), index_(std::move(index)) {}
  Result<void> take_parts(uint64_t at);
  Result<void> take_tensors();
  [[nodiscard]] Error corrupt(const std::string& what) const;

  MappedFile file_;
  PackedIndex index_;
  std::vector<Bytes> part_bytes_;
  Description description_;
};

}  // namespace scant::serve
