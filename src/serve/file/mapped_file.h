// A file mapped for reading. Nothing is copied, and any number of processes share its pages. If the
// file is shortened meanwhile, readers end by SIGBUS. Move-only; any thread reads.
#pragma once

#include <string>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::serve {

class MappedFile {
 public:
  // ErrorCode::io with errno; `path` begins every message.
  [[nodiscard]] static Result<MappedFile> open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] Bytes bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::string& path() const { return path_; }
  // Gives back the memory of pages that lie within these bytes; reading loads them again.
  void release(Bytes bytes) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace scant::serve
