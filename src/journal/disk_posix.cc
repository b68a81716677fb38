// A folder of the operating system. Reads go through the page cache; appends are writev().
#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utility>

#include "base/buffer.h"
#include "base/crc.h"
#include "base/descriptor.h"
#include "journal/disk.h"

namespace scant::journal {
namespace {

constexpr size_t kPiecesAtOnce = 64;            // of one writev()
constexpr size_t kReadBytes = size_t{1} << 20;  // of one read()

Error io(const std::string& what, const std::string& path, int number = errno) {
  const bool full = number == ENOSPC || number == EDQUOT;
  return {.code = full ? ErrorCode::resource : ErrorCode::io,
          .sys_errno = number,
          .message = "journal: cannot " + what + " " + path};
}

using base::Descriptor;

class PosixFile final : public File {
 public:
  PosixFile(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}

  Result<void> append(std::span<const Bytes> pieces) override {
    std::vector<iovec> left;
    uint64_t total = 0;
    for (const Bytes piece : pieces) {
      if (piece.empty()) continue;
      left.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
      total += piece.size();
    }
    for (size_t at = 0; at < left.size();) {
      const size_t count = std::min(left.size() - at, kPiecesAtOnce);
      const ssize_t wrote = ::writev(descriptor_.get(), &left[at], static_cast<int>(count));
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) return undo(errno);
      auto done = static_cast<size_t>(wrote);
      while (at < left.size() && done >= left[at].iov_len) done -= left[at++].iov_len;
      if (done > 0) {
        left[at].iov_base = static_cast<std::byte*>(left[at].iov_base) + done;
        left[at].iov_len -= done;
      }
    }
    size_ += total;
    return {};
  }

  Result<void> sync() override {
    while (::fdatasync(descriptor_.get()) != 0) {
      if (errno != EINTR) return io("sync", path_);
    }
    return {};
  }

 private:
  // Nobody must find half of it in front of what comes later.
  Error undo(int number) {
    Error error = io("write", path_, number);
    if (::ftruncate(descriptor_.get(), static_cast<off_t>(size_)) != 0 ||
        ::lseek(descriptor_.get(), static_cast<off_t>(size_), SEEK_SET) < 0) {
      error.message += " (and what was begun cannot be taken back)";
    }
    return error;
  }

  Descriptor descriptor_;
  std::string path_;
  uint64_t size_ = 0;
};

class PosixDisk final : public Disk {
 public:
  explicit PosixDisk(std::string root) : root_(std::move(root)) {}

  [[nodiscard]] std::string path() const override { return root_; }

  Result<std::unique_ptr<File>> create(const std::string& name) override {
    const int descriptor = ::open(at(name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (descriptor < 0) return io("create", at(name));
    return std::unique_ptr<File>(std::make_unique<PosixFile>(descriptor, at(name)));
  }

  Result<std::vector<std::byte>> read(const std::string& name) override {
    const Descriptor file(::open(at(name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat found {};
    if (file.get() < 0 || ::fstat(file.get(), &found) != 0) return io("open", at(name));
    if (!S_ISREG(found.st_mode)) return io("read", at(name), EISDIR);
    std::vector<std::byte> bytes(static_cast<size_t>(found.st_size));
    size_t filled = 0;
    while (filled < bytes.size()) {
      const ssize_t got = ::read(file.get(), bytes.data() + filled, bytes.size() - filled);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return io("read", at(name));
      if (got == 0) break;  // shorter by now
      filled += static_cast<size_t>(got);
    }
    bytes.resize(filled);
    return bytes;
  }

  Result<FileSum> sum(const std::string& name) override {
    const Descriptor file(::open(at(name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat found {};
    if (file.get() < 0 || ::fstat(file.get(), &found) != 0) return io("open", at(name));
    if (!S_ISREG(found.st_mode)) return io("read", at(name), EISDIR);
    Result<base::Buffer> memory = base::Buffer::allocate(kReadBytes);
    if (!memory) return memory.error();
    const MutableBytes room = memory.value().view();
    FileSum sum;
    for (;;) {
      const ssize_t got = ::read(file.get(), room.data(), room.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return io("read", at(name));
      if (got == 0) return sum;
      sum.bytes += static_cast<uint64_t>(got);
      sum.crc = base::crc32c(room.first(static_cast<size_t>(got)), sum.crc);
    }
  }

  Result<std::vector<std::string>> list(const std::string& folder) override {
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator entry(at(folder), error), end; !error && entry != end;
         entry.increment(error)) {
      names.push_back(entry->path().filename().string());
    }
    if (error) return io("list", at(folder), error.value());
    std::ranges::sort(names);
    return names;
  }

  Result<void> make_folder(const std::string& name) override {
    if (::mkdir(at(name).c_str(), 0755) == 0 || errno == EEXIST) return {};
    return io("make the folder", at(name));
  }

  Result<void> rename(const std::string& from, const std::string& to) override {
    if (::rename(at(from).c_str(), at(to).c_str()) == 0) return {};
    return io("rename " + at(from) + " to", at(to));
  }

  Result<void> remove(const std::string& name) override {
    std::error_code error;
    std::filesystem::remove_all(at(name), error);
    if (error) return io("remove", at(name), error.value());
    return {};
  }

  Result<void> sync_file(const std::string& name) override {
    const Descriptor file(::open(at(name).c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) return io("open", at(name));
    if (::fsync(file.get()) != 0) return io("sync", at(name));
    return {};
  }

  Result<void> sync_folder(const std::string& name) override {
    const Descriptor folder(::open(at(name).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (folder.get() < 0) return io("open", at(name));
    if (!base::sync_folder(folder)) return io("sync", at(name));
    return {};
  }

 private:
  [[nodiscard]] std::string at(const std::string& name) const {
    return name.empty() ? root_ : root_ + "/" + name;
  }
  std::string root_;
};

}  // namespace

Result<std::unique_ptr<Disk>> open_disk(const std::string& path, bool writes) {
  if (writes && ::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) {
    return io("make the folder", path);
  }
  struct stat found {};
  if (::stat(path.c_str(), &found) != 0) return io("open", path);
  if (!S_ISDIR(found.st_mode)) return io("open", path, ENOTDIR);
  return std::unique_ptr<Disk>(std::make_unique<PosixDisk>(path));
}

}  // namespace scant::journal
