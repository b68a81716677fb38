#include "serve/file/output_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>
#include <utility>

#include "base/check.h"

namespace scant::serve {
namespace {

constexpr size_t kGatheredBytes = size_t{1} << 20;

Error refused(const std::string& path, const std::string& what, int number) {
  const bool full = number == ENOSPC || number == EDQUOT || number == EFBIG;
  return {.code = full ? ErrorCode::resource : ErrorCode::io,
          .sys_errno = number,
          .message = path + ": " + what};
}

Result<void> sync_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const base::Descriptor opened(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!opened.open()) return refused(folder, "cannot be opened", errno);
  if (!base::sync_folder(opened)) return refused(folder, "cannot be synced", errno);
  return {};
}

}  // namespace

Result<OutputFile> OutputFile::create(const std::string& path) {
  auto gathered = base::Buffer::allocate(kGatheredBytes);
  if (!gathered) return gathered.error();
  const std::string part = path + ".part";
  base::Descriptor file(::open(part.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!file.open()) return refused(part, "cannot be made", errno);
  // What a killed writer left is written over; what a living one writes is not.
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0)
    return Error{.code = ErrorCode::resource, .message = part + ": another process writes it"};
  if (::ftruncate(file.get(), 0) != 0) return refused(part, "cannot be emptied", errno);
  return OutputFile(path, std::move(file), std::move(gathered).value());
}

OutputFile::~OutputFile() {
  if (file_.open()) static_cast<void>(::unlink(part().c_str()));
}

Error OutputFile::failed(const std::string& what, int number) {
  broken_ = true;
  return refused(path_, what, number);
}

Result<void> OutputFile::write_all(Bytes bytes, uint64_t at) {
  if (broken_) return failed("an earlier write failed", EIO);
  while (!bytes.empty()) {
    const ssize_t wrote = ::pwrite(file_.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return failed("cannot be written", wrote == 0 ? EIO : errno);
    bytes = bytes.subspan(static_cast<size_t>(wrote));
    at += static_cast<uint64_t>(wrote);
  }
  return {};
}

Result<void> OutputFile::flush() {
  const size_t filled = std::exchange(filled_, 0);
  return write_all(Bytes(gathered_.view()).first(filled), size_ - filled);
}

Result<void> OutputFile::append(Bytes bytes) {
  if (bytes.size() > gathered_.size() - filled_) {
    if (auto flushed = flush(); !flushed) return flushed;
  }
  if (bytes.size() > gathered_.size()) {
    if (auto wrote = write_all(bytes, size_); !wrote) return wrote;
  } else if (!bytes.empty()) {
    std::memcpy(gathered_.data() + filled_, bytes.data(), bytes.size());
    filled_ += bytes.size();
  }
  size_ += bytes.size();
  return {};
}

Result<void> OutputFile::append_zeros(uint64_t count) {
  static constexpr std::array<std::byte, 4096> kZeros{};
  while (count > 0) {
    const size_t now = std::min<uint64_t>(count, kZeros.size());
    if (auto wrote = append(Bytes(kZeros).first(now)); !wrote) return wrote;
    count -= now;
  }
  return {};
}

Result<void> OutputFile::write_at(uint64_t at, Bytes bytes) {
  SCANT_CHECK(at + bytes.size() <= size_);
  if (auto flushed = flush(); !flushed) return flushed;
  return write_all(bytes, at);
}

Result<void> OutputFile::publish() {
  if (auto flushed = flush(); !flushed) return flushed;
  while (::fsync(file_.get()) != 0) {
    if (errno != EINTR) return failed("cannot be synced", errno);
  }
  if (::rename(part().c_str(), path_.c_str()) != 0) return failed("cannot be named", errno);
  file_.close();
  return sync_folder_of(path_);
}

}  // namespace scant::serve
