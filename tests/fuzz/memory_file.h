// Bytes as a file that has no name on a disk, for readers that map what they read.
#pragma once

#include <string>
#include <sys/mman.h>
#include <unistd.h>

#include "base/check.h"
#include "base/descriptor.h"
#include "scant/base/types.h"

namespace scant::fuzz {

class MemoryFile {
 public:
  explicit MemoryFile(Bytes bytes) : file_(::memfd_create("scant", MFD_CLOEXEC)) {
    SCANT_CHECK(file_.open());
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t wrote = ::write(file_.get(), bytes.data() + done, bytes.size() - done);
      SCANT_CHECK(wrote > 0);
      done += static_cast<size_t>(wrote);
    }
  }
  [[nodiscard]] std::string path() const { return "/proc/self/fd/" + std::to_string(file_.get()); }

 private:
  base::Descriptor file_;
};

}  // namespace scant::fuzz
