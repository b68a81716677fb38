// A disk for tests: fails at a chosen operation, and tells what was really synced. Threads of
// writers call it.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/queue.h"
#include "journal/disk.h"

namespace scant::journal::testing {

class WatchedDisk final : public Disk {
 public:
  explicit WatchedDisk(std::unique_ptr<Disk> disk) : disk_(std::move(disk)) {}

  // Counted from 1, over all files; 0: never. Later ones work again.
  std::atomic<uint64_t> fail_append{0};
  std::atomic<uint64_t> fail_sync{0};

  struct Synced {
    std::string name;
    uint64_t bytes = 0;
  };
  // Syncs of files that returned since the last call.
  std::vector<Synced> synced() { return synced_.drain(); }

  [[nodiscard]] std::string path() const override { return disk_->path(); }
  Result<std::unique_ptr<File>> create(const std::string& name) override {
    auto file = disk_->create(name);
    if (!file) return file.error();
    return std::unique_ptr<File>(
        std::make_unique<WatchedFile>(*this, name, std::move(file).value()));
  }
  Result<std::vector<std::byte>> read(const std::string& name) override {
    return disk_->read(name);
  }
  Result<FileSum> sum(const std::string& name) override { return disk_->sum(name); }
  Result<std::vector<std::string>> list(const std::string& folder) override {
    return disk_->list(folder);
  }
  Result<void> make_folder(const std::string& name) override { return disk_->make_folder(name); }
  Result<void> rename(const std::string& from, const std::string& to) override {
    return disk_->rename(from, to);
  }
  Result<void> remove(const std::string& name) override { return disk_->remove(name); }
  Result<void> sync_file(const std::string& name) override { return disk_->sync_file(name); }
  Result<void> sync_folder(const std::string& name) override { return disk_->sync_folder(name); }

 private:
  class WatchedFile final : public File {
   public:
    WatchedFile(WatchedDisk& disk, std::string name, std::unique_ptr<File> file)
        : disk_(disk), name_(std::move(name)), file_(std::move(file)) {}
    Result<void> append(std::span<const Bytes> pieces) override {
      if (++disk_.appends_ == disk_.fail_append) {
        return Error{.code = ErrorCode::resource, .sys_errno = 28, .message = "the disk is full"};
      }
      Result<void> wrote = file_->append(pieces);
      for (const Bytes piece : pieces) bytes_ += piece.size();
      return wrote;
    }
    Result<void> sync() override {
      if (++disk_.syncs_ == disk_.fail_sync) {
        return Error{.code = ErrorCode::io, .sys_errno = 5, .message = "the disk lost it"};
      }
      const uint64_t bytes = bytes_;  // what comes meanwhile does not count
      Result<void> synced = file_->sync();
      if (synced) disk_.synced_.push({name_, bytes});
      return synced;
    }

   private:
    WatchedDisk& disk_;
    std::string name_;
    std::unique_ptr<File> file_;
    std::atomic<uint64_t> bytes_{0};
  };

  std::unique_ptr<Disk> disk_;
  std::atomic<uint64_t> appends_{0};
  std::atomic<uint64_t> syncs_{0};
  base::BoundedQueue<Synced> synced_{100000};
};

}  // namespace scant::journal::testing
