// A file that appears whole or not at all: written as NAME.part, synced, then renamed. If it is
// destroyed before publish(), nothing is left. One owner thread.
#pragma once

#include <string>

#include "base/buffer.h"
#include "base/descriptor.h"
#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::serve {

class OutputFile {
 public:
  // ErrorCode::io with errno; ErrorCode::resource: somebody else writes it now.
  [[nodiscard]] static Result<OutputFile> create(const std::string& path);
  OutputFile(OutputFile&& other) noexcept = default;
  OutputFile& operator=(OutputFile&&) = delete;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  // ErrorCode::resource: the disk is full. After any error nothing can be published.
  Result<void> append(Bytes bytes);
  Result<void> append_zeros(uint64_t count);
  Result<void> write_at(uint64_t at, Bytes bytes);  // of what was appended
  // Gives the file its name. After that a power cut does not undo it.
  Result<void> publish();
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  OutputFile(std::string path, base::Descriptor file, base::Buffer gathered)
      : path_(std::move(path)), file_(std::move(file)), gathered_(std::move(gathered)) {}
  Result<void> flush();
  Result<void> write_all(Bytes bytes, uint64_t at);
  Error failed(const std::string& what, int number);
  [[nodiscard]] std::string part() const { return path_ + ".part"; }

  std::string path_;
  base::Descriptor file_;
  base::Buffer gathered_;  // small pieces go together
  size_t filled_ = 0;
  uint64_t size_ = 0;
  bool broken_ = false;
};

}  // namespace scant::serve
