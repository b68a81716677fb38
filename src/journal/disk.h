// What a journal needs of a disk: files of one folder that grow, are synced and get names. A real
// folder and a simulated one that loses what was not synced. Names are relative, "base-7/INDEX";
// "" is the folder itself. Several threads may call, each about names of its own; File::sync may
// run beside append().
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant::journal {

class File {
 public:
  virtual ~File() = default;
  // All or nothing: a piece that does not fit leaves the file as it was.
  virtual Result<void> append(std::span<const Bytes> pieces) = 0;
  virtual Result<void> sync() = 0;
};

struct FileSum {
  uint64_t bytes = 0;
  uint32_t crc = 0;  // crc32c
};

class Disk {
 public:
  virtual ~Disk() = default;
  [[nodiscard]] virtual std::string path() const = 0;  // for messages
  virtual Result<std::unique_ptr<File>> create(
      const std::string& name) = 0;  // empties what is there
  virtual Result<std::vector<std::byte>> read(const std::string& name) = 0;
  virtual Result<FileSum> sum(const std::string& name) = 0;
  virtual Result<std::vector<std::string>> list(const std::string& folder) = 0;  // sorted
  virtual Result<void> make_folder(const std::string& name) = 0;  // may be there already
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  virtual Result<void> remove(const std::string& name) = 0;     // a folder with all in it
  virtual Result<void> sync_file(const std::string& name) = 0;  // what another process wrote
  virtual Result<void> sync_folder(const std::string& name) = 0;
};

// ErrorCode::io with errno; `path` is made if its parent exists.
Result<std::unique_ptr<Disk>> open_disk(const std::string& path, bool writes);

// What is done to the first is done to the second, which is made equal before if `fill`.
Result<std::unique_ptr<Disk>> mirror(std::unique_ptr<Disk> first, std::unique_ptr<Disk> second,
                                     bool fill);

[[nodiscard]] inline bool is_missing(const Error& error) { return error.sys_errno == 2; }  // ENOENT

}  // namespace scant::journal
