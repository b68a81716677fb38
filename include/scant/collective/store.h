// Rendezvous: a small key-value store that all ranks of a job can reach while they start.
// Scant uses it from the creating thread only, never after the communicator runs.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "scant/base/result.h"
#include "scant/base/types.h"

namespace scant {

class Store {
 public:
  virtual ~Store() = default;
  // Overwrites. Values are bytes, at most 64 KiB.
  virtual Result<void> set(std::string_view key, std::string_view value) = 0;
  // Sets when the key is absent; false when some value was there already.
  virtual Result<bool> set_if_absent(std::string_view key, std::string_view value) = 0;
  // Waits until the key exists; ErrorCode::timeout names the key.
  virtual Result<std::string> get(std::string_view key, Duration timeout) = 0;
};

// A directory that every rank sees (local, NFS, Lustre): one file a key, written beside and
// renamed.
[[nodiscard]] Result<std::unique_ptr<Store>> open_directory_store(const std::string& path);

}  // namespace scant
